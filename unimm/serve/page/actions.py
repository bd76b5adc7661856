"""From a drawing to another tab: ask about it, look inside."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache

from unimm.serve.media import read_image_part
from unimm.serve.page.context import Page, with_messages
from unimm.serve.page.picked import Picked, show_picked

ON_ACTION = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('click', {act: button.dataset.act, source: button.closest('.card').querySelector('img').src});
});
"""
"""What a wall of drawings does in the browser: tells which action was chosen, and sends the picture."""


def connect(page: Page, walls: list[gr.HTML], tabs: gr.Tabs, box: gr.MultimodalTextbox, picked: Picked) -> None:
    """Have the actions of drawings lead to the tabs "ask" and "inside"."""

    async def go(event: gr.EventData) -> AsyncGenerator[Any]:
        act, source = event._data.get("act"), event._data.get("source")
        image = await read_image_part(source, page.settings)
        path = save_pil_to_cache(image, box.GRADIO_CACHE, name="drawing", format="png")
        if act == "ask":
            yield gr.Tabs(selected="ask"), {"text": "", "files": [path]}, gr.skip(), gr.skip()
        else:
            yield gr.Tabs(selected="inside"), gr.skip(), path, show_picked(page, image)

    handler = with_messages(go, partial(_nothing, 4))
    for wall in walls:
        wall.click(handler, None, [tabs, box, picked.path, picked.shown], show_progress="hidden")


def _nothing(count: int) -> tuple[Any, ...]:
    return tuple(gr.skip() for _ in range(count))
