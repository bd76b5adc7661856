"""Where a picture is chosen: an uploaded one, or an example."""

import asyncio
from collections.abc import AsyncGenerator
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
    """A place where a picture is chosen: the path of its file, and how it is shown."""

    path: gr.State
    shown: gr.HTML


def pick_picture(page: Page) -> Picked:
    """A picture, a button to upload another one, and the examples."""
    words = page.words
    picked = Picked(gr.State(None), gr.HTML(show_picked(page, None), elem_classes="picked"))
    outputs = [picked.path, picked.shown]
    show = with_messages(partial(_pick, page), lambda: (gr.skip(), gr.skip()))
    upload = gr.UploadButton(words("choose_picture"), file_types=["image"], type="filepath", size="sm", elem_classes="upload")
    upload.upload(show, upload, outputs, show_progress="hidden")
    names = list(dict.fromkeys(name for one in QUESTIONS[words.language, page.knows_shapes] for name in one.pictures))
    with gr.Row(elem_classes="thumbs"):
        for number, name in enumerate(names, start=1):
            label = words("picture_number", number=number)
            button = gr.Button(label, icon=page.examples / name, elem_classes="thumb", size="sm", min_width=44)
            choose = with_messages(partial(_pick, page, str(page.examples / name)), lambda: (gr.skip(), gr.skip()))
            button.click(choose, None, outputs, show_progress="hidden")
    return picked


async def _pick(page: Page, path: str | None) -> AsyncGenerator[Any]:
    picture = await read_upload(page, path)
    yield path, await asyncio.to_thread(show_picked, page, picture)


def show_picked(page: Page, picture: Image.Image | None) -> str:
    """A chosen picture, or a place for one."""
    if picture is None:
        return f'<div class="frame empty">{note(page.words("picture_missing"))}</div>'
    small = picture.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return f'<div class="frame"><img src="{data_uri(small, draft=True)}" alt="{page.words("picture")}"></div>'
