"""The engine's calls that give images: drawings from prompts, images as codes and back."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimm.data.grids import Grid, choose_grid
from unimm.data.records import LATENTS, ImageLike
from unimm.inference.decode.request import Request
from unimm.inference.drawing import DrawingProgress, adraw, draw, drawing_requests, finish
from unimm.inference.engine_parts import ImageCoder
from unimm.inference.flow_drawing import FlowPictures, FlowStep, adraw_by_flow, draw_by_flow, flow_requests, trace_by_flow
from unimm.inference.input_validation import check_text
from unimm.inference.redrawing import Drawn, Redraw, Redrawing, read_redraw
from unimm.inference.text_calls import TextCalls
from unimm.inference.vqa_score import check_best_of, choose_best
from unimm.models.ports.latents import LatentsConfig
from unimm.runtime.number_checks import MOST_IMAGES, whole_number
from unimm.runtime.provenance import DRAWN, attach, carried, describe


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
            more: `size`: (width, height) in pixels or "WIDTHxHEIGHT", one of `sizes`; default: the model's own, a square.
                `drawing`: "codes", or "latents", by a flow; default: codes where the model has them. `steps` (30) and `solver`
                ("euler", or "heun", which takes two passes a step) of a flow, which has none of temperature, top_k, top_p,
                min_p and guidance_interval; its guidance is 2 by default. `best_of`: draw each image as often as this says,
                and return the one that aligns best with the prompt (`alignment`); the time grows by a little more than that
                factor. `redraw`: look at each image, and mend what does not show the prompt, in so many further tries at most
                or as a `Redraw` says (`unimm.inference.redrawing`): time goes where it is needed. `min_p` of `Sampling`,
                `guidance_interval` of `Request`; `first_index`: images first_index, first_index + 1, ... of the seed instead
                of those from 0 on.

        Returns:
            A list of PIL images; a list of such lists for a list of prompts. Each image carries its prompt, seed and settings,
            which `unimm.write_image` writes into its file.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        num_images = whole_number("num_images", num_images, 1, MOST_IMAGES)
        redraw = read_redraw(more.pop("redraw", 0))
        best_of = check_best_of(more.pop("best_of", 1), self.model, self.template, prompts)
        if redraw.tries and best_of > 1:
            raise ValueError("Give best_of or redraw, not both: each draws several times and takes the best.")
        if redraw.tries and more.get("size") is not None:
            raise ValueError("redraw looks at squares, and size asks for another form: leave one of them out.")
        check_best_of(1 + min(redraw.tries, 1), self.model, self.template, prompts)  # it asks the same question
        settings = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p, **more}
        by_flow = self._draws_by_flow(settings)
        if by_flow and redraw.tries:
            raise ValueError("redraw mends codes, and this image is drawn by a flow: leave redraw out, or draw by codes.")
        requests = self._requests(prompt, num_images, seed, settings, best_of)
        drawn = finish(self._draw(prompt, requests, settings, 0), callback)
        images, each = drawn.images or [], [text for text in prompts for _ in range(num_images * best_of)]
        if redraw.tries and images:
            images = self._redrawn(each, requests, drawn.codes.numpy(), images, redraw)
        if best_of > 1:
            images = choose_best(images, self.alignment(images, each), best_of)
        starts = range(0, len(images), num_images)
        return images if isinstance(prompt, str) else [images[start : start + num_images] for start in starts]

    def _redrawn(
        self, prompts: list[str], requests: list[Request], codes_NT: np.ndarray, images: list[Image.Image], how: Redraw
    ) -> list[Image.Image]:
        """These images, those that do not show their prompts mended; each says in how many tries."""
        drawn = [Drawn(*one) for one in zip(prompts, requests, codes_NT, images, strict=True)]
        said = [carried(image) for image in images]
        for one, own in zip(Redrawing(self, how).mend(drawn), said, strict=True):
            told = {"index": one.index, "redraw": asdict(how), "tries": one.tries, "painted": one.painted}
            attach(one.image, {**(own or {}), **told})
        return [one.image for one in drawn]

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
        return self._draw(prompt, requests, settings, preview_every)

    def trace_flow(self, prompt: str, seed: int = 0, num_pictures: int = 8, **settings) -> list[FlowStep]:
        """Look inside a drawing by a flow: what the image would be after some of its passes, with its latents.

        Args:
            num_pictures: passes at most, evenly spread from the first to the last one, which is the image of `generate_images`.
            settings: of a flow, as in `generate_images`: `guidance_scale`, `steps`, `solver`.

        Raises:
            ValueError: the model does not draw by a flow, or as `generate_images`.
        """
        check_text(prompt, "prompt")
        (request,) = self._requests(prompt, 1, seed, {**settings, "drawing": LATENTS})
        return trace_by_flow(self.decoder, request, self._flow_pictures(0, []), num_pictures)

    async def astream_images(
        self, prompt: str | list[str], num_images: int = 1, seed: int | list[int] = 0, preview_every: int = 64, **settings
    ) -> AsyncGenerator[DrawingProgress]:
        """As `stream_images`, for coroutines: `async for progress in engine.astream_images(prompt)`."""
        requests = await asyncio.to_thread(self._requests, prompt, num_images, seed, settings)
        provenance = await asyncio.to_thread(self._provenance, prompt, requests, settings)
        if self._draws_by_flow(settings):
            steps = adraw_by_flow(self.decoder, requests, self._flow_pictures(preview_every, provenance))
        else:
            steps = adraw(self.decoder, requests, self._sized(settings), preview_every, provenance=provenance)
        async with aclosing(steps) as drawing:
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
        num_images = whole_number("num_images", num_images, 1, MOST_IMAGES)
        if settings.get("drawing") not in (None, "codes"):
            raise ValueError(f"There are no codes of drawing={settings['drawing']!r}: leave it out, or call generate_images.")
        requests = self._requests(prompt, num_images, seed, {**settings, "drawing": "codes"})
        if not requests:
            return torch.empty(0, num_images, self.grid_of(settings.get("size")).num_codes, dtype=torch.long)
        codes = finish(draw(self.decoder, requests), callback).codes
        return codes if isinstance(prompt, str) else codes.unflatten(0, (len(prompt), num_images))

    def _requests(self, prompt: str | list[str], num_images: int, seed: Any, settings: dict, best_of: int = 1) -> list[Request]:
        num_images, is_flow = whole_number("num_images", num_images, 1, MOST_IMAGES), self._draws_by_flow(settings)
        grid = self.grid_of(settings.get("size"))
        settings = {name: value for name, value in settings.items() if name not in ("drawing", "size")}
        if is_flow:
            if grid != self.coder.grid:
                raise ValueError("size is of codes, and this image is drawn by a flow: leave it out.")
            latents = self._latents_config
            return flow_requests(self.template, latents, prompt, num_images * best_of, seed, self.bundle.flow, settings)
        for name in ("steps", "solver"):
            if settings.pop(name, None) is not None:
                raise ValueError(f"{name} is of a flow, and this image is drawn by codes: leave it out.")
        asked = grid.num_codes if grid == self.coder.grid else grid
        return drawing_requests(self.template, asked, prompt, (num_images, best_of), seed, self.drawing, settings)

    def grid_of(self, size: Any = None) -> Grid:
        """The grid of codes of drawings of a size, (width, height) in pixels or "WIDTHxHEIGHT"; None: the model's own.

        Raises:
            ValueError: the model draws no such size; says which it does.
        """
        return choose_grid(size, self.coder.grid, self.image_tokenizer.config.downsampling, self.prompt_format.sizes)

    @property
    def sizes(self) -> list[str]:
        """The sizes of drawings, "WIDTHxHEIGHT", the model's own first."""
        grids = (self.coder.grid, *map(Grid.read, self.prompt_format.sizes))
        return list(dict.fromkeys(grid.in_pixels(self.image_tokenizer.config.downsampling) for grid in grids))

    def _sized(self, settings: dict) -> ImageCoder:
        """What turns the codes of such drawings into pictures."""
        return self.coder.sized(self.grid_of(settings.get("size")))

    def _draws_by_flow(self, settings: dict) -> bool:
        """Whether a call draws by a flow. ValueError: the model does not draw as it asks."""
        asked, ways = settings.get("drawing"), self.bundle.drawing_ways
        if asked is not None and asked not in ways:
            own = " or ".join(f'"{way}"' for way in ways) or "nothing"
            raise ValueError(f"This model draws by {own}, not by {asked!r}: leave drawing out, or name such a model.")
        return (asked or next(iter(ways), "codes")) == LATENTS

    @property
    def _latents_config(self) -> LatentsConfig:
        port = self.bundle.latents_port
        assert port is not None
        return port.config

    def _flow_pictures(self, preview_every: int, provenance: list[dict[str, Any]]) -> FlowPictures:
        assert self.latents_coder is not None
        return FlowPictures(self._latents_config, self.latents_coder, preview_every, provenance)

    def _draw(
        self, prompt: str | list[str], requests: list[Request], settings: dict, preview_every: int
    ) -> Generator[DrawingProgress]:
        provenance = self._provenance(prompt, requests, settings)
        if self._draws_by_flow(settings):
            return draw_by_flow(self.decoder, requests, self._flow_pictures(preview_every, provenance))
        return draw(self.decoder, requests, self._sized(settings), preview_every, provenance=provenance)

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
            own: dict[str, Any] = {"guidance_scale": request.guidance_scale}
            if passes := request.filler_settings:
                own |= {"drawing": LATENTS, "steps": passes["num_steps"], "solver": passes["solver"]}
            else:
                own |= {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
                own |= {"guidance_interval": list(settings.get("guidance_interval", (0.0, 1.0)))}
            if settings.get("size") is not None:
                own["size"] = self.grid_of(settings["size"]).in_pixels(self.image_tokenizer.config.downsampling)
            found.append(describe(text, sampling.seed, sampling.index, own, self.model_hash, **told))
        return found

    def decode_codes(self, codes: torch.Tensor, size: Any = None) -> list[Image.Image]:
        """codes (num_images, num_codes) or (num_codes,) -> PIL images; with the errors of `ImageCoder.decode`. size: as
        `generate_images` takes it."""
        return self.coder.sized(self.grid_of(size)).decode(codes)

    def encode_image(self, image: ImageLike | list, size: Any = None) -> torch.Tensor:
        """An image -> its codes (num_codes,) long on the CPU, n images -> (n, num_codes); the largest part at the centre that
        has the form of `size` (as `generate_images` takes it), resized."""
        coder = self.coder.sized(self.grid_of(size))
        return coder.encode(image) if isinstance(image, list) else coder.encode([image])[0]
