"""The tab that compares: one prompt over seeds and guidance as a grid, all of it drawn together."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from unimm.serve.errors import ApiError
from unimm.serve.page.actions import ON_ACTION
from unimm.serve.page.cards import Card, data_uri, note, progress_line, say_stopped, show_grid
from unimm.serve.page.context import Page, with_messages
from unimm.serve.page.drawings import Drawing, judge, preview_every
from unimm.serve.page.examples import PROMPTS
from unimm.serve.streams import merged

MOST_VALUES = 12
"""Of seeds, and of guidance."""


def build_compare(page: Page) -> gr.HTML:
    """Put the tab's components into the blocks around it. Returns the grid of drawings; see `actions`."""
    words, drawing = page.words, page.engine.drawing
    prompts = PROMPTS[words.language, page.knows_shapes]
    gr.HTML(f'<p class="lead">{words("compare_hint")}</p>')
    with gr.Row(elem_classes="form"):
        prompt = gr.Textbox(
            prompts[0],
            elem_id="compare-prompt",
            label=words("prompt"),
            max_length=page.settings.max_characters,
            scale=3,
            min_width=260,
        )
        seeds = gr.Textbox("1-4", label=words("seeds"), placeholder=words("seeds_help"), scale=1, min_width=110, max_length=200)
        guidances = gr.Textbox(
            ", ".join(f"{value:g}" for value in dict.fromkeys((1.0, drawing.guidance_scale, 2 * drawing.guidance_scale))),
            label=words("guidances"),
            placeholder=words("guidances_help"),
            scale=1,
            min_width=110,
            max_length=200,
        )
        temperature = gr.Slider(
            0, 1.5, drawing.temperature, step=0.05, label=words("temperature"), scale=2, min_width=190, buttons=[]
        )
    with gr.Row(elem_classes="go"):
        start = gr.Button(words("compare"), variant="primary", elem_id="compare-start")
        stop = gr.Button(words("stop"), variant="stop", visible=False, elem_id="compare-stop")
    grid = gr.HTML(note(words("grid_empty")), elem_id="grid", elem_classes="stage", js_on_load=ON_ACTION)

    at_the_end = lambda: (gr.skip(), gr.Button(visible=True), gr.Button(visible=False))  # noqa: E731
    compare = with_messages(partial(_compare, page), at_the_end)
    inputs, outputs = [prompt, seeds, guidances, temperature], [grid, start, stop]
    event = gr.on([start.click, prompt.submit], compare, inputs, outputs, show_progress="hidden")
    stopped = lambda: (gr.Button(visible=True), gr.Button(visible=False))  # noqa: E731
    stop.click(stopped, None, [start, stop], cancels=[event], js=say_stopped("grid", words))
    return grid


async def _compare(page: Page, prompt: str, seeds: str, guidances: str, temperature: float) -> AsyncGenerator[Any]:
    """The grid as it fills, and which of the buttons to start and to stop there is."""
    words, prompt = page.words, (prompt or "").strip()
    if not prompt:
        raise ApiError(400, words("prompt_missing"))
    columns = [int(seed) for seed in read_numbers(page, seeds, whole=True)]
    rows = read_numbers(page, guidances)
    if len(rows) * len(columns) > page.settings.max_images_out * 2:
        raise ApiError(400, words("too_many", asked=len(rows) * len(columns), most=page.settings.max_images_out * 2))
    shown: list[list[Image.Image | None]] = [[None] * len(columns) for _ in rows]
    done = [0.0] * len(rows)
    yield _progress(page, prompt, rows, columns, shown, 0.0), gr.Button(visible=False), gr.Button(visible=True)
    drawings = [
        page.engine.astream_images([prompt] * len(columns), 1, columns, preview_every(page.engine), **settings)
        for settings in (Drawing(prompt, 0, row, float(temperature)).settings_for(page.engine) for row in rows)
    ]
    async with aclosing(page.run("image", len(rows) * len(columns), merged(drawings))) as steps:
        async for row, progress in steps:
            done[row] = progress.step / progress.num_steps
            if progress.images is not None:
                shown[row] = list(progress.images)
                yield _progress(page, prompt, rows, columns, shown, sum(done) / len(done)), gr.skip(), gr.skip()
    images = [image for row in shown for image in row if image is not None]
    chances = await judge(page.engine, images, prompt)
    cells = [(seed, guidance) for guidance in rows for seed in columns]
    cards = [
        Drawing(prompt, seed, guidance, float(temperature)).card(page, image, 0, chance)
        for image, chance, (seed, guidance) in zip(images, chances, cells, strict=True)
    ]
    yield _grid(page, rows, columns, cards), gr.skip(), gr.skip()


def read_numbers(page: Page, text: str, whole: bool = False) -> list[float]:
    """Numbers with commas between them, and of whole ones ranges such as 1-4; each once.

    Raises:
        ApiError: 400, one is none, or there are none or too many.
    """
    found: list[float] = []
    for part in (text or "").replace("，", ",").replace("、", ",").split(","):
        part = part.strip()
        first, dash, last = part.partition("-")
        try:
            if whole and dash:
                found += range(int(first), min(int(last), int(first) + MOST_VALUES) + 1)
            elif part:
                found.append(int(part) if whole else float(part))
        except ValueError:
            raise ApiError(400, page.words("not_a_number", text=part[:20])) from None
    found = list(dict.fromkeys(found))
    if not found or any(not 0 <= number <= 2**31 for number in found):
        raise ApiError(400, page.words("not_a_number", text=(text or "")[:20]))
    if len(found) > MOST_VALUES:
        raise ApiError(400, page.words("too_many", asked=len(found), most=MOST_VALUES))
    return found


def _progress(
    page: Page, prompt: str, rows: list[float], columns: list[int], shown: list[list[Image.Image | None]], share: float
) -> str:
    side = page.engine.image_tokenizer.image_size
    grey, alt = Image.new("RGB", (side, side), (128, 128, 128)), page.words("drawing_of", prompt=prompt)
    cards = [Card(data_uri(image or grey, draft=True), alt) for row in shown for image in row]
    return _grid(page, rows, columns, cards) + progress_line(page.words("drawing", percent=round(share * 100)), share)


def _grid(page: Page, rows: list[float], columns: list[int], cards: list[Card]) -> str:
    words, width = page.words, len(columns)
    lines = [(f"{words('guidance')} {row:g}", cards[number * width : (number + 1) * width]) for number, row in enumerate(rows)]
    return show_grid(lines, [f"{words('seed')} {column}" for column in columns], words)
