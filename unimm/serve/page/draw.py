"""The tab that draws: previews while it is drawing, and of several drawings those that the model itself finds best."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from unimm.serve.errors import ApiError
from unimm.serve.page.actions import ON_ACTION
from unimm.serve.page.cards import note, progress_line, say_stopped, show_wall
from unimm.serve.page.context import Page, with_messages
from unimm.serve.page.drawings import (
    MOST_OF_EACH,
    Drawing,
    choose_drawing,
    drawing_settings,
    draws_by_flow,
    judge,
    preview_every,
    show_progress,
)
from unimm.serve.page.examples import PROMPTS


def build_draw(page: Page) -> gr.HTML:
    """Put the tab's components into the blocks around it. Returns the wall of drawings; see `actions`."""
    words, most = page.words, min(MOST_OF_EACH, page.settings.max_images_out)
    prompts = PROMPTS[words.language, page.knows_shapes]
    with gr.Row(elem_classes="workbench"):
        with gr.Column(scale=2, min_width=290, elem_classes="controls"):
            prompt = gr.Textbox(
                elem_id="draw-prompt",
                label=words("prompt"),
                placeholder=words("prompt_example", example=prompts[0]),
                lines=1,  # of one line: there Enter draws
                max_lines=4,
                max_length=page.settings.max_characters,
                submit_btn=False,
            )
            with gr.Row(elem_classes="examples words"):
                examples = [gr.Button(one, elem_classes="example", size="sm") for one in prompts]
            with gr.Row(elem_classes="go"):
                start = gr.Button(words("draw"), variant="primary", elem_id="draw-start")
                stop = gr.Button(words("stop"), variant="stop", elem_id="draw-stop", visible=False)
            with gr.Row(elem_classes="later"):
                count = gr.Slider(1, most, min(2, most), step=1, label=words("count"), min_width=120, buttons=[])
                best_of = gr.Slider(1, most, 1, step=1, label=words("best_of"), min_width=120, buttons=[])
            gr.HTML(f'<p class="help">{words("best_of_help")}</p>', elem_classes="later")
            sizes = page.engine.sizes
            has_sizes = len(sizes) > 1 and not draws_by_flow(page.engine)
            size = gr.Dropdown(sizes, value=sizes[0], label=words("size"), visible=has_sizes, elem_id="draw-size")
            with gr.Accordion(words("settings"), open=False, elem_classes="settings later"):
                settings = drawing_settings(page)
        with gr.Column(scale=3, min_width=300):
            wall = gr.HTML(note(words("wall_empty")), elem_id="wall", elem_classes="stage", js_on_load=ON_ACTION)

    outputs = [wall, settings[0], start, stop]
    at_the_end = lambda: (gr.skip(), gr.skip(), gr.Button(visible=True), gr.Button(visible=False))  # noqa: E731
    draw = with_messages(partial(_draw, page), at_the_end)
    inputs = [prompt, count, best_of, size, *settings]
    clicked = gr.on([start.click, prompt.submit], draw, inputs, outputs, show_progress="hidden")
    events: list[Any] = [clicked]
    for button, text in zip(examples, prompts, strict=True):
        filled = button.click(partial(str, text), None, prompt)
        events.append(filled.then(draw, inputs, outputs, show_progress="hidden"))
    stopped = lambda: (gr.Button(visible=True), gr.Button(visible=False))  # noqa: E731
    stop.click(stopped, None, [start, stop], cancels=events, js=say_stopped("wall", words))
    return wall


async def _draw(
    page: Page,
    prompt: str,
    count: float,
    best_of: float,
    size: str | None,
    *settings: Any,
) -> AsyncGenerator[Any]:
    """The wall as it fills; the seed that is used; which of the buttons to start and to stop there is."""
    words, count, best_of = page.words, int(count), int(best_of)
    if not (prompt or "").strip():
        raise ApiError(400, words("prompt_missing"))
    if count * best_of > page.settings.max_images_out:
        raise ApiError(400, words("too_many", asked=count * best_of, most=page.settings.max_images_out))
    drawing = choose_drawing(prompt, *settings, size=size if size != page.engine.sizes[0] else None)
    started, images, previews = time.monotonic(), [], [None] * (count * best_of)
    yield show_progress(page, drawing, previews, 0.0), drawing.seed, gr.Button(visible=False), gr.Button(visible=True)
    number = count * best_of
    own = drawing.settings_for(page.engine)
    steps = page.engine.astream_images(drawing.prompt, number, drawing.seed, preview_every(page.engine), **own)
    async with aclosing(page.run("image", number, steps)) as steps:
        async for progress in steps:
            if progress.is_final:
                images = progress.images or []
            elif progress.images is not None:
                share = progress.step / progress.num_steps
                yield show_progress(page, drawing, progress.images, share), gr.skip(), gr.skip(), gr.skip()
    if best_of > 1:
        yield show_progress(page, drawing, images, 1.0, words("judging")), gr.skip(), gr.skip(), gr.skip()
    chances = await judge(page.engine, images, drawing.prompt)
    html = await asyncio.to_thread(_finished, page, drawing, images, chances, best_of)
    html += progress_line(words("took", seconds=f"{time.monotonic() - started:.1f}"), 1.0)
    yield html, gr.skip(), gr.skip(), gr.skip()


def _finished(page: Page, drawing: Drawing, images: list[Image.Image], chances: list[Any], best_of: int) -> str:
    """Of every `best_of` drawings the best, and the others smaller below."""
    cards = [
        drawing.card(page, image, index, chance) for index, (image, chance) in enumerate(zip(images, chances, strict=True))
    ]
    if best_of == 1 or None in chances:
        return show_wall(cards, page.words)
    groups = [range(start, start + best_of) for start in range(0, len(cards), best_of)]
    kept = [max(group, key=lambda index: chances[index]) for group in groups]
    rest = sorted(set(range(len(cards))) - set(kept), key=lambda index: -chances[index])
    return show_wall([cards[index] for index in kept], page.words, [cards[index] for index in rest])
