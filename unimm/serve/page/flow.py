"""The tab that shows a flow at work: after some of its passes, what the picture would be, and its latents."""

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from unimm.data.records import LATENTS
from unimm.serve.errors import ApiError
from unimm.serve.page.cards import Card, data_uri, note, show_grid
from unimm.serve.page.context import Page, with_messages
from unimm.serve.page.examples import PROMPTS

NUM_PICTURES = 8
"""Passes that are shown, evenly spread."""

MOST_STEPS = 100

BRIGHTEST = 3.0
"""Standard deviations from black or white to grey: each channel of latents has unit variance over images."""


def build_flow(page: Page) -> None:
    """Put the parts of "Flow" into the tab around it; or one sentence, where the model does not draw so."""
    words = page.words
    if LATENTS not in page.engine.bundle.drawing_ways:
        gr.HTML(note(words("no_flow")), elem_id="flow")
        return
    gr.HTML(f'<p class="lead">{words("flow_hint")}</p>')
    with gr.Row(elem_classes="askline"):
        prompt = gr.Textbox(
            PROMPTS[words.language, page.knows_shapes][0],
            label=words("prompt"),
            elem_id="flow-prompt",
            max_length=page.settings.max_characters,
            scale=4,
            min_width=200,
        )
        seed = gr.Number(7, label=words("seed"), precision=0, minimum=0, maximum=2**31, scale=1, min_width=90)
        own = page.engine.bundle.flow.steps
        steps = gr.Slider(1, max(MOST_STEPS, own), own, step=1, label=words("flow_steps"), scale=1, min_width=190, buttons=[])
        start = gr.Button(words("draw"), variant="primary", elem_id="flow-start", scale=1, min_width=150)
    shown = gr.HTML(note(words("flow_empty")), elem_id="flow", elem_classes="stage")
    show = with_messages(partial(_draw, page), gr.skip)
    events: list[Any] = [start.click, prompt.submit]
    gr.on(events, show, [prompt, seed, steps], shown, show_progress="hidden")


async def _draw(page: Page, prompt: str, seed: float | None, steps: float) -> AsyncGenerator[Any]:
    if not (prompt or "").strip():
        raise ApiError(400, page.words("prompt_missing"))
    yield note(page.words("working"))
    async with aclosing(page.run_once("image", _show_flow, page, prompt.strip(), int(seed or 0), int(steps))) as shown:
        async for html in shown:
            yield html


def _show_flow(page: Page, prompt: str, seed: int, steps: int) -> str:
    """A table: a column a pass, the pictures above their latents."""
    words = page.words
    found = page.engine.trace_flow(prompt, seed, NUM_PICTURES, steps=steps)
    columns = [words("pass_of", number=one.number, total=one.num_passes) for one in found]
    pictures = [
        Card(data_uri(one.image), f"{words('drawing_of', prompt=prompt)}, {column}")
        for one, column in zip(found, columns, strict=True)
    ]
    latents = [
        Card(data_uri(picture_of_latents(one.latents, one.image.width)), f"{words('latents')}, {column}")
        for one, column in zip(found, columns, strict=True)
    ]
    channels, side, _ = found[-1].latents.shape
    said = note(words("as_latents", channels=channels, side=side))
    return show_grid([(words("picture"), pictures), (words("latents"), latents)], columns, words) + said


def picture_of_latents(latents_Chw: torch.Tensor, width: int) -> Image.Image:
    """The channels of latents (C, h, w) side by side, as grey levels, about as wide as a picture."""
    channels, rows, columns = latents_Chw.shape
    across = math.ceil(math.sqrt(channels))
    levels_Chw = (127.5 * (1 + latents_Chw.float().numpy() / BRIGHTEST)).clip(0, 255).round().astype(np.uint8)
    whole = np.zeros((-(-channels // across) * rows, across * columns), np.uint8)
    for number, levels_hw in enumerate(levels_Chw):
        top, left = number // across * rows, number % across * columns
        whole[top : top + rows, left : left + columns] = levels_hw
    factor = max(1, width // (across * columns))
    return Image.fromarray(whole.repeat(factor, 0).repeat(factor, 1))
