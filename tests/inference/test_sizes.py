"""Drawings of several forms: the prompt names rows and columns, batches and windows change no code, training writes the same
sequence."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.checkpoints.bundle import ModelBundle
from unimm.data.grids import Grid
from unimm.data.prompt_format import PromptFormat
from unimm.data.records import Record, Text
from unimm.data.stores.codes import CodedDataset
from unimm.data.views import Drawing
from unimm.inference.decode.workload import Limits
from unimm.inference.drawing import preview_of
from unimm.inference.engine import Engine
from unimm.precompute.codes import encode_dataset
from unimm.runtime.provenance import carried
from unimm.sequence import Kind

PROMPT, WIDE, TALL = "a red circle", "32x16", "16x24"
SIZES = ("2x4", "3x2")
"""Of a tokenizer of 16 px whose codes are 8 px: 32x16 and 16x24 pixels."""


@pytest.fixture(scope="module")
def engine(tiny_engine: Engine) -> Engine:
    return sized(tiny_engine)


def sized(engine: Engine, limits: Limits | None = None) -> Engine:
    """The same model, as one that was taught other forms."""
    prompt_format = replace(engine.bundle.prompt_format, sizes=SIZES)
    return Engine(replace(engine.bundle, prompt_format=prompt_format), limits)


def test_a_drawing_has_the_form_that_is_asked_for(engine: Engine) -> None:
    assert engine.sizes == ["16x16", WIDE, TALL]
    for size in engine.sizes:
        width, height = map(int, size.split("x"))
        for image in engine.generate_images(PROMPT, 2, size=size):
            assert image.size == (width, height)
        codes = engine.generate_codes(PROMPT, 2, size=size)
        assert codes.shape == (2, width * height // 64)
        assert np.array_equal(engine.decode_codes(codes, size)[1], engine.generate_images(PROMPT, 2, size=(width, height))[1])
    said = carried(engine.generate_images(PROMPT, size=WIDE)[0])
    assert said is not None and said["settings"]["size"] == WIDE
    assert "size" not in (carried(engine.generate_images(PROMPT)[0]) or {})["settings"]


def test_the_own_form_is_drawn_as_ever(tiny_engine: Engine, engine: Engine) -> None:
    own = tiny_engine.generate_codes(PROMPT, 2)
    assert torch.equal(engine.generate_codes(PROMPT, 2), own) and torch.equal(
        engine.generate_codes(PROMPT, 2, size="16x16"), own
    )


def test_batches_and_windows_change_no_code(tiny_engine: Engine, engine: Engine) -> None:
    alone = {size: engine.generate_codes(PROMPT, 3, seed=5, size=size) for size in (WIDE, TALL)}
    windows = sized(tiny_engine, Limits(window=4))
    for size, codes in alone.items():
        assert torch.equal(windows.generate_codes([PROMPT, "two blue squares"], 3, seed=5, size=size)[0], codes)

    async def together() -> list[Image.Image]:
        async def draw(size: str) -> Image.Image:
            return [one async for one in engine.astream_images(PROMPT, 1, 5, 2, size=size)][-1].images[0]  # type: ignore[index]

        return await asyncio.gather(draw(WIDE), draw(TALL), draw("16x16"))

    for image, size in zip(asyncio.run(together()), (WIDE, TALL, "16x16"), strict=True):
        assert np.array_equal(image, engine.generate_images(PROMPT, seed=5, size=size)[0])


def test_previews_are_whole_rows(engine: Engine) -> None:
    codes, coder = engine.generate_codes(PROMPT, size=WIDE)[0].tolist(), engine.coder.sized(Grid(2, 4))
    for count in range(8):
        preview = np.asarray(preview_of(coder, codes[:count], 8))
        is_grey = (preview == 128).all(-1)
        assert preview.shape == (16, 32, 3) and is_grey[8:].all() and is_grey[:8].all() == (count < 4)
    shown = [one.images for one in engine.stream_images(PROMPT, preview_every=1, size=WIDE) if one.images]
    assert all(images[0].size == (32, 16) for images in shown)


def test_a_prompt_names_its_grid_and_guidance_keeps_the_name(engine: Engine) -> None:
    template, special = engine.template, engine.tokenizer.special
    opened, own = (template.draw(PROMPT, num_codes=4, grid=grid) for grid in (Grid(2, 4), None))
    name = engine.tokenizer.decode([i for segment in opened.given.segments for i in segment.ids if segment.condition is None])
    assert "2x4" in name and opened.segments[-1].limit == 8 and own.segments[-1].limit == 4
    without = opened.unconditioned(special.pad)
    assert "2x4" in engine.tokenizer.decode([i for segment in without.given.segments for i in segment.ids if i != special.pad])
    with pytest.raises(ValueError, match="names no grid 9x9"):
        template.draw(PROMPT, grid=Grid(9, 9))


def test_training_writes_what_drawing_opens(engine: Engine, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 32, 3), dtype=np.uint8) for _ in range(3)]
    records = [Record(str(number), image, captions=(Text(PROMPT),)) for number, image in enumerate(images)]
    stored = encode_dataset(engine.image_tokenizer, records, tmp_path / "codes", grid=Grid(2, 4))
    assert stored.manifest.grid == "2x4" and stored[0].shape == (8,)
    assert np.array_equal(stored[1], engine.encode_image(images[1], WIDE))
    coded = CodedDataset(records, tmp_path / "codes", grid="2x4")
    closed = Drawing(drop=0.0)(coded[1], engine.template, rng)
    opened = engine.template.draw(PROMPT, grid=Grid(2, 4))
    assert closed.segments[:-1] == opened.segments[:-1] and closed.segments[-1].kind == Kind.CODES
    assert np.array_equal(closed.segments[-1].content_ids, stored[1])
    for other in (None, "4x2"):
        with pytest.raises(ValueError, match="have the grid 2x4"):
            CodedDataset(records, tmp_path / "codes", grid=other)


def test_a_trace_knows_rows_and_columns(engine: Engine) -> None:
    codes = engine.generate_codes(PROMPT, size=WIDE)[0]
    patches = engine.trace_drawing(PROMPT, codes, WIDE).images[0]
    assert (patches.height, patches.width) == (2, 4)


@pytest.mark.parametrize("size", ["17x16", "1024x1024", 16, "wide"])
def test_a_size_that_the_grid_cannot_give(tiny_engine: Engine, engine: Engine, size: object) -> None:
    with pytest.raises(ValueError, match="This model draws 16x16, 32x16, 16x24: ask for one of them"):
        engine.generate_images(PROMPT, size=size)
    with pytest.raises(ValueError, match="was taught no other size"):
        tiny_engine.generate_images(PROMPT, size=size)
    with pytest.raises(ValueError, match="redraw looks at squares"):
        engine.generate_images(PROMPT, size=WIDE, redraw=1)


def test_a_bundle_keeps_what_it_was_taught(engine: Engine, tmp_path: Path) -> None:
    engine.bundle.save(tmp_path / "model")
    assert ModelBundle.load(tmp_path / "model").prompt_format == PromptFormat(sizes=SIZES)
