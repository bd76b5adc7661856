"""The tab that changes a picture: as an instruction says, by models that were taught to; where it was painted on; or around it.

Each result can be taken as the next picture, so changes go on from each other.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from unimm.inference.drawing import DrawingProgress
from unimm.inference.windows_of_images import Sides, lay_over
from unimm.serve.errors import ApiError
from unimm.serve.page.actions import ON_ACTION
from unimm.serve.page.cards import note, progress_line, say_stopped, show_wall
from unimm.serve.page.context import Page, read_upload, with_messages
from unimm.serve.page.drawings import (
    MOST_OF_EACH,
    NUM_SETTINGS,
    Drawing,
    choose_drawing,
    drawing_settings,
    preview_every,
    show_progress,
)
from unimm.serve.page.examples import EDITS, PAINTED
from unimm.serve.page.painter import SEND_MASK, read_mask, show_painter, show_tools
from unimm.serve.page.picked import Picked, pick_picture
from unimm.serve.painting import check_size, mark_image

MOST_AROUND = 1024
"""Pixels that a picture may grow by on a side."""

NO_SIDES = Sides()

SHOW_MODE = "() => {{ document.getElementById('tabs').dataset.edits = '{}'; }}"
"""What the browser does when a tab is chosen: the canvas lies over the picture where it is painted on, and only there."""


@dataclass(frozen=True)
class Change:
    """What was asked for.

    words: an instruction, or what the whole picture shall show. mask: as `SEND_MASK` sends it.
    """

    words: str
    sides: Sides = NO_SIDES
    mask: str | None = None
    image_guidance: float | None = None
    source_bias: float | None = None


def build_edit(page: Page) -> tuple[Picked, gr.HTML] | None:
    """Put the tab's components into the blocks around it. Returns where the picture is chosen, and the wall of results; None
    where the model can change none."""
    words, most = page.words, min(MOST_OF_EACH, page.settings.max_images_out)
    if not page.paints:
        gr.HTML(note(words("draws_no_codes")), elem_id="edit-none")
        return None
    with gr.Row(elem_classes="workbench"):
        with gr.Column(scale=2, min_width=290, elem_classes="controls"):
            picked = pick_picture(page, partial(show_painter, page), elem_id="edit-picture")
            start = "words" if page.engine.prompt_format.edits else "paint"
            with gr.Tabs(elem_classes="inner", selected=start):
                ways = [_by_words(page), _by_brush(page), _around(page)]
            with gr.Row(elem_classes="go"):
                stop = gr.Button(words("stop"), variant="stop", elem_id="edit-stop", visible=False)
            count = gr.Slider(1, most, min(2, most), step=1, label=words("count"), min_width=120, buttons=[])
            with gr.Accordion(words("settings"), open=False, elem_classes="settings later"):
                settings = drawing_settings(page)
        with gr.Column(scale=3, min_width=300):
            wall = gr.HTML(note(words("edits_empty")), elem_id="edit-wall", elem_classes="stage", js_on_load=ON_ACTION)
    buttons = [one.start for one in ways if one.start is not None]
    outputs = [wall, settings[0], stop, *buttons]
    at_the_end = lambda: (gr.skip(), gr.skip(), *_buttons(len(buttons), is_running=False))  # noqa: E731
    events = []
    for way in ways:
        if way.start is None:
            continue
        change = with_messages(partial(_change, page, len(buttons), way.read), at_the_end)
        inputs = [picked.path, count, *settings, *way.inputs]
        for event in (way.start.click, *([way.prompt.submit] if way.prompt is not None else [])):
            events.append(event(change, inputs, outputs, show_progress="hidden", js=way.js))
    stopped = partial(_buttons, len(buttons), is_running=False)
    stop.click(stopped, None, [stop, *buttons], cancels=events, js=say_stopped("edit-wall", words))
    return picked, wall


@dataclass(frozen=True)
class _Way:
    """One way to change a picture. read: what the values of its inputs ask for. start: None where the model cannot."""

    start: gr.Button | None
    prompt: gr.Textbox | None = None
    inputs: tuple[Any, ...] = ()
    read: Callable[..., Change] = Change
    js: str | None = None


def _by_words(page: Page) -> _Way:
    words, engine = page.words, page.engine
    with gr.Tab(words("by_words_tab"), id="words") as tab:
        tab.select(None, None, None, js=SHOW_MODE.format("words"))
        if not engine.prompt_format.edits:
            gr.HTML(note(words("not_taught")), elem_id="not-taught")
            return _Way(None)
        prompt = _prompt(page, "edit-words", words("instruction"), EDITS[words.language, page.knows_shapes])
        image_guidance = gr.Slider(
            1, 3, 1, step=0.1, label=words("image_guidance"), info=words("image_guidance_help"), buttons=[]
        )
        learned = engine.prompt_format.source_bias
        source_bias = gr.Slider(
            0, max(8, learned), learned, step=0.5, label=words("source_bias"), info=words("source_bias_help"), buttons=[]
        )
        start = gr.Button(words("change"), variant="primary", elem_id="edit-start")

    def read(text: str, scale: float, bias: float) -> Change:
        return Change(text, image_guidance=float(scale), source_bias=float(bias))

    return _Way(start, prompt, (prompt, image_guidance, source_bias), read)


def _by_brush(page: Page) -> _Way:
    words = page.words
    with gr.Tab(words("by_brush_tab"), id="paint") as tab:
        tab.select(None, None, None, js=SHOW_MODE.format("paint"))
        gr.HTML(f'<p class="help">{words("brush_hint")}</p>{show_tools(page)}')
        prompt = _prompt(page, "paint-prompt", words("whole_picture"), PAINTED[words.language, page.knows_shapes])
        mask = gr.Textbox(visible="hidden", elem_id="paint-mask")
        start = gr.Button(words("paint"), variant="primary", elem_id="paint-start")
    return _Way(start, prompt, (prompt, mask), lambda text, sent: Change(text, mask=sent or ""), SEND_MASK)


def _around(page: Page) -> _Way:
    words = page.words
    side = page.engine.image_tokenizer.image_size
    with gr.Tab(words("around_tab"), id="around") as tab:
        tab.select(None, None, None, js=SHOW_MODE.format("around"))
        gr.HTML(f'<p class="help">{words("around_hint")}</p>')
        prompt = _prompt(page, "around-prompt", words("whole_picture"), PAINTED[words.language, page.knows_shapes])
        with gr.Row(elem_classes="sides"):
            sides = [
                gr.Number(
                    side // 2 if name == "right" else 0,
                    label=words(name),
                    precision=0,
                    minimum=-MOST_AROUND,
                    maximum=MOST_AROUND,
                    min_width=64,
                    elem_id=f"around-{name}",
                )
                for name in Sides._fields
            ]
        start = gr.Button(words("grow"), variant="primary", elem_id="around-start")
    return _Way(start, prompt, (prompt, *sides), lambda text, *given: Change(text, Sides(*(int(one or 0) for one in given))))


def _prompt(page: Page, elem_id: str, label: str, example: str) -> gr.Textbox:
    return gr.Textbox(
        elem_id=elem_id,
        label=label,
        placeholder=page.words("prompt_example", example=example),
        lines=1,  # of one line: there Enter starts
        max_lines=4,
        max_length=page.settings.max_characters,
        submit_btn=False,
    )


def _buttons(count: int, is_running: bool) -> list[Any]:
    """Of the buttons to stop and to start, which there are."""
    return [gr.Button(visible=is_running), *(gr.Button(visible=not is_running) for _ in range(count))]


async def _change(
    page: Page,
    num_buttons: int,
    read: Callable[..., Change],
    path: str | None,
    count: float,
    *values: Any,
) -> AsyncGenerator[Any]:
    """The wall as it fills; the seed that is used; which of the buttons there are. values: the settings', then those of the
    way's own inputs."""
    change, count = read(*values[NUM_SETTINGS:]), int(count)
    picture = await read_upload(page, path)
    if not (change.words or "").strip():
        raise ApiError(400, page.words("prompt_missing"))
    drawing = choose_drawing(change.words, *values[:NUM_SETTINGS])
    num_squares, steps = await _steps(page, picture, drawing, change, count)
    started, images = time.monotonic(), []
    skips = [gr.skip()] * (num_buttons + 2)
    async with aclosing(page.run("image", count * num_squares, steps)) as steps:
        yield show_progress(page, drawing, [picture] * count, 0.0), drawing.seed, *_buttons(num_buttons, is_running=True)
        async for progress in steps:
            if progress.is_final:
                images = progress.images or []
            elif progress.images is not None:
                yield show_progress(page, drawing, progress.images, progress.step / progress.num_steps), *skips
    square = picture if change.image_guidance is not None else None
    html = await asyncio.to_thread(_finished, page, square, drawing, images)
    yield html + progress_line(page.words("took", seconds=f"{time.monotonic() - started:.1f}"), 1.0), *skips


async def _steps(
    page: Page, picture: Image.Image, drawing: Drawing, change: Change, count: int
) -> tuple[int, AsyncGenerator[DrawingProgress]]:
    """What the engine does for it, and how many squares of each picture it draws."""
    engine, every = page.engine, preview_every(page.engine)
    if change.image_guidance is not None:
        check_size(*picture.size)
        settings = {**drawing.settings, "image_guidance_scale": change.image_guidance, "source_bias": change.source_bias}
        return 1, engine.astream_edit_images(picture, drawing.prompt, count, drawing.seed, every, **settings)
    mask = None if change.mask is None else await read_mask(page, change.mask)
    if mask is None and not any(change.sides):
        raise ApiError(400, page.words("sides_missing"))
    marked = await asyncio.to_thread(mark_image, picture, mask, change.sides, count, page.settings.max_images_out)
    given = (marked.picture, marked.is_marked, drawing.prompt, count, drawing.seed, every)
    return len(marked.windows), engine.astream_inpaint(*given, **drawing.settings)


def _finished(page: Page, source: Image.Image | None, drawing: Drawing, images: list[Image.Image]) -> str:
    """Results side by side. source: what they are edited squares of, which are laid over it."""
    if source is not None:
        images = [lay_over(source, one) for one in images]
    return show_wall([drawing.card(page, image, index, None) for index, image in enumerate(images)], page.words)
