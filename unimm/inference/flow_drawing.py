"""Images drawn by a flow: latents in, pictures out; previews of what each image will be, as far as the flow knows so far.

The decode loop gives, after every pass of the flow, an estimate of the latents, x + (1 - t) velocity. Progress is counted in
positions, as that of codes is: after half of its passes, half of an image's positions count as done. So who asks for a preview
every so many codes gets as many of a flow. Who looks inside (`trace_by_flow`) gets those of some passes, with their latents.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimm.checkpoints.drawing_defaults import FlowDefaults
from unimm.data.template import Template
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Estimate, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.drawing import DrawingProgress, read_seeds
from unimm.inference.engine_parts import ImageCoder
from unimm.inference.inpainting import GREY
from unimm.inference.input_validation import check_text
from unimm.models.ports.latents import SOLVERS, LatentsConfig, num_passes
from unimm.runtime.number_checks import whole_number
from unimm.runtime.provenance import attach

OF_CODES = {"temperature": None, "top_k": None, "top_p": None, "min_p": 0.0, "guidance_interval": (0.0, 1.0)}
"""Settings that choose codes one by one, and the values that say nothing."""


def flow_requests(
    template: Template,
    latents: LatentsConfig,
    prompt: str | list[str],
    num_images: int,
    seed: Any,
    defaults: FlowDefaults,
    settings: dict[str, Any],
) -> list[Request]:
    """A request an image, prompt after prompt.

    num_images: of each prompt. seed: of all prompts, or one for each. settings: what a call says, beside `defaults`; None says
    nothing. `guidance_scale`, `steps`, `solver`, and `first_index` (of the first image).

    Raises:
        ValueError: a prompt is empty, a setting is out of range, or one of codes.
        TypeError: there is no such setting.
    """
    settings = dict(settings)
    for name, nothing in OF_CODES.items():
        value = settings.pop(name, nothing)
        if value is not None and value != nothing and tuple(np.atleast_1d(value)) != nothing:
            raise ValueError(f"A flow has guidance_scale, steps and solver, and no {name}, which is for codes: leave it out.")
    first = whole_number("first_index", settings.pop("first_index", 0), 0)
    how = replace(defaults, **{name: value for name in asdict(defaults) if (value := settings.pop(name, None)) is not None})
    if settings:
        raise TypeError(f"A drawing has no setting {', '.join(settings)}.")
    passes = {"num_steps": whole_number("steps", how.steps, 1), "solver": how.solver}
    if how.solver not in SOLVERS:
        raise ValueError(f"solver is {' or '.join(SOLVERS)}, not '{how.solver}'.")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    requests = []
    for text, own_seed in zip(prompts, read_seeds(seed, len(prompts)), strict=True):
        check_text(text, "prompt")
        sequence = template.draw_latents(text, num_elements=latents.num_elements)
        for number in range(num_images):
            sampling = Sampling(seed=own_seed, index=first + number)
            requests.append(Request(sequence, sampling, how.guidance_scale, filler_settings=passes))
    return requests


@dataclass
class FlowPictures:
    """What makes pictures of the latents of one call, and when.

    preview_every: positions between previews; 0: none. provenance: what each image carries of where it comes from.
    """

    latents: LatentsConfig
    coder: ImageCoder
    preview_every: int = 0
    provenance: list[dict[str, Any]] | None = None


def draw_by_flow(decoder: Decoder, requests: list[Request], pictures: FlowPictures) -> Generator[DrawingProgress]:
    """Fill the latents of requests; gives the progress of every pass, the last one with the images.

    Raises:
        ValueError: a request can never be filled; before the first pass.
    """
    pictures = replace(pictures, preview_every=whole_number("preview_every", pictures.preview_every, 0))
    watched = [replace(request, is_watched=True) for request in requests]
    return _draw(_FlowDrawing(watched, pictures), decoder.steps(watched))


def _draw(drawing: "_FlowDrawing", steps: Generator[dict[int, Any]]) -> Generator[DrawingProgress]:
    with closing(steps):
        for new in steps:
            if (progress := drawing.advance(new)) is not None:
                yield progress
    yield drawing.finish()


async def adraw_by_flow(decoder: Decoder, requests: list[Request], pictures: FlowPictures) -> AsyncGenerator[DrawingProgress]:
    """As `draw_by_flow`, for coroutines."""
    pictures = replace(pictures, preview_every=whole_number("preview_every", pictures.preview_every, 0))
    watched = [replace(request, is_watched=True) for request in requests]
    drawing = _FlowDrawing(watched, pictures)
    async with aclosing(decoder.asteps(watched)) as steps:
        async for new in steps:
            # Previews are another network's work: the event loop does not wait for them.
            if (progress := await asyncio.to_thread(drawing.advance, new)) is not None:
                yield progress
    yield await asyncio.to_thread(drawing.finish)


@dataclass(frozen=True, eq=False)
class FlowStep:
    """What a flow knows of an image after pass `number` of `num_passes`.

    latents: (C, h, w) float32: where it would arrive by going straight on; after the last pass where it has arrived.
    image: their picture.
    """

    number: int
    num_passes: int
    latents: torch.Tensor
    image: Image.Image


def trace_by_flow(decoder: Decoder, request: Request, pictures: FlowPictures, num_pictures: int) -> list[FlowStep]:
    """Fill the latents of a request; gives what was known after so many of its passes at most, evenly spread from the first to
    the last one. Others are not decoded.

    Raises:
        ValueError: it can never be filled.
    """
    settings, num_pictures = request.filler_settings, whole_number("num_pictures", num_pictures, 1)
    total, known = num_passes(settings["num_steps"], settings["solver"]), dict[int, np.ndarray]()
    with closing(decoder.steps([replace(request, is_watched=True, takes_all_estimates=True)])) as steps:
        for new in steps:
            for one in new.values():
                is_estimate = isinstance(one, Estimate)
                known[round(one.share * total) if is_estimate else total] = one.elements if is_estimate else one
    numbers = sorted(known)
    places = np.linspace(len(numbers) - 1, 0, min(num_pictures, len(numbers))).round().astype(int)
    shown = [numbers[place] for place in sorted(places)]
    latents = [pictures.latents.to_latents(torch.from_numpy(np.array(known[number]))) for number in shown]
    images = pictures.coder.decode_latents(torch.stack(latents))
    return [FlowStep(number, total, *one) for number, one in zip(shown, zip(latents, images, strict=True), strict=True)]


class _FlowDrawing:
    """The images of one call: the latest that is known of the latents of each."""

    def __init__(self, requests: list[Request], pictures: FlowPictures) -> None:
        self._pictures = pictures
        self._known: list[np.ndarray | None] = [None] * len(requests)
        self._shares = [0.0] * len(requests)
        self._num_steps = pictures.latents.num_elements - 1
        self._num_prompt_positions = sum(request.sequence.given.length for request in requests)
        self._last_preview = 0

    def advance(self, new: dict[int, Any]) -> DrawingProgress | None:
        """What a pass gave; returns the progress, but of the last one."""
        for index, one in new.items():
            is_estimate = isinstance(one, Estimate)
            self._known[index] = one.elements if is_estimate else one
            self._shares[index] = one.share if is_estimate else 1.0
        if min(self._shares) == 1.0:
            return None
        step, every = int(self._num_steps * sum(self._shares) / len(self._shares)), self._pictures.preview_every
        images = None
        if every and step - self._last_preview >= every:
            images, self._last_preview = [self._picture(one) for one in self._known], step
        return DrawingProgress(step, self._num_steps, images, num_prompt_positions=self._num_prompt_positions)

    def finish(self) -> DrawingProgress:
        """The images."""
        images = [self._picture(one) for one in self._known]
        for image, said in zip(images, self._pictures.provenance or [], strict=False):
            attach(image, said)
        return DrawingProgress(self._num_steps, self._num_steps, images, True, self._num_prompt_positions)

    def _picture(self, elements: np.ndarray | None) -> Image.Image:
        """Of elements (1 + h w, E); grey where nothing is known."""
        coder = self._pictures.coder
        if elements is None:
            side = coder.tokenizer.image_size
            return Image.new("RGB", (side, side), GREY)
        return coder.decode_latents(self._pictures.latents.to_latents(torch.from_numpy(np.array(elements))))[0]
