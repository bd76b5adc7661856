"""Painting, window after window: each window of an image is drawn as a whole batch of images is, and what it gave is what the
next window goes on from.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any

import numpy as np

from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Request
from unimm.inference.drawing import DrawingProgress, adraw, draw
from unimm.inference.engine_parts import ImageCoder
from unimm.inference.inpainting import Canvas, Marked, make_canvases


class Painting:
    """Images of one call in the making.

    Args:
        marked: the image, and what is to be painted of it.
        make_requests: a request for each canvas, one an image. describe: what each image carries of where it comes from.
    """

    def __init__(
        self,
        coder: ImageCoder,
        marked: Marked,
        num_images: int,
        make_requests: Callable[[list[Canvas]], list[Request]],
        describe: Callable[[list[Request]], list[dict[str, Any]]],
    ) -> None:
        self._coder, self._make_requests, self._describe = coder, make_requests, describe
        self._windows, self._is_marked = marked.windows, marked.is_marked.copy()
        self._pictures = [marked.picture] * num_images

    @property
    def num_windows(self) -> int:
        """How many windows are painted, one after the other."""
        return len(self._windows)

    def begin(self, number: int, preview_every: int) -> tuple[list[Request], ImageCoder, int, list[Canvas], list | None]:
        """Window `number`: what `draw` takes behind the decoder."""
        canvases = make_canvases(self._coder, self._pictures, self._is_marked, self._windows[number], number)
        requests = self._make_requests(canvases)
        said = self._describe(requests) if number == self.num_windows - 1 else None
        return requests, self._coder, preview_every, canvases, said

    def advance(self, number: int, progress: DrawingProgress) -> DrawingProgress | None:
        """The progress of window `number` as that of the whole; None where a window ends that is not the last one."""
        if progress.is_final and number < self.num_windows - 1:
            self._pictures = [np.asarray(image) for image in progress.images or []]
            self._is_marked[self._windows[number].slices] = False
            return None
        step = number * progress.num_steps + progress.step
        return replace(progress, step=step, num_steps=self.num_windows * progress.num_steps)


def paint(decoder: Decoder, painting: Painting, preview_every: int = 0) -> Generator[DrawingProgress]:
    """Paint all windows. The iterator is over the progress of every step, of all windows together; the last one is final.

    Raises:
        ValueError: the prompt can never be painted; before the first step.
    """
    return _paint(decoder, painting, draw(decoder, *painting.begin(0, preview_every)), preview_every)


def _paint(
    decoder: Decoder, painting: Painting, steps: Generator[DrawingProgress], preview_every: int
) -> Generator[DrawingProgress]:
    for number in range(painting.num_windows):
        if number:
            steps = draw(decoder, *painting.begin(number, preview_every))
        with closing(steps):
            for progress in steps:
                if (told := painting.advance(number, progress)) is not None:
                    yield told


async def apaint(decoder: Decoder, painting: Painting, preview_every: int = 0) -> AsyncGenerator[DrawingProgress]:
    """As `paint`, for coroutines."""
    for number in range(painting.num_windows):
        arguments = await asyncio.to_thread(painting.begin, number, preview_every)
        async with aclosing(adraw(decoder, *arguments)) as steps:
            async for progress in steps:
                if (told := painting.advance(number, progress)) is not None:
                    yield told
