"""What the tabs Edit and Ask do behind the page: edits by models that were taught to, images inside answers, bad input."""

import asyncio
import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from inference.test_interleaved import make_engine
from PIL import Image

from unimm.checkpoints.bundle import DrawingDefaults
from unimm.data.prompt_format import PromptFormat
from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.errors import ApiError
from unimm.serve.page.ask import DRAFT, _ask
from unimm.serve.page.context import Page
from unimm.serve.page.edit import Change, _change
from unimm.serve.page.mount import build_page
from unimm.serve.page.painter import show_painter
from unimm.serve.page.words import Words
from unimm.serve.settings import ServerSettings

SETTINGS: tuple[Any, ...] = (7, False, 2.0, 1.0)


@pytest.fixture(scope="module")
def taught() -> Engine:
    """A model with random weights that is said to have been taught to edit and to draw in its answers."""
    return make_engine(PromptFormat(edits="codes_last", looks_at_drawings=True))


@pytest.fixture
def page(taught: Engine, tmp_path: Path) -> Page:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).save(tmp_path / "wide.png")
    app = create_app(taught, ServerSettings(page=False, max_images_out=4))
    return Page(app.state.service, Words("en"), tmp_path, knows_shapes=True)


def change(page: Page, wish: Change, count: int = 1) -> list[Any]:
    """What the wall shows, update after update."""

    async def collect() -> list[Any]:
        path = str(page.examples / "wide.png")
        return [update[0] async for update in _change(page, 3, lambda: wish, path, count, *SETTINGS)]

    return asyncio.run(collect())


def pictures_of(html: str) -> list[np.ndarray]:
    parts = [one.split('"')[0] for one in html.split('src="data:image/')[1:]]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).convert("RGB")) for one in parts]


def mask_of(is_marked: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(is_marked.astype(np.uint8) * np.uint8(255)).convert("RGB").save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_an_edit_is_the_engines_own_laid_over_the_picture(page: Page) -> None:
    picture = np.asarray(Image.open(page.examples / "wide.png"))
    updates = change(page, Change("make it blue", image_guidance=1.5, source_bias=2.0), count=2)
    assert len(updates) >= 2 and "drawing" in updates[0]
    shown = pictures_of(updates[-1])
    wanted = page.engine.edit_images(picture, "make it blue", 2, 7, 2.0, 1.5, 2.0, temperature=1.0)
    square = [np.asarray(one.resize((12, 12), Image.Resampling.LANCZOS)) for one in wanted]
    assert len(shown) == 2 and all(np.array_equal(one[:, 4:16], own) for one, own in zip(shown, square, strict=True))
    assert all(np.array_equal(one[:, :4], picture[:, :4]) for one in shown)


def test_what_was_not_painted_over_stays_to_the_byte(page: Page) -> None:
    picture = np.asarray(Image.open(page.examples / "wide.png"))
    is_marked = np.zeros((12, 20), bool)
    is_marked[3:9, 2:9] = True
    (painted,) = pictures_of(change(page, Change("a circle", mask=mask_of(is_marked)))[-1])
    assert np.array_equal(painted[~is_marked], picture[~is_marked]) and (painted != picture).any()
    (grown,) = pictures_of(change(page, Change("a circle", sides=Change.sides._replace(left=6, bottom=-2)))[-1])
    assert grown.shape == (10, 26, 3) and np.array_equal(grown[:, 6:], picture[:10])


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Change(" "), "Say first what should be drawn"),
        (Change("a", mask=""), "Paint over what shall change first"),
        (Change("a", mask="https://example.com/x.png"), "not a picture"),
        (Change("a", mask=mask_of(np.ones((4, 4), bool))), "The mask is 4x4, but the image 20x12"),
        (Change("a", mask=mask_of(np.ones((12, 20), bool))), "marks the whole image"),
        (Change("a"), "by how many pixels"),
        (Change("a", sides=Change.sides._replace(right=100_000)), "more than 64 squares"),
        (Change("a", sides=Change.sides._replace(left=-30)), "Nothing of the image"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_cannot_be_done_is_said(page: Page, wish: Change, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        change(page, wish)


def test_what_a_model_was_not_taught_is_said_where_it_would_stand(page: Page) -> None:
    def sentences(engine: Engine) -> str:
        own = replace(page, service=create_app(engine, ServerSettings(page=False)).state.service)
        blocks = build_page(own)
        return " ".join(str(one.value) for one in blocks.blocks.values() if isinstance(one, gr.HTML))

    assert "not taught" not in sentences(page.engine)
    plain = Engine(replace(page.engine.bundle, prompt_format=PromptFormat(), drawing=DrawingDefaults()))
    assert "not taught" in sentences(plain)
    assert 'class="painter quiet"' in show_painter(page, Image.new("RGB", (8, 4)))


def test_answers_hold_images_and_drafts_of_them_are_forgotten(page: Page) -> None:
    async def ask(text: str, chat: list[Any]) -> list[Any]:
        return [chat async for chat, _ in _ask(page, {"text": text}, chat, 1.0, 60, True)]

    for _ in range(8):  # seeds differ: some answer begins an image
        updates = asyncio.run(ask("Draw a red circle.", []))
        answer = updates[-1][-1]["content"]
        if isinstance(answer, list):
            break
    assert isinstance(answer, list) and any(part["type"] == "file" for part in answer)
    images = [Path(part["file"]["path"]) for part in answer if part["type"] == "file"]
    assert all(Image.open(path).size == (16, 16) and path.stem != DRAFT for path in images)
    drafts = [
        part for one in updates if isinstance(one[-1]["content"], list) for part in one[-1]["content"] if DRAFT in str(part)
    ]
    assert drafts, "it is shown while it is drawn"
    chat = [*updates[-1][:-1], {"role": "assistant", "content": [*answer, drafts[0]]}]
    assert len(asyncio.run(ask("And a cross.", chat))[-1]) == 4
