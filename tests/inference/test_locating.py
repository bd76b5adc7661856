"""Boxes and heat maps come back in pixels of the picture given; a model that was never taught to locate says so."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer, tiny_model, tiny_text_tokenizer
from PIL import Image

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.boxes import Box, Point
from unimm.data.template import PromptFormat
from unimm.inference import locating
from unimm.inference.engine import Engine
from unimm.inference.marking import draw_heat_map, draw_places
from unimm.inference.text_stream import Completion, TokenLogprob
from unimm.models.contrastive import ContrastiveConfig

SHORT = PromptFormat(box_form="short", box_bins=32)
WIDE = Image.new("RGB", (160, 140), "navy")
"""In a square of 16 px it is 16x14 px, with a row of padding above and below."""
STEP = 160 / 31
"""Pixels of it that a bin takes."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Random weights, a format with boxes, contrastive heads."""
    tokenizer = tiny_text_tokenizer()
    torch.manual_seed(0)
    sizes = {"vocabulary_size": len(tokenizer), "vision_width": 32, "vision_heads": 2}
    heads = ContrastiveConfig(dim=8, text_width=16, text_layers=1, text_heads=2, text_positions=30, **sizes).build().eval()
    bundle = ModelBundle(tiny_model(len(tokenizer)), {DEFAULT: tiny_image_tokenizer()}, tokenizer, SHORT)
    return Engine(replace(bundle, heads={"contrastive": heads}))


def says(monkeypatch: pytest.MonkeyPatch, text: str, reason: str = "stop") -> list[str]:
    """In place of the decode loop: this text, a token a character, each with a probability of a quarter up to the first comma,
    and of a half from there on. Keeps what was asked."""
    asked: list[str] = []

    def write(decoder, tokenizer, requests):
        first = len(text.partition(",")[0]) + 1
        tokens = tuple(
            TokenLogprob(40, letter, letter.encode(), math.log(0.25 if number < first else 0.5))
            for number, letter in enumerate(f" {text}")
        )
        told = Completion(text, (), reason, (), 1, tokens=tokens)
        for one in requests:
            asked.append(
                tokenizer.decode([i for part in one.sequence.given.segments if part.kind.name == "TEXT" for i in part.ids])
            )
        return [told] * len(requests)

    monkeypatch.setattr(locating, "write", write)
    return asked


def test_boxes_are_in_pixels_of_the_picture(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(monkeypatch, "16 12 31 18, 00 08 08 22")
    left, right = engine.locate(WIDE, " the dog. ")
    assert "Locate the dog." in asked[0] and (left.label, right.label) == ("the dog.", "the dog.")
    assert np.allclose(left.corners, (0, 8 * STEP - 10, 8 * STEP, 22 * STEP - 10))
    assert np.allclose(right.corners, (16 * STEP, 12 * STEP - 10, 160, 18 * STEP - 10))
    assert right.score == pytest.approx(0.25) and left.score == pytest.approx(0.5)
    assert engine.locate([WIDE, WIDE], ["a", "b"])[1][0].label == "b" and len(engine.locate(WIDE, ["a", "b"])) == 2
    says(monkeypatch, "16 12 31 18, 00 08", "length")
    assert len(engine.locate(WIDE, "dogs")) == 1
    says(monkeypatch, "none")
    assert engine.locate(WIDE, "一只狗") == [] and engine.locate([], []) == []
    asked = says(monkeypatch, "16 12")
    assert engine.point(WIDE, "一只狗") == [
        Point(pytest.approx(16 * STEP), pytest.approx(12 * STEP - 10), pytest.approx(0.25), "一只狗")
    ]
    assert "点出一只狗。" in asked[0]


def test_what_is_no_box_is_no_box(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reversed, without area, in the padding, or a sentence: nothing, and a warning."""
    for text in ("16 12 02 18", "16 12 16 18", "16 00 31 01", "A red dog."):
        says(monkeypatch, text)
        with pytest.warns(UserWarning, match="wrote no places but"):
            assert engine.locate(WIDE, "the dog") == []
        assert engine.located([WIDE], ["the dog"])[0].found is None


def test_a_model_that_never_learned_it_says_so(tiny_engine: Engine, picture: Image.Image) -> None:
    for call in (lambda: tiny_engine.locate(picture, "a dog"), lambda: tiny_engine.describe_at(picture, (0, 0, 5, 5))):
        with pytest.raises(ValueError, match=r"^This model was not taught to locate, .*\(recipes/locate.md\)\.$"):
            call()


def test_the_model_itself_is_asked(engine: Engine, picture: Image.Image) -> None:
    """Random weights write anything; alone and in a batch the same. Settings travel with the folder."""
    pictures = [picture, WIDE, Image.new("RGB", (1, 5000), "red")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [engine.located([one], ["the dog"])[0] for one in pictures]
        assert engine.located(pictures, ["the dog"] * 3) == alone
    assert isinstance(engine.describe_at(picture, (0, 0, 10, 10), max_new_tokens=2), str)
    for place, words in (
        ((5, 5, 1, 9), "has no area"),
        (Box(0, 0, 25, 9), "out of the picture of 24x16 px"),
        ((24.5, 3), "lies outside"),
        ("here", "A box is four numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            engine.describe_at(picture, place)
    with pytest.raises(ValueError, match="phrase is empty"):
        engine.locate(picture, " ")


def test_the_format_travels_with_the_model(engine: Engine, tmp_path) -> None:
    engine.save(tmp_path / "model")
    assert ModelBundle.load(tmp_path / "model").prompt_format == SHORT


@pytest.mark.parametrize("by", locating.WAYS)
def test_heat_maps_are_of_the_picture(engine: Engine, picture: Image.Image, by: str) -> None:
    pictures = [picture, WIDE, Image.new("RGB", (1, 5000), "red"), Image.effect_noise((31, 40), 60)]
    maps = engine.heat_map(pictures, "the red circle", by)
    for one, heat in zip(pictures, maps, strict=True):
        assert heat.shape == one.size[::-1] and heat.dtype == np.float32 and 0 <= heat.min() <= heat.max() <= 1
    assert np.abs(engine.heat_map(pictures[3], "the red circle", by) - maps[3]).max() < 1e-4
    assert maps[3].max() == 1 and maps[3].min() == 0 and engine.heat_map([], "x", by) == []


def test_the_default_way_is_what_a_model_has(engine: Engine, tiny_engine: Engine, picture: Image.Image) -> None:
    assert (engine.heat_map(picture, "a dog") == engine.heat_map(picture, "a dog", "similarity")).all()
    assert tiny_engine.heat_map(picture, "a dog").shape == (16, 24)
    with pytest.raises(ValueError, match="no contrastive heads, which heat maps by similarity need"):
        tiny_engine.heat_map(picture, "a dog", "similarity")
    with pytest.raises(ValueError, match="similarity or attention, not by 'magic'"):
        engine.heat_map(picture, "a dog", "magic")
    with pytest.raises(ValueError, match="similarity or attention, not by ''"):
        engine.heat_map(picture, "a dog", "")


def test_a_phrase_that_is_too_long_has_no_heat_map(
    engine: Engine, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = engine.model.config.max_positions
    with pytest.raises(ValueError, match=rf"takes \d+ positions, and the model was made for {most}: shorten the phrase"):
        engine.heat_map([picture, picture], ["a dog", "circle " * most], "attention")
    rows, looked_at = [], engine._looked_at
    monkeypatch.setattr(engine, "_looked_at", lambda asked: [rows.append(len(asked)), looked_at(asked)][1])
    engine.heat_map([picture] * 33, "a dog", "attention")
    assert rows == [32, 32, 1, 1]  # one question at a time


def test_what_was_found_is_drawn() -> None:
    boxes = [Box(2, 3, 10, 12, 0.9, "the dog"), Box(0, 0, 24, 16, 0.5, "一只猫")]
    marked = draw_places(Image.new("RGB", (24, 16)), [*boxes, Point(5, 5, 1.0, "the dog")])
    assert marked.size == (24 * 21, 16 * 21)
    shown = np.asarray(marked)
    assert (shown[3 * 21 + 60, 2 * 21] == (255, 59, 48)).all() and (shown[16 * 21 - 1, 200] == (52, 199, 89)).all()
    heat = np.zeros((16, 24), dtype=np.float32)
    heat[4, 5] = 1
    hot = np.asarray(draw_heat_map(Image.new("RGB", (24, 16)), heat, strength=1.0))
    assert (hot[4 * 21, 5 * 21] == (255, 40, 0)).all() and (hot[0, 0] == (0, 0, 80)).all()
    with pytest.raises(ValueError, match="give its own"):
        draw_heat_map(Image.new("RGB", (16, 24)), heat)


def test_attention_is_that_of_the_trace(engine: Engine, picture: Image.Image) -> None:
    """The maps of several pictures in one pass are what a trace of each shows."""
    grids = engine._attentions([picture, WIDE], ["a dog", "一个红色圆形"])
    for number, (one, phrase) in enumerate(((picture, "a dog"), (WIDE, "一个红色圆形"))):
        assert np.allclose(grids[number], engine._attentions([one], [phrase])[0], atol=1e-5)
