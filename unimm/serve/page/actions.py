"""From a drawing to another tab: ask about it, look inside, change it."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache

from unimm.serve.media import read_image_part
from unimm.serve.page.context import Page, with_messages
from unimm.serve.page.picked import Picked

ON_ACTION = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('click', {act: button.dataset.act, source: button.closest('.card').querySelector('img').src});
});
"""
"""What a wall of drawings does in the browser: tells which action was chosen, and sends the picture."""


def connect(page: Page, walls: list[gr.HTML], tabs: gr.Tabs, box: gr.MultimodalTextbox, places: dict[str, Picked]) -> None:
    """Have the actions of drawings lead to the tab "ask", and to those that have a place for a picture, by name."""

    async def go(event: gr.EventData) -> AsyncGenerator[Any]:
        act, source = event._data.get("act"), event._data.get("source")
        image = await read_image_part(source, page.settings)
        path = save_pil_to_cache(image, box.GRADIO_CACHE, name="drawing", format="png")
        if act == "ask":
            yield gr.Tabs(selected="ask"), {"text": "", "files": [path]}, *_nothing(len(outputs))
        elif act in places:
            shown = {name: (path, one.show(image)) if name == act else _nothing(2) for name, one in places.items()}
            yield gr.Tabs(selected=act), gr.skip(), *(update for name in places for update in shown[name])

    outputs = [component for one in places.values() for component in (one.path, one.shown)]
    handler = with_messages(go, partial(_nothing, 2 + len(outputs)))
    for wall in walls:
        wall.click(handler, None, [tabs, box, *outputs], show_progress="hidden")


def _nothing(count: int) -> tuple[Any, ...]:
    return tuple(gr.skip() for _ in range(count))
