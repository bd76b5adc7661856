"""The tab that looks inside: a picture as the image tokenizer's codes, and what the model's attention says."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from unimm.data.image import crop, to_pil
from unimm.serve.page.cards import data_uri, note
from unimm.serve.page.context import Page, read_upload, with_messages
from unimm.serve.page.looks import build_answer, build_words
from unimm.serve.page.picked import Picked, pick_picture

HUE_STEP = 137.508
"""Degrees, the golden angle: codes near each other get colours far from each other."""


def build_inside(page: Page) -> Picked:
    """Put the tab's components into the blocks around it. Returns where the picture is chosen that is shown as codes."""
    words = page.words
    with gr.Tabs(elem_classes="inner"):
        with gr.Tab(words("codes_tab")):
            picked = _build_codes(page)
        with gr.Tab(words("answer_tab")):
            build_answer(page)
        with gr.Tab(words("words_tab")):
            build_words(page)
    return picked


def _build_codes(page: Page) -> Picked:
    words = page.words
    gr.HTML(f'<p class="lead">{words("codes_hint")}</p>')
    with gr.Row(elem_classes="workbench"):
        with gr.Column(scale=1, min_width=220, elem_classes="controls"):
            picked = pick_picture(page)
        with gr.Column(scale=3, min_width=300):
            shown = gr.HTML(note(words("codes_empty")), elem_id="codes", elem_classes="stage")
    picked.path.change(with_messages(partial(_codes, page), gr.skip), picked.path, shown, show_progress="hidden")
    return picked


async def _codes(page: Page, path: str | None) -> AsyncGenerator[Any]:
    picture = await read_upload(page, path)
    yield await asyncio.to_thread(_show_codes, page, picture)


def _show_codes(page: Page, picture: Image.Image) -> str:
    """The picture as the tokenizer gets it, its codes as a grid, and what they give back."""
    words, tokenizer = page.words, page.engine.image_tokenizer
    square = to_pil(crop(picture, tokenizer.image_size))
    codes = page.engine.encode_image(square)
    rebuilt = page.engine.decode_codes(codes)[0]
    side = round(len(codes) ** 0.5)
    cells = []
    for place, code in enumerate(codes.tolist()):
        text = words("code_at", row=place // side + 1, column=place % side + 1, code=code)
        colour = f"hsl({code * HUE_STEP % 360:.0f} 52% {42 + code % 3 * 10}%)"
        tab = "0" if place == 0 else "-1"
        cells.append(f'<button data-code="{text}" aria-label="{text}" tabindex="{tab}" style="--c:{colour}"></button>')
    grid = f'<div class="code-grid" data-roving="{side}" style="--side:{side}">{"".join(cells)}</div>'
    number = escape(words("as_codes", number=len(codes), size=tokenizer.codebook_size))
    return (
        '<div class="codes"><div class="trio">'
        f'<figure><img src="{data_uri(square)}" alt="{words("as_seen")}"><figcaption>{words("as_seen")}</figcaption></figure>'
        f"<figure>{grid}<figcaption>{number}</figcaption></figure>"
        f'<figure><img src="{data_uri(rebuilt)}" alt="{words("rebuilt")}"><figcaption>{words("rebuilt")}</figcaption></figure>'
        f'</div><p class="code-read" role="status">{escape(words("code_hover"))}</p></div>'
    )
