"""Drawings for both routes that make them: what was asked for, checked, as a run of the engine that gives encoded pictures."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from unimm.inference.drawing import DrawingProgress
from unimm.inference.windows_of_images import lay_over
from unimm.serve.errors import ApiError
from unimm.serve.pictures import LARGEST_PREVIEW, Encoding, encode, read_size
from unimm.serve.protocol import Drawing, Format
from unimm.serve.service import Service

MAX_KEPT_BYTES = 30_000
"""Of a prompt that a webp or jpeg says it was drawn from: a jpeg has room for twice as much, and an event for little more."""

OF_PROMPTS = ("drawing", "steps", "solver")
"""Fields of drawings from a prompt alone: all others are drawn by codes."""


@dataclass(frozen=True)
class Pictures:
    """All images of a request, as base64, in order: previews, or at the end the images."""

    images: list[str]
    is_final: bool


class DrawingOrder:
    """What a request wants drawn.

    Args:
        format: where the request names none.
        any_form: the size may be any that the model was taught, not squares alone.
        num_previews: of the drawing while it is made; at most so many come.

    Raises:
        ApiError: 400, the server does not take as much at once, or the model draws no such size.
    """

    def __init__(
        self, service: Service, body: Drawing, prompt: str, format: Format, num_previews: int = 0, any_form: bool = False
    ) -> None:
        check_count(service, body)
        if not prompt.strip():
            raise ApiError(400, "The prompt is empty: say what to draw.", param="prompt")
        check_characters(service, len(prompt), "prompt")
        self.prompt, self.num_images, self.num_previews = prompt, body.n, num_previews
        self.seed = body.seed if body.seed is not None else secrets.randbelow(2**31)
        sizes = service.engine.sizes if any_form else service.engine.sizes[:1]
        width, height = read_size(body.size, sizes)
        self.keeps_size = body.size == "auto"
        self.drawn_size = body.size if body.size in sizes[1:] else sizes[0]
        self.encoding = Encoding(width, height, body.output_format or format, body.output_compression)
        if self.encoding.format != "png" and len(json.dumps(prompt)) > MAX_KEPT_BYTES:
            sentence = (
                f'The prompt is too long to be kept in a {self.encoding.format}: set output_format to "png", or shorten it.'
            )
            raise ApiError(400, sentence, param="prompt")
        self._preview = Encoding(
            *read_size(self.drawn_size, sizes), "webp" if self.encoding.format == "png" else self.encoding.format
        )
        names = ("guidance_scale", "temperature", "top_k", "top_p", "min_p")
        self.settings = {name: value for name in names if (value := getattr(body, name)) is not None}
        self._way = {name: value for name in OF_PROMPTS if (value := getattr(body, name)) is not None}
        self._service = service

    @property
    def usage(self) -> dict[str, Any]:
        """What it takes, as the image API counts it."""
        engine = self._service.engine
        num_words, num_codes = len(engine.tokenizer.encode(self.prompt)), self._num_positions * self.num_images
        return {
            "input_tokens": num_words,
            "input_tokens_details": {"text_tokens": num_words, "image_tokens": 0},
            "output_tokens": num_codes,
            "total_tokens": num_words + num_codes,
        }

    @property
    def preview_facts(self) -> dict[str, str]:
        """What is other of previews than of images."""
        return {"size": self._preview.size, "output_format": self._preview.format}

    def from_text(self) -> AsyncGenerator[DrawingProgress]:
        """The drawing of a prompt."""
        settings = {**self.settings, **self._way, "size": self._named_size}
        return self._service.engine.astream_images(self.prompt, self.num_images, self.seed, self._preview_every, **settings)

    @property
    def _named_size(self) -> str | None:
        """None where it is the model's own, which drawings need not name."""
        return None if self.drawn_size == self._service.engine.sizes[0] else self.drawn_size

    def editing(self, source: Image.Image, settings: dict[str, float]) -> AsyncGenerator[DrawingProgress]:
        """The square at the centre of an image, changed as the prompt says; where the request names no size, laid over the
        image. settings: those of edits alone."""
        check_codes(self._way)
        steps = self._service.engine.astream_edit_images(
            source, self.prompt, self.num_images, self.seed, self._preview_every, **self.settings, **settings
        )
        if not self.keeps_size:
            return steps
        self._keep_size(*source.size)
        return _laid_over(source, steps)

    def painting(self, picture: np.ndarray, is_marked: np.ndarray) -> AsyncGenerator[DrawingProgress]:
        """A drawing over a part of an image (H, W, 3), where it is marked, (H, W) bool. Where the request names no size, it
        comes back in its own."""
        check_codes(self._way)
        height, width = is_marked.shape
        if self.keeps_size:
            self._keep_size(width, height)
        return self._service.engine.astream_inpaint(
            picture, is_marked, self.prompt, self.num_images, self.seed, self._preview_every, **self.settings
        )

    def _keep_size(self, width: int, height: int) -> None:
        """Give images in this size, and previews in this form."""
        self.encoding = replace(self.encoding, width=width, height=height)
        shrunk = min(1.0, LARGEST_PREVIEW / max(width, height))
        width, height = (max(1, round(shrunk * length)) for length in (width, height))
        self._preview = replace(self._preview, width=width, height=height)

    async def draw(self, drawing: AsyncGenerator[DrawingProgress], is_event: bool = False) -> AsyncGenerator[Pictures]:
        """The pictures of a drawing. is_event: each has to fit an event."""
        left, metrics, started = self.num_previews, self._service.metrics, time.monotonic()
        async with aclosing(drawing) as steps:
            async for progress in steps:
                if progress.is_final:
                    metrics.images.inc(self.num_images)
                    yield await self._encode(progress.images or [], self.encoding, is_event, is_final=True)
                elif progress.images is not None and left:
                    if left == self.num_previews:
                        metrics.first_preview.observe(time.monotonic() - started)
                    left -= 1
                    yield await self._encode(progress.images, self._preview, True, is_final=False)

    async def _encode(self, images: list[Image.Image], how: Encoding, is_event: bool, is_final: bool) -> Pictures:
        return Pictures(await asyncio.to_thread(lambda: [encode(image, how, is_event) for image in images]), is_final)

    @property
    def _preview_every(self) -> int:
        """Codes between previews: so that the last one comes well before the end."""
        if not self.num_previews:
            return 0
        return max(1, self._num_positions // (self.num_previews + 1))

    @property
    def _num_positions(self) -> int:
        """Of one drawing."""
        engine = self._service.engine
        if self._named_size is None:
            return engine.num_drawn_positions(self._way.get("drawing"))
        return engine.grid_of(self.drawn_size).num_codes


async def _laid_over(source: Image.Image, steps: AsyncGenerator[DrawingProgress]) -> AsyncGenerator[DrawingProgress]:
    """The progress of an edit, with images of the source's size."""
    async with aclosing(steps):
        async for progress in steps:
            images = progress.images
            if images is not None:
                images = await asyncio.to_thread(lambda squares: [lay_over(source, one) for one in squares], images)
            yield replace(progress, images=images)


def check_count(service: Service, body: Drawing) -> None:
    """ApiError 400: `n` is more than the server takes."""
    most = service.settings.max_images_out
    if body.n > most:
        raise ApiError(400, f"n is at most {most} here: send several requests.", param="n")


def check_codes(way: dict[str, Any]) -> None:
    """ApiError 400: fields of OF_PROMPTS ask for a flow where codes alone are drawn."""
    for name, value in way.items():
        if (name, value) != ("drawing", "codes"):
            raise ApiError(
                400, f"{name} is for drawings from a prompt alone: leave it out, this is drawn by codes.", param=name
            )


def check_characters(service: Service, count: int, param: str) -> None:
    """ApiError 400: a request's texts are longer than the server reads."""
    most = service.settings.max_characters
    if count > most:
        raise ApiError(400, f"The texts have {count:,} characters, and at most {most:,} are read: shorten them.", param=param)
