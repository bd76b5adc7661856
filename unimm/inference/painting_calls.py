"""The engine's calls that paint a part of an image anew: inside it (inpainting), or around it (out-painting)."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

from PIL import Image

from unimm.data.records import ImageLike
from unimm.inference.drawing import DrawingProgress, drawing_requests, finish
from unimm.inference.image_calls import ImageCalls
from unimm.inference.inpainting import Marked, read_marked
from unimm.inference.painting import Painting, apaint, paint
from unimm.inference.vqa_score import check_best_of, choose_best
from unimm.inference.windows_of_images import Sides, choose_windows, extend_image
from unimm.runtime.number_checks import MOST_IMAGES, whole_number
from unimm.runtime.provenance import PAINTED


class PaintingCalls(ImageCalls):
    """An image, what is to be painted of it, and a prompt in; images out."""

    def inpaint(
        self,
        image: ImageLike,
        mask: Any,
        prompt: str,
        num_images: int = 1,
        seed: int = 0,
        callback: Callable[[DrawingProgress], None] | None = None,
        **settings,
    ) -> list[Image.Image]:
        """Paint a part of an image anew, as a prompt says; the rest stays, to the byte.

        Args:
            image: any form of an image, of any size. The model sees a square of it, as large as its short side, in which the
                part is; what is longer is painted in several squares, one after the other.
            mask: of the image's size, any form of an image, or an array of bool: what is transparent is painted, as OpenAI has
                it, or, where nothing is transparent, what is white. None: where the image itself is transparent. A code is
                painted where any of its pixels is.
            prompt: what the whole image shall show.
            num_images, seed, callback: as in `generate_images`, of which it gives the codes where all that the model sees is
                marked. A callback counts the codes of all squares, those that stay as chosen.
            settings: `guidance_scale`, `temperature`, `top_k`, `top_p`, `min_p`, `guidance_interval`, `best_of` of
                `generate_images`. `margin`: pixels around the part that the model sees at least, where it need not see more: a
                small part of a large image is then painted in more detail, and the prompt speaks of what is around it.
                `keep_size=False`: cut the image to the square at its centre, and resize it to the image tokenizer's size.

        Returns:
            PIL images of the image's size. Pixels that are not marked are the image's own; what is painted fades into them at
            the border of the mask.

        Raises:
            ValueError: image or mask cannot be read, they differ in size, or nothing is marked, or everything.
        """
        best_of = settings.pop("best_of", 1)
        return self._paint(self._marked(image, mask, settings), prompt, num_images, seed, callback, settings, best_of)

    async def ainpaint(
        self, image: ImageLike, mask: Any, prompt: str, num_images: int = 1, seed: int = 0, **settings
    ) -> list[Image.Image]:
        """As `inpaint`, but for `best_of`, for coroutines."""
        images = []
        async with aclosing(self.astream_inpaint(image, mask, prompt, num_images, seed, 0, **settings)) as painting:
            async for progress in painting:
                images = progress.images or images
        return images

    def stream_inpaint(
        self, image: ImageLike, mask: Any, prompt: str, num_images: int = 1, seed: int = 0, preview_every: int = 64, **settings
    ) -> Iterator[DrawingProgress]:
        """As `inpaint`, but for `best_of`, with the progress and previews of `stream_images`; codes that stay count, too."""
        painting = self._painting(self._marked(image, mask, settings), prompt, num_images, seed, settings)
        return paint(self.decoder, painting, preview_every)

    async def astream_inpaint(
        self, image: ImageLike, mask: Any, prompt: str, num_images: int = 1, seed: int = 0, preview_every: int = 64, **settings
    ) -> AsyncGenerator[DrawingProgress]:
        """As `stream_inpaint`, for coroutines."""
        marked = await asyncio.to_thread(self._marked, image, mask, settings)
        async with aclosing(self._apaint(marked, prompt, num_images, seed, preview_every, settings)) as steps:
            async for progress in steps:
                yield progress

    def outpaint(
        self,
        image: ImageLike,
        prompt: str,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        num_images: int = 1,
        seed: int = 0,
        **settings,
    ) -> list[Image.Image]:
        """Put an image on a larger canvas, and paint what is around it as a prompt says; the image stays, to the byte.

        The model reads an image from the top left to the bottom right, so what is painted right of and below the image follows
        it, and what is above or left of it is painted before the model has seen it.

        Args:
            image: any form of an image, of any size.
            prompt: what the whole image shall show then.
            left, right, top, bottom: pixels by which it grows on each side; below 0, so many are cut off. Opposite ones
                together move what it shows: left=16, right=-16.
            num_images, seed: as in `inpaint`.
            settings: `size`: instead of the four, of the canvas, (width, height) or "WIDTHxHEIGHT"; the image is in its middle.
                And `callback`, `guidance_scale`, `temperature`, `top_k`, `top_p`, `min_p`, `guidance_interval`, `best_of` of
                `inpaint`.

        Returns:
            PIL images of the canvas' size, in which the image's pixels are its own.

        Raises:
            ValueError: the image cannot be read, nothing is new, nothing of it is left, or the canvas is too large.
        """
        callback, best_of = settings.pop("callback", None), settings.pop("best_of", 1)
        marked = self._extended(image, Sides(left, right, top, bottom), settings)
        return self._paint(marked, prompt, num_images, seed, callback, settings, best_of)

    def stream_outpaint(
        self,
        image: ImageLike,
        prompt: str,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        num_images: int = 1,
        seed: int = 0,
        **settings,
    ) -> Iterator[DrawingProgress]:
        """As `outpaint`, but for `best_of` and `callback`; settings: also `preview_every`, of `stream_images`."""
        preview_every = settings.pop("preview_every", 64)
        marked = self._extended(image, Sides(left, right, top, bottom), settings)
        return paint(self.decoder, self._painting(marked, prompt, num_images, seed, settings), preview_every)

    async def astream_outpaint(
        self,
        image: ImageLike,
        prompt: str,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        num_images: int = 1,
        seed: int = 0,
        **settings,
    ) -> AsyncGenerator[DrawingProgress]:
        """As `stream_outpaint`, for coroutines."""
        preview_every = settings.pop("preview_every", 64)
        marked = await asyncio.to_thread(self._extended, image, Sides(left, right, top, bottom), settings)
        async with aclosing(self._apaint(marked, prompt, num_images, seed, preview_every, settings)) as steps:
            async for progress in steps:
                yield progress

    def _marked(self, image: ImageLike, mask: Any, settings: dict[str, Any]) -> Marked:
        """What `inpaint` paints; takes out of the settings what is about it."""
        square = None if settings.pop("keep_size", True) else self.image_tokenizer.image_size
        return read_marked(image, mask, square, settings.pop("margin", None))

    def _extended(self, image: ImageLike, sides: Sides, settings: dict[str, Any]) -> Marked:
        """What `outpaint` paints; takes out of the settings what is about it."""
        canvas, is_new = extend_image(image, sides, settings.pop("size", None))
        return Marked(canvas, is_new, choose_windows(is_new))

    def _paint(
        self, marked: Marked, prompt: str, num_images: int, seed: Any, callback: Any, settings: dict[str, Any], best_of: Any
    ) -> list[Image.Image]:
        best_of = check_best_of(best_of, self.model, self.template, [prompt])
        painting = self._painting(marked, prompt, num_images, seed, settings, best_of)
        images = finish(paint(self.decoder, painting), callback).images or []
        return choose_best(images, self.alignment(images, [prompt] * len(images)), best_of) if best_of > 1 else images

    async def _apaint(
        self, marked: Marked, prompt: str, num_images: int, seed: Any, preview_every: int, settings: dict[str, Any]
    ) -> AsyncGenerator[DrawingProgress]:
        painting = await asyncio.to_thread(self._painting, marked, prompt, num_images, seed, settings)
        async with aclosing(apaint(self.decoder, painting, preview_every)) as steps:
            async for progress in steps:
                yield progress

    def _painting(
        self, marked: Marked, prompt: str, num_images: int, seed: Any, settings: dict[str, Any], best_of: int = 1
    ) -> Painting:
        if not isinstance(prompt, str):
            raise ValueError(f"An image is painted as one prompt says, a string, not {type(prompt).__name__}.")
        num_images = whole_number("num_images", num_images, 1, MOST_IMAGES)
        arguments = (self.template, self.image_tokenizer.num_codes, prompt, (num_images, best_of), seed, self.drawing, settings)
        describe = partial(self._provenance, prompt, settings=settings, task=PAINTED)
        return Painting(self.coder, marked, num_images * best_of, partial(drawing_requests, *arguments), describe)
