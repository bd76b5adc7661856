"""An engine whose model sees large pictures in tiles: every call that looks at one, alone and together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unimm
from unimm.data.template import PromptFormat, Turn
from unimm.data.tiles import Tiles
from unimm.inference.engine import Engine
from unimm.sequence import Kind

QUESTION = "What?"


@pytest.fixture(scope="module")
def engine(tiny_engine: Engine) -> Engine:
    return Engine(replace(tiny_engine.bundle, prompt_format=PromptFormat(tiles=Tiles(6))))


@pytest.fixture(scope="module")
def pages() -> list[Image.Image]:
    """Of 2, 6, 1 and 3 tiles."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        for size in ((16, 32, 3), (32, 48, 3), (9, 9, 3), (48, 16, 3))
    ]


def test_every_call_that_looks_takes_them(engine: Engine, pages: list[Image.Image]) -> None:
    answers = engine.answer(pages, QUESTION, max_new_tokens=6)
    assert answers == [engine.answer(page, QUESTION, max_new_tokens=6) for page in pages]
    assert engine.caption(pages, max_new_tokens=6) == [engine.caption(page, max_new_tokens=6) for page in pages]
    for page, answer in zip(pages, answers, strict=True):
        content = [{"type": "image", "image": page}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        assert engine.chat(messages, max_new_tokens=6) == answer
        assert "".join(engine.chat(messages, stream=True, max_new_tokens=6)) == answer
        assert engine.complete([messages], max_new_tokens=6)[0].text == answer
    two = [{"role": "user", "content": [{"type": "image", "image": page} for page in pages[:2]]}]
    assert isinstance(engine.chat(two, max_new_tokens=3), str)
    assert len(engine.alignment(pages, "a red circle")) == 4


def test_a_likelihood_is_that_of_what_decoding_says(engine: Engine, pages: list[Image.Image]) -> None:
    content = [{"type": "image", "image": pages[1]}, {"type": "text", "text": QUESTION}]
    said = engine.complete([{"role": "user", "content": content}], max_new_tokens=4, logprobs=True)
    (filled,) = engine.fill([engine.template.chat([Turn("user", (engine.template.look(pages[1]), QUESTION))], 4)])
    learned = replace(filled.segments[-1], weight=1.0)
    (scored,) = engine.loglikelihood([replace(filled, segments=(*filled.segments[:-1], learned))])
    assert scored.is_greedy and scored.logprob == pytest.approx(sum(token.logprob for token in said.tokens), abs=1e-3)


def test_tiles_are_told_apart(engine: Engine) -> None:
    """The same squares in another order, or the same tiles in another grid, are another prompt."""
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    wide, tall, turned = np.concatenate([one, other], 1), np.concatenate([one, other], 0), np.concatenate([other, one], 1)
    ids = [
        [segment.ids for segment in engine.template.look(image) if segment.kind == Kind.TEXT] for image in (wide, tall, turned)
    ]
    assert ids[0] != ids[1] and ids[0] == ids[2]
    assert len({engine.answer(image, QUESTION, max_new_tokens=12) for image in (wide, tall, turned)}) > 1


def test_tiles_are_saved_with_the_model(engine: Engine, pages: list[Image.Image], tmp_path: Path) -> None:
    assert engine.save(tmp_path / "model") == ["it sees large pictures in tiles, a Janus sees one square"]
    kept = json.loads((tmp_path / "model/config.json").read_text())["unimm"]["prompt_format"]
    assert kept["tiles"] == {"max_tiles": 6, "min_tiles": 1, "thumbnail": True}
    again = unimm.load(tmp_path / "model", device="cpu")
    assert again.prompt_format == engine.prompt_format
    assert again.answer(pages, QUESTION, max_new_tokens=6) == engine.answer(pages, QUESTION, max_new_tokens=6)


def test_more_tiles_than_positions_are_refused_in_one_sentence(engine: Engine, pages: list[Image.Image]) -> None:
    shown = [{"type": "image", "image": pages[1]}] * 9
    with pytest.raises(ValueError, match="take 324 positions, and there are 256: show fewer, or smaller ones"):
        engine.chat([{"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}])
    many = Engine(replace(engine.bundle, prompt_format=PromptFormat(tiles=Tiles(100))))
    with pytest.raises(ValueError, match=r"takes .* positions .* shorten the prompt, or ask for fewer images"):
        many.answer(np.zeros((160, 160, 3), dtype=np.uint8), QUESTION)
    with pytest.raises(ValueError, match="1x5000 is more than 200 times"):
        engine.answer(np.zeros((5000, 1, 3), dtype=np.uint8), QUESTION)
