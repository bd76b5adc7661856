"""The engine's calls that give images: drawings from prompts, images as codes and back."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import torch
from PIL import Image

from unimm.data.records import ImageLike
from unimm.inference.decode.request import Request
from unimm.inference.drawing import DrawingProgress, adraw, draw, drawing_requests, finish
from unimm.inference.inpainting import Canvas, make_canvas
from unimm.inference.text_calls import TextCalls
from unimm.inference.vqa_score import check_best_of, choose_best
from unimm.runtime.number_checks import whole_number
from unimm.runtime.provenance import DRAWN, PAINTED, describe


class ImageCalls(TextCalls):
    """Prompts in, images out."""

    def generate_images(
        self,
        prompt: str | list[str],
        num_images: int = 1,
        seed: int | list[int] = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        callback: Callable[[DrawingProgress], None] | None = None,
        **more,
    ) -> Any:
        """Draw images from a prompt, or from each of a list of prompts.

        Args:
            num_images: images a prompt. Image i is keyed by (seed, i): in float32 the same codes alone and in any batch, and
                on a CPU the same pixels, but for a level of 255 while other threads decode.
            seed: of all prompts (their images are a little alike then), or a list or array, one for each.
            guidance_scale: 1.0 is off. None, here and below: what the model's own generation_config.json says, and where it
                does not, as in Janus: guidance 5, temperature 1, all codes.
            temperature: 0.0 takes the likeliest code every time.
            callback: gets a `DrawingProgress` after every code, with `best_of` of all images it is to choose from; what it
                raises stops the drawing.
            more: `best_of`: draw each image as often as this says, and return the one that aligns best with the prompt
                (`alignment`); the time grows by a little more than that factor. `min_p` of `Sampling`, `guidance_interval` of
                `Request`; `first_index`: images first_index, first_index + 1, ... of the seed instead of those from 0 on.

        Returns:
            A list of PIL images; a list of such lists for a list of prompts. Each image carries its prompt, seed and settings,
            which `unimm.write_image` writes into its file.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        num_images = whole_number("num_images", num_images, 1)
        best_of = check_best_of(more.pop("best_of", 1), self.model, self.template, prompts)
        settings = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p, **more}
        requests = self._requests(prompt, num_images, seed, settings, best_of)
        drawing = draw(self.decoder, requests, self.coder, provenance=self._provenance(prompt, requests, settings))
        images = finish(drawing, callback).images or []
        if best_of > 1:
            each = [text for text in prompts for _ in range(num_images * best_of)]
            images = choose_best(images, self.alignment(images, each), best_of)
        starts = range(0, len(images), num_images)
        return images if isinstance(prompt, str) else [images[start : start + num_images] for start in starts]

    def stream_images(
        self, prompt: str | list[str], num_images: int = 1, seed: int | list[int] = 0, preview_every: int = 64, **settings
    ) -> Iterator[DrawingProgress]:
        """Draw images and tell how far they are after every code; the same images as `generate_images`.

        Args:
            preview_every: codes an image between previews. They are made beside the drawing, and left out when they are late.
            settings: as in `generate_images`, but for `best_of`: the best one is known when all are there.

        Returns:
            An iterator; where `images` is not None it holds previews, and at the end (`is_final`) the images of all prompts.
        """
        requests = self._requests(prompt, num_images, seed, settings)
        provenance = self._provenance(prompt, requests, settings)
        return draw(self.decoder, requests, self.coder, preview_every, provenance=provenance)

    async def astream_images(
        self, prompt: str | list[str], num_images: int = 1, seed: int | list[int] = 0, preview_every: int = 64, **settings
    ) -> AsyncGenerator[DrawingProgress]:
        """As `stream_images`, for coroutines: `async for progress in engine.astream_images(prompt)`."""
        requests = await asyncio.to_thread(self._requests, prompt, num_images, seed, settings)
        provenance = await asyncio.to_thread(self._provenance, prompt, requests, settings)
        async with aclosing(adraw(self.decoder, requests, self.coder, preview_every, provenance=provenance)) as drawing:
            async for progress in drawing:
                yield progress

    def generate_codes(
        self,
        prompt: str | list[str],
        num_images: int = 1,
        seed: int | list[int] = 0,
        *,
        callback: Callable[[DrawingProgress], None] | None = None,
        **settings,
    ) -> torch.Tensor:
        """The codes that `generate_images` decodes, without `best_of`: (num_images, num_codes) long on the CPU, or of a list of
        prompts (num_prompts, num_images, num_codes)."""
        num_images = whole_number("num_images", num_images, 1)
        requests = self._requests(prompt, num_images, seed, settings)
        if not requests:
            return torch.empty(0, num_images, self.image_tokenizer.num_codes, dtype=torch.long)
        codes = finish(draw(self.decoder, requests), callback).codes
        return codes if isinstance(prompt, str) else codes.unflatten(0, (len(prompt), num_images))

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
        """Paint a part of an image anew, as a prompt says; the rest stays.

        Args:
            image: any form of an image. It is cut to a square at its centre and resized to the image tokenizer's size.
            mask: of the image's size, any form of an image, or an array of bool: what is transparent is painted, as OpenAI has
                it, or, where nothing is transparent, what is white. None: where the image itself is transparent. A code is
                painted where any of its pixels is.
            prompt: what the whole image shall show.
            num_images, seed, callback: as in `generate_images`, of which it gives the codes where all is marked.
            settings: `guidance_scale`, `temperature`, `top_k`, `top_p`, `min_p`, `guidance_interval` of `generate_images`.

        Returns:
            PIL images of the image tokenizer's size. Pixels that are not marked are the image's own, resized; what is painted
            fades into them at the border of the mask.

        Raises:
            ValueError: image or mask cannot be read, they differ in size, or nothing is marked.
        """
        requests, canvas, said = self._inpainting(image, mask, prompt, num_images, seed, settings)
        return finish(draw(self.decoder, requests, self.coder, 0, canvas, said), callback).images or []

    async def ainpaint(
        self, image: ImageLike, mask: Any, prompt: str, num_images: int = 1, seed: int = 0, **settings
    ) -> list[Image.Image]:
        """As `inpaint`, for coroutines."""
        images = []
        async with aclosing(self.astream_inpaint(image, mask, prompt, num_images, seed, 0, **settings)) as painting:
            async for progress in painting:
                images = progress.images or images
        return images

    def stream_inpaint(
        self, image: ImageLike, mask: Any, prompt: str, num_images: int = 1, seed: int = 0, preview_every: int = 64, **settings
    ) -> Iterator[DrawingProgress]:
        """As `inpaint`, with the progress and previews of `stream_images`; codes that stay count as chosen."""
        requests, canvas, said = self._inpainting(image, mask, prompt, num_images, seed, settings)
        return draw(self.decoder, requests, self.coder, preview_every, canvas, said)

    async def astream_inpaint(
        self, image: ImageLike, mask: Any, prompt: str, num_images: int = 1, seed: int = 0, preview_every: int = 64, **settings
    ) -> AsyncGenerator[DrawingProgress]:
        """As `stream_inpaint`, for coroutines."""
        arguments = (image, mask, prompt, num_images, seed, settings)
        requests, canvas, said = await asyncio.to_thread(self._inpainting, *arguments)
        async with aclosing(adraw(self.decoder, requests, self.coder, preview_every, canvas, said)) as painting:
            async for progress in painting:
                yield progress

    def _inpainting(
        self, image: ImageLike, mask: Any, prompt: str, num_images: int, seed: Any, settings: dict
    ) -> tuple[list[Request], Canvas, list[dict[str, Any]]]:
        """The requests, and what `draw` takes behind them."""
        if not isinstance(prompt, str):
            raise ValueError(f"An image is painted as one prompt says, a string, not {type(prompt).__name__}.")
        canvas = make_canvas(self.coder, image, mask)
        count = (whole_number("num_images", num_images, 1), 1)
        num_codes = self.image_tokenizer.num_codes
        requests = drawing_requests(self.template, num_codes, prompt, count, seed, self.drawing, settings, canvas)
        return requests, canvas, self._provenance(prompt, requests, settings, PAINTED)

    def _requests(self, prompt: str | list[str], num_images: int, seed: Any, settings: dict, best_of: int = 1) -> list[Request]:
        num_codes, count = self.image_tokenizer.num_codes, (whole_number("num_images", num_images, 1), best_of)
        return drawing_requests(self.template, num_codes, prompt, count, seed, self.drawing, settings)

    def _provenance(
        self, prompt: str | list[str], requests: list[Request], settings: dict, task: str = DRAWN
    ) -> list[dict[str, Any]]:
        """What each image says of where it comes from."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        each = [text for text in prompts for _ in range(len(requests) // max(len(prompts), 1))]
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        told = {"task": task, "dtype": dtype, "weights": self.weights}
        found = []
        for text, request in zip(each, requests, strict=True):
            sampling = request.sampling
            own = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
            own |= {"guidance_scale": request.guidance_scale}
            own |= {"guidance_interval": list(settings.get("guidance_interval", (0.0, 1.0)))}
            found.append(describe(text, sampling.seed, sampling.index, own, self.model_hash, **told))
        return found

    def decode_codes(self, codes: torch.Tensor) -> list[Image.Image]:
        """codes (num_images, num_codes) or (num_codes,) -> PIL images; with the errors of `ImageCoder.decode`."""
        return self.coder.decode(codes)

    def encode_image(self, image: ImageLike | list) -> torch.Tensor:
        """An image -> its codes (num_codes,) long on the CPU, n images -> (n, num_codes); short side to size, centre crop."""
        return self.coder.encode(image) if isinstance(image, list) else self.coder.encode([image])[0]
