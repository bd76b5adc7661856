"""Drawings on their way to a client: what sizes and formats there are, and the bytes of a picture."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from unimm.runtime.provenance import write_image
from unimm.serve.errors import ApiError
from unimm.serve.protocol import Format

RESIZED = (256, 512, 1024)
"""Sides of squares that drawings are resized to: those that clients ask for by default (Open WebUI 512, LibreChat 1024)."""

LARGEST_PREVIEW = 512
"""Pixels of the long side of a preview of an image that is larger."""

MAX_EVENT_CHARACTERS = 120 * 1024
"""Of a picture within a stream's event: aiohttp, with which Open WebUI reads, breaks on lines of more than 128 KiB."""


@dataclass(frozen=True)
class Encoding:
    """How a picture is written.

    width, height: in pixels. compression: the quality of webp and jpeg.
    """

    width: int
    height: int
    format: Format
    compression: int = 90

    @property
    def size(self) -> str:
        """As requests write it."""
        return f"{self.width}x{self.height}"

    @property
    def media_type(self) -> str:
        """MIME type."""
        return f"image/{self.format}"


def read_size(size: str, drawn: list[str]) -> tuple[int, int]:
    """Width and height in pixels that a request asks for. ApiError 400: the model draws no such size.

    drawn: "WIDTHxHEIGHT" of what it draws, its own first.
    """
    resized = [f"{side}x{side}" for side in RESIZED]
    if size not in ("auto", *drawn, *resized):
        sentence = f"The model draws {', '.join(drawn)}; {', '.join(resized)} are resized from {drawn[0]}: ask for one of them."
        raise ApiError(400, sentence, param="size")
    width, height = (drawn[0] if size == "auto" else size).split("x")
    return int(width), int(height)


def encode(image: Image.Image, how: Encoding, fits_event: bool = False) -> str:
    """A picture as base64, with its provenance, where it carries one. Slow: not for the event loop.

    fits_event: lower the quality of webp and jpeg until an event can hold it.
    """
    if image.size != (how.width, how.height):
        image = image.resize((how.width, how.height), Image.Resampling.LANCZOS)
    quality = how.compression
    while True:
        file = io.BytesIO()
        options: dict[str, Any] = {} if how.format == "png" else {"quality": quality}
        write_image(image, file, format=how.format, **options)
        text = base64.b64encode(file.getvalue()).decode()
        if not fits_event or how.format == "png" or len(text) <= MAX_EVENT_CHARACTERS or quality <= 10:
            return text
        quality -= 15
