"""Where a picture is chosen: an uploaded one, or an example."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from unimm.serve.page.cards import data_uri, note
from unimm.serve.page.context import Page, read_upload, with_messages
from unimm.serve.page.examples import QUESTIONS

PREVIEW_SIDE = 480


@dataclass(frozen=True)
class Picked:
    """A place where a picture is chosen: the path of its file, where it is shown, and how: as HTML, of a picture or of None."""

    path: gr.State
    shown: gr.HTML
    show: Callable[[Image.Image | None], str]


def pick_picture(page: Page, show: Callable[[Image.Image | None], str] | None = None, elem_id: str | None = None) -> Picked:
    """A picture, a button to upload another one, and the examples. show: as `Picked` has it."""
    words, show = page.words, show or partial(show_picked, page)
    picked = Picked(gr.State(None), gr.HTML(show(None), elem_classes="picked", elem_id=elem_id), show)
    outputs = [picked.path, picked.shown]
    pick = with_messages(partial(_pick, page, show), lambda: (gr.skip(), gr.skip()))
    upload = gr.UploadButton(words("choose_picture"), file_types=["image"], type="filepath", size="sm", elem_classes="upload")
    upload.upload(pick, upload, outputs, show_progress="hidden")
    names = list(dict.fromkeys(name for one in QUESTIONS[words.language, page.knows_shapes] for name in one.pictures))
    with gr.Row(elem_classes="thumbs"):
        for number, name in enumerate(names, start=1):
            label = words("picture_number", number=number)
            button = gr.Button(label, icon=page.examples / name, elem_classes="thumb", size="sm", min_width=44)
            choose = with_messages(partial(_pick, page, show, str(page.examples / name)), lambda: (gr.skip(), gr.skip()))
            button.click(choose, None, outputs, show_progress="hidden")
    return picked


async def _pick(page: Page, show: Callable[[Image.Image | None], str], path: str | None) -> AsyncGenerator[Any]:
    picture = await read_upload(page, path)
    yield path, await asyncio.to_thread(show, picture)


def show_picked(page: Page, picture: Image.Image | None) -> str:
    """A chosen picture, or a place for one."""
    if picture is None:
        return f'<div class="frame empty">{note(page.words("picture_missing"))}</div>'
    small = picture.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return f'<div class="frame"><img src="{data_uri(small, draft=True)}" alt="{page.words("picture")}"></div>'
