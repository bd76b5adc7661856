"""A picture that can be painted on, in the browser alone: the strokes are a mask, which goes to the server once it is asked to
paint (`painter.js`)."""

from html import escape

import numpy as np
from PIL import Image

from unimm.data.image import decode_mask
from unimm.serve.errors import ApiError
from unimm.serve.media import read_image_part
from unimm.serve.page.cards import data_uri, note
from unimm.serve.page.context import Page

SHOWN_SIDE = 1024
"""Pixels of the longer side of what is shown; strokes have the picture's own size."""

SEND_MASK = "(...values) => [...values.slice(0, -1), window.unimmMask()]"
"""What the browser puts into the last input of an event: a data: URI of a PNG, white where the picture was painted on; or an
empty string."""


def show_painter(page: Page, picture: Image.Image | None) -> str:
    """A picture under a canvas of its size, or a place for one."""
    words = page.words
    if picture is None:
        return f'<div class="painter empty">{note(words("edit_empty"))}</div>'
    small = picture.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    width, height = picture.size
    label, quiet = escape(words("paint_here")), " quiet" if page.engine.prompt_format.edits else ""
    shown = f'<img src="{data_uri(small)}" alt="{escape(words("picture"))}">'
    return (
        f'<div class="painter{quiet}" style="--ratio:{width}/{height}">{shown}'
        f'<canvas width="{width}" height="{height}" tabindex="0" role="application" aria-label="{label}"></canvas></div>'
    )


def show_tools(page: Page) -> str:
    """How wide the brush is, and what takes strokes back."""
    words = page.words
    buttons = "".join(
        f'<button class="tool" data-tool="{name}"{pressed}>{escape(words(name))}</button>'
        for name, pressed in (
            ("brush", ' aria-pressed="true"'),
            ("eraser", ' aria-pressed="false"'),
            ("undo", ""),
            ("wipe", ""),
        )
    )
    size = f'<label>{escape(words("brush_size"))} <input type="range" data-brush min="2" max="40" value="14"></label>'
    return f'<div class="tools">{buttons}{size}</div>'


async def read_mask(page: Page, sent: str | None) -> np.ndarray:
    """What a painter sent, (H, W) bool. ApiError: 400, nothing was painted on, or it is no such picture."""
    if not sent:
        raise ApiError(400, page.words("mask_missing"))
    if not sent.startswith("data:image/png;base64,"):
        raise ApiError(400, page.words("not_a_picture"))
    return decode_mask(await read_image_part(sent, page.settings))
