"""The tab that looks inside: a picture as codes or latents, what the model's attention says, and a flow at work."""

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
from unimm.serve.page.flow import build_flow, picture_of_latents
from unimm.serve.page.looks import build_answer, build_words
from unimm.serve.page.picked import Picked, pick_picture

HUE_STEP = 137.508
"""Degrees, the golden angle: codes near each other get colours far from each other."""


def build_inside(page: Page) -> Picked:
    """Put the tab's components into the blocks around it. Returns where the picture is chosen that is shown as codes, or as
    latents where the model draws no codes."""
    words = page.words
    with gr.Tabs(elem_classes="inner"):
        with gr.Tab(words("codes_tab" if page.has_codes else "latents")):
            picked = _build_codes(page)
        with gr.Tab(words("answer_tab")):
            build_answer(page)
        with gr.Tab(words("words_tab")):
            build_words(page)
        with gr.Tab(words("flow_tab")):
            build_flow(page)
    return picked


def _build_codes(page: Page) -> Picked:
    words = page.words
    gr.HTML(f'<p class="lead">{words("codes_hint" if page.has_codes else "latents_hint")}</p>')
    with gr.Row(elem_classes="workbench"):
        with gr.Column(scale=1, min_width=220, elem_classes="controls"):
            picked = pick_picture(page)
        with gr.Column(scale=3, min_width=300):
            empty = note(words("codes_empty" if page.has_codes else "latents_empty"))
            shown = gr.HTML(empty, elem_id="codes", elem_classes="stage")
    picked.path.change(with_messages(partial(_codes, page), gr.skip), picked.path, shown, show_progress="hidden")
    return picked


async def _codes(page: Page, path: str | None) -> AsyncGenerator[Any]:
    picture = await read_upload(page, path)
    yield await asyncio.to_thread(_show_as_drawn, page, picture)


def _show_as_drawn(page: Page, picture: Image.Image) -> str:
    """As codes, as latents, or as both, as the model draws."""
    parts = [_show_codes(page, picture)] if page.has_codes else []
    return "".join([*parts, *([_show_latents(page, picture)] if page.engine.latents_coder is not None else [])])


def _show_latents(page: Page, picture: Image.Image) -> str:
    """The picture as the tokenizer of latents gets it, their channels, and what they give back."""
    words, coder = page.words, page.engine.latents_coder
    assert coder is not None
    square = to_pil(crop(picture, coder.tokenizer.image_size))
    (latents,) = coder.encode_latents([square])
    (rebuilt,) = coder.decode_latents(latents)
    said = words("as_latents", channels=len(latents), side=latents.shape[1])
    shown = ((square, words("as_seen")), (picture_of_latents(latents, square.width), said), (rebuilt, words("from_latents")))
    figures = (
        f'<figure><img src="{data_uri(one)}" alt="{escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'
        for one, text in shown
    )
    return f'<div class="latents"><div class="trio">{"".join(figures)}</div></div>'


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
