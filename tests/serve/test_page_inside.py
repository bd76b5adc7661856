"""What the tab "Look inside" shows of a model that draws by a flow, by codes, or by both; and says of one that does not."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from flows import make_engine
from PIL import Image

from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.errors import ApiError
from unimm.serve.page.context import Page
from unimm.serve.page.flow import _draw, picture_of_latents
from unimm.serve.page.inside import _show_as_drawn
from unimm.serve.page.mount import build_page
from unimm.serve.page.words import Words
from unimm.serve.settings import ServerSettings


def page_of(engine: Engine, examples: Path) -> Page:
    return Page(create_app(engine, ServerSettings(page=False)).state.service, Words("en"), examples, knows_shapes=True)


@pytest.fixture(scope="module")
def flow_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of a model that draws by a flow alone."""
    return page_of(make_engine(codes=False), tmp_path_factory.mktemp("examples"))


def pictures_of(html: str) -> list[np.ndarray]:
    parts = [one.split('"')[0] for one in html.split('src="data:image/')[1:]]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2])))) for one in parts]


def flow_of(page: Page, prompt: str, steps: int) -> list[Any]:
    """What the tab shows, update after update."""

    async def collect() -> list[Any]:
        return [html async for html in _draw(page, prompt, 3, steps)]

    return asyncio.run(collect())


def test_a_drawing_by_a_flow_is_shown_pass_by_pass(flow_page: Page) -> None:
    waiting, table = flow_of(flow_page, "a red circle", 12)
    assert "One moment" in waiting and [f"pass {number} of 12" in table for number in (1, 12)] == [True, True]
    found = flow_page.engine.trace_flow("a red circle", 3, 8, steps=12)
    pictures = [np.asarray(one.image) for one in found]
    latents = [np.asarray(picture_of_latents(one.latents, 16)) for one in found]
    shown = pictures_of(table)
    assert len(shown) == 16 and all(np.array_equal(*pair) for pair in zip(shown, [*pictures, *latents], strict=True))
    assert "2 channels of 8 × 8 numbers" in table
    with pytest.raises(ApiError, match="Say first what should be drawn"):
        flow_of(flow_page, " ", 3)


def test_a_picture_is_shown_as_what_the_model_draws(flow_page: Page, tiny_engine: Engine, picture: Image.Image) -> None:
    square, channels, rebuilt = pictures_of(_show_as_drawn(flow_page, picture))
    coder = flow_page.engine.latents_coder
    assert coder is not None
    (latents,) = coder.encode_latents([Image.fromarray(square)])
    assert np.array_equal(channels, np.asarray(picture_of_latents(latents, 16)))
    assert np.array_equal(rebuilt, np.asarray(coder.decode_latents(latents)[0]))
    by_codes = _show_as_drawn(page_of(tiny_engine, flow_page.examples), picture)
    assert "data-code" in by_codes and "latents" not in by_codes and len(pictures_of(by_codes)) == 2
    both = _show_as_drawn(page_of(make_engine(), flow_page.examples), picture)
    assert "data-code" in both and len(pictures_of(both)) == 5


def test_latents_are_grey_levels_side_by_side() -> None:
    latents = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 3.0), torch.full((2, 2), -9.0)])
    whole = np.asarray(picture_of_latents(latents, 13))
    assert whole.shape == (12, 12)
    assert [whole[0, 0], whole[0, 6], whole[6, 0], whole[6, 6]] == [128, 255, 0, 0]


def test_what_a_model_lacks_is_said_in_one_sentence(flow_page: Page, tiny_engine: Engine) -> None:
    def said(page: Page) -> str:
        return " ".join(str(one.value) for one in build_page(page).blocks.values() if isinstance(one, gr.HTML))

    by_codes, by_flow = said(page_of(tiny_engine, flow_page.examples)), said(flow_page)
    assert "does not draw by a flow" in by_codes and "A flow draws the whole picture" not in by_codes
    assert "does not draw by a flow" not in by_flow and "A flow draws the whole picture" in by_flow
    assert "does not draw code by code" in by_flow and "does not draw code by code" not in by_codes
    assert "becomes a grid of codes" in by_codes and "its latents" in by_flow
