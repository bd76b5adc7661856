"""Attention, to be looked at: for each word of an answer where the model looked, for each patch of a drawing from which words.

It is the mean over all layers and heads (`unimm.inference.trace`), at the position that the word or the patch was chosen from.
"""

import io
import json
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from unimm.data.image import look, to_pil
from unimm.serve.errors import ApiError
from unimm.serve.page.cards import data_uri, note
from unimm.serve.page.context import Page, read_upload, with_messages
from unimm.serve.page.examples import PROMPTS, QUESTIONS
from unimm.serve.page.picked import pick_picture

DARKEST = 0.85
"""How much is taken from the light where the model looked least."""

MAX_NEW_TOKENS = 64


def build_answer(page: Page) -> None:
    """Put the parts of "Where it looked" into the tab around it."""
    words = page.words
    gr.HTML(f'<p class="lead">{words("answer_hint")}</p>')
    with gr.Row(elem_classes="workbench"):
        with gr.Column(scale=1, min_width=220, elem_classes="controls"):
            picked = pick_picture(page)
        with gr.Column(scale=3, min_width=300):
            with gr.Row(elem_classes="askline"):
                question = gr.Textbox(
                    QUESTIONS[words.language, page.knows_shapes][2 if page.knows_shapes else 0].question,
                    label=words("question"),
                    elem_id="looks-question",
                    max_length=page.settings.max_characters,
                    scale=4,
                    min_width=200,
                )
                start = gr.Button(words("show_looks"), variant="primary", elem_id="looks-start", scale=1, min_width=150)
            shown = gr.HTML(note(words("looks_empty")), elem_id="looks", elem_classes="stage")
    show = with_messages(partial(_answer, page), gr.skip)
    events: list[Any] = [start.click, question.submit, picked.path.change]
    gr.on(events, show, [picked.path, question], shown, show_progress="hidden")


def build_words(page: Page) -> None:
    """Put the parts of "Words and patches" into the tab around it; or one sentence, where the model draws no codes."""
    words = page.words
    if not page.paints:
        gr.HTML(note(words("no_codes_drawn")), elem_id="threads")
        return
    prompts = PROMPTS[words.language, page.knows_shapes]
    gr.HTML(f'<p class="lead">{words("words_hint")}</p>')
    with gr.Row(elem_classes="askline"):
        prompt = gr.Textbox(
            prompts[0],
            label=words("prompt"),
            elem_id="threads-prompt",
            max_length=page.settings.max_characters,
            scale=4,
            min_width=200,
        )
        seed = gr.Number(7, label=words("seed"), precision=0, minimum=0, maximum=2**31, scale=1, min_width=90)
        start = gr.Button(words("show_words"), variant="primary", elem_id="threads-start", scale=1, min_width=150)
    shown = gr.HTML(note(words("words_empty")), elem_id="threads", elem_classes="stage")
    show = with_messages(partial(_draw, page), gr.skip)
    events: list[Any] = [start.click, prompt.submit]
    gr.on(events, show, [prompt, seed], shown, show_progress="hidden")


async def _answer(page: Page, path: str | None, question: str) -> AsyncGenerator[Any]:
    picture = await read_upload(page, path)
    if not (question or "").strip():
        raise ApiError(400, page.words("question_missing"))
    yield note(page.words("working"))
    async with aclosing(page.run_once("text", _show_answer, page, picture, question.strip())) as shown:
        async for html in shown:
            yield html


def _show_answer(page: Page, picture: Image.Image, question: str) -> str:
    """The picture as the model got it, a dark map for every word of the answer, and the words to choose between them."""
    words, engine = page.words, page.engine
    trace = engine.trace_answer(picture, question, max_new_tokens=MAX_NEW_TOKENS)
    seen = trace.images[0]
    said = trace.words()
    places = [place for word in said for place in word.positions]
    if not places:
        return note(words("nothing_said"))
    looked = trace.looked_at(places, seen.positions).numpy().reshape(-1, seen.height, seen.width)
    maps, buttons, first = [looked.mean(0)], [words("all_words")], 0
    for word in said:
        maps.append(looked[first : first + len(word.positions)].mean(0))
        buttons.append(word.text)
        first += len(word.positions)
    square = data_uri(to_pil(look(picture, engine.model.config.vision.image_size)))
    layers = "".join(
        f'<img class="map{" on" if number == 0 else ""}" data-of="{number}" src="{_shade(weights)}" alt="">'
        for number, weights in enumerate(maps)
    )
    chosen = "".join(
        f'<button data-map="{number}" class="{"all" if number == 0 else ""}" aria-pressed="{str(number == 0).lower()}" '
        f'tabindex="{0 if number == 0 else -1}">{escape(text)}</button>'
        for number, text in enumerate(buttons)
    )
    return (
        f'<div class="looks"><div class="view"><img src="{square}" alt="{words("picture")}">{layers}</div>'
        f'<div class="beside"><div class="said" data-roving="1">{chosen}</div><p>{words("few_layers")}</p></div></div>'
    )


async def _draw(page: Page, prompt: str, seed: float | None) -> AsyncGenerator[Any]:
    if not (prompt or "").strip():
        raise ApiError(400, page.words("prompt_missing"))
    yield note(page.words("working"))
    async with aclosing(page.run_once("image", _show_drawing, page, prompt.strip(), int(seed or 0))) as shown:
        async for html in shown:
            yield html


def _show_drawing(page: Page, prompt: str, seed: int) -> str:
    """A drawing under a grid of its patches, and the prompt's words; weights between them are in the element."""
    words, engine = page.words, page.engine
    codes = engine.generate_codes(prompt, seed=seed)[0]
    trace = engine.trace_drawing(prompt, codes)
    patches, said = trace.images[0], trace.words_of(prompt)
    places = [place for word in said for place in word.positions]
    looked = trace.looked_at(patches.positions, places).numpy()  # (patches, tokens of the prompt)
    ends = np.cumsum([len(word.positions) for word in said])
    of_words = np.stack([part.mean(1) for part in np.split(looked, ends[:-1], axis=1)], axis=1)
    # Some words are looked at more than others everywhere; what tells patches apart is where more than elsewhere.
    weights = np.clip(of_words / of_words.max(0, keepdims=True), 0, 1)
    weights = (weights - weights.min(0, keepdims=True)) / (1 - weights.min(0, keepdims=True) + 1e-9)
    cells = "".join(
        f'<button data-patch="{place}" aria-pressed="false" tabindex="{-1 if place else 0}" '
        f'aria-label="{words("patch_at", row=place // patches.width + 1, column=place % patches.width + 1)}"></button>'
        for place in range(len(weights))
    )
    buttons = "".join(
        f'<button data-word="{number}" aria-pressed="false" tabindex="{-1 if number else 0}">{escape(word.text)}</button>'
        for number, word in enumerate(said)
    )
    image = data_uri(engine.decode_codes(codes)[0])
    return (
        f'<div class="threads" data-weights="{json.dumps(weights.round(2).tolist(), separators=(",", ":"))}"><div class="view">'
        f'<img src="{image}" alt="{escape(words("drawing_of", prompt=prompt))}">'
        f'<div class="patches" data-roving="{patches.width}" style="--side:{patches.width}">{cells}</div></div>'
        f'<div class="beside"><div class="said" data-roving="1">{buttons}</div><p>{words("few_layers")}</p></div></div>'
    )


def _shade(weights: np.ndarray) -> str:
    """Weights (height, width) as a small black picture to lie over another one: transparent where they are largest."""
    low, high = float(weights.min()), float(weights.max())
    dark = (1 - (weights - low) / (high - low + 1e-12)) * DARKEST * 255
    pixels = np.zeros((*weights.shape, 4), np.uint8)
    pixels[..., 3] = dark.round()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
