"""Editing: batches and windows change no code, guidance is three prompts, bad input ends in one sentence."""

import asyncio
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.batch import collate
from unimm.data.prompt_format import EDITS
from unimm.inference.decode.request import Request
from unimm.inference.decode.workload import Limits
from unimm.inference.editing import guide_edits
from unimm.inference.engine import Engine
from unimm.inference.loglikelihood import score_pass
from unimm.runtime.provenance import read_provenance, write_image
from unimm.sequence import Expected, Kind

INSTRUCTION = "make the circle blue"
WORDS: dict[str, Any] = {"guidance_scale": 3.0, "image_guidance_scale": 1.5}


def editor(engine: Engine, edits: str = EDITS[0], limits: Limits | None = None, **format: Any) -> Engine:
    """The same model, as one that was taught to edit."""
    prompt_format = replace(engine.bundle.prompt_format, edits=edits, **format)
    return Engine(replace(engine.bundle, prompt_format=prompt_format), limits)


def other_picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def codes_of(engine: Engine, *arguments: Any, **words: Any) -> torch.Tensor:
    return list(engine.stream_edit_images(*arguments, preview_every=0, **words))[-1].codes


@pytest.mark.parametrize("edits", EDITS)
def test_the_sequence_is_that_of_the_design(tiny_engine: Engine, picture: Image.Image, edits: str) -> None:
    engine = editor(tiny_engine, edits)
    source, target = np.arange(4), np.arange(4)[::-1].copy()
    opened = engine.template.edit(picture, source, INSTRUCTION, num_codes=4)
    closed = engine.template.edit(picture, source, INSTRUCTION, target)
    assert opened.segments[:-1] == closed.segments[:-1]
    assert closed.segments[-1].learn and sum(segment.learn for segment in closed.segments) == 1
    kinds = [(segment.kind, segment.condition) for segment in opened.segments if segment.condition]
    pixels, codes, text = (Kind.PIXELS, "image"), (Kind.CODES, "image"), (Kind.TEXT, "text")
    assert kinds == ([text, pixels, codes, text] if edits == "codes_first" else [text, pixels, text, codes])
    gaps = set()
    for words in ("a", INSTRUCTION * 2):  # how far the codes of the source are from those that replace them
        spans = engine.template.edit(picture, source, words, target).spans()
        gaps.add(spans[-1].start - next(one.start for one in spans if one.segment.kind == Kind.CODES))
    assert (len(gaps) == 1) == (edits == "codes_last")


def test_alone_in_a_batch_and_in_windows_it_is_the_same(tiny_engine: Engine, picture: Image.Image) -> None:
    engine, images, texts = editor(tiny_engine), [picture, other_picture()], [INSTRUCTION, "remove the square"]
    together = codes_of(engine, images, texts, num_images=2, seed=[3, 4], **WORDS).reshape(2, 2, 4)
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        for index in range(2):
            alone = codes_of(engine, image, text, seed=3 + place, first_index=index, **WORDS)
            assert torch.equal(alone[0], together[place, index])
    windowed = editor(tiny_engine, limits=Limits(window=4))
    assert torch.equal(codes_of(windowed, images, texts, num_images=2, seed=[3, 4], **WORDS).reshape(2, 2, 4), together)
    pictures = engine.edit_images(images, texts, 2, seed=[3, 4], **WORDS)
    assert [len(one) for one in pictures] == [2, 2]
    fitting = asyncio.run(engine.aedit_images(images, texts, 2, seed=[3, 4], **WORDS))
    engine.decoder.stop()
    assert [one.tobytes() for one in fitting] == [one.tobytes() for some in pictures for one in some]


def test_guidance_is_a_sum_of_prompts_that_drop_a_condition(tiny_engine: Engine, picture: Image.Image) -> None:
    assert [(set(one.drop), one.weight) for one in guide_edits(7.5, 1.5)] == [
        (set(), 7.5), ({"text"}, -6.0), ({"text", "image"}, -0.5),
    ]  # fmt: skip
    assert [set(one.drop) for one in guide_edits(3.0)] == [set(), {"text"}]
    assert [set(one.drop) for one in guide_edits(2.0, 2.0)] == [set(), {"text", "image"}] and len(guide_edits(1.0)) == 1
    engine = editor(tiny_engine)
    found = {
        scales: tuple(codes_of(engine, picture, INSTRUCTION, num_images=4, guidance_scale=scales[0],
                               image_guidance_scale=scales[1]).flatten().tolist())
        for scales in [(1.0, 1.0), (4.0, 1.0), (4.0, 3.0)]
    }  # fmt: skip
    assert len(set(found.values())) == 3
    # what weighs nothing is not read: with the image dropped entirely, another image gives the same
    nothing = {"guidance_scale": 0.0, "image_guidance_scale": 0.0, "num_images": 4}
    assert torch.equal(
        codes_of(engine, picture, INSTRUCTION, **nothing), codes_of(engine, other_picture(), INSTRUCTION, **nothing)
    )


def test_a_bias_keeps_the_source(tiny_engine: Engine, picture: Image.Image) -> None:
    """As far as it is large. As the first guesses of windows its codes change nothing."""
    engine, windowed = editor(tiny_engine), editor(tiny_engine, limits=Limits(window=4))
    source = engine.encode_image(picture)
    hot: dict[str, Any] = {"num_images": 16, "temperature": 2.0}
    drawn = [codes_of(engine, picture, INSTRUCTION, **hot, source_bias=bias) for bias in (0.0, 4.0, 100.0)]
    kept = [float((codes == source).float().mean()) for codes in drawn]
    assert kept[0] < kept[1] <= kept[2] == 1.0
    for bias in (0.0, 3.0):
        words = {**WORDS, "num_images": 4, "temperature": 1.5, "source_bias": bias}
        assert torch.equal(codes_of(windowed, picture, INSTRUCTION, **words), codes_of(engine, picture, INSTRUCTION, **words))


def test_a_model_that_learned_with_a_bias_draws_and_scores_with_it(tiny_engine: Engine, picture: Image.Image) -> None:
    plain, biased = editor(tiny_engine), editor(tiny_engine, source_bias=4.0)
    hot: dict[str, Any] = {"num_images": 8, "temperature": 2.0}
    told = codes_of(plain, picture, INSTRUCTION, **hot, source_bias=4.0)
    assert torch.equal(codes_of(biased, picture, INSTRUCTION, **hot), told)
    assert torch.equal(
        codes_of(biased, picture, INSTRUCTION, **hot, source_bias=0), codes_of(plain, picture, INSTRUCTION, **hot)
    )
    assert not torch.equal(told, codes_of(plain, picture, INSTRUCTION, **hot))
    source = plain.encode_image(picture).numpy()
    kept = [engine.template.edit(picture, source, INSTRUCTION, source) for engine in (plain, biased)]
    scores = [score_pass(plain.model, [sequence])[0].logprob for sequence in kept]
    assert scores[1] > scores[0] + 4.0  # of 4 codes, each of them expected
    likely = [plain.model.log_probs(collate([[sequence]]))[0].sum().item() for sequence in kept]
    assert likely == pytest.approx(scores, rel=1e-4)


def test_lists_and_provenance(tiny_engine: Engine, picture: Image.Image) -> None:
    engine = editor(tiny_engine)
    steps: list[int] = []
    (image,) = engine.edit_images(picture, INSTRUCTION, seed=5, callback=lambda state: steps.append(state.step), **WORDS)
    ((same,), (_,)) = engine.edit_images(picture, [INSTRUCTION, "add a cross"], seed=5, **WORDS)
    assert image.tobytes() == same.tobytes() and steps == [1, 2, 3, 4]
    assert engine.edit_images([], INSTRUCTION) == []
    written = io.BytesIO()
    write_image(image, written)
    said = read_provenance(written.getvalue())
    assert said and (said["task"], said["prompt"], said["seed"], said["index"]) == ("edit", INSTRUCTION, 5, 0)
    assert said["settings"]["guidance_scale"] == 3.0 and said["settings"]["image_guidance_scale"] == 1.5
    other = engine.edit_images(other_picture(), INSTRUCTION, seed=5, **WORDS)[0]
    assert said["source"] != (read_provenance(other) or {})["source"]


def test_what_cannot_be_edited_ends_in_one_sentence(tiny_engine: Engine, picture: Image.Image) -> None:
    engine = editor(tiny_engine)
    for arguments, words, told in [
        ((None, INSTRUCTION), {}, "there is none"),
        ((picture, " "), {}, "instruction is empty"),
        ((picture, 7), {}, "instruction is a string"),
        ((picture, INSTRUCTION * 100), {}, "shorten the prompt"),
        (([picture] * 2, [INSTRUCTION] * 3), {}, "do not pair"),
        ((picture, INSTRUCTION), {"image_guidance_scale": -1.0}, "image_guidance_scale must be"),
        ((picture, INSTRUCTION), {"source_bias": 101}, "source_bias is from 0"),
        ((picture, INSTRUCTION), {"source_bias": "3"}, "source_bias is a number"),
        ((picture, INSTRUCTION), {"guidance_scale": float("nan")}, "guidance_scale must be"),
        ((b"no image", INSTRUCTION), {}, "image"),
    ]:
        with pytest.raises(ValueError, match=told):
            engine.edit_images(*arguments, **words)
    with pytest.raises(TypeError, match="no setting zebra"):
        engine.edit_images(picture, INSTRUCTION, zebra=1)
    with pytest.raises(ValueError, match=r"not taught to edit.*recipes/edit.md"):
        tiny_engine.edit_images(picture, INSTRUCTION)


def test_it_is_saved_that_a_model_edits(tiny_engine: Engine, tmp_path: Any) -> None:
    from unimm.inference.engine import load

    editor(tiny_engine).save(tmp_path / "model")
    assert load(tmp_path / "model").prompt_format.edits == "codes_last"


def test_elements_that_there_are_not_cannot_be_expected(tiny_engine: Engine) -> None:
    engine, size = tiny_engine, tiny_engine.image_tokenizer.codebook_size
    request = Request(engine.template.draw("a", num_codes=engine.image_tokenizer.num_codes))
    engine.decoder.check(replace(request, expected=Expected((0, np.int64(size - 1)), np.float32(2.0))))  # pyright: ignore[reportArgumentType]
    for ids in ((size,), (-1, 0)):
        with pytest.raises(ValueError, match=rf"Of CODES expected ones lie in \[0, {size}\), not"):
            engine.decoder.check(replace(request, expected=Expected(ids, 1.0)))
    for ids, bias in (((1.5,), 1.0), ((1,), float("nan")), ((1,), "2")):
        with pytest.raises(ValueError, match="expected"):
            Expected(ids, bias)  # pyright: ignore[reportArgumentType]
