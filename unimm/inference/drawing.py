"""Images as they are drawn: codes in, pictures out; previews of the codes so far, and whole pictures as soon as they are full.

Turning codes into pixels is another network's work. A second thread does it, on a GPU on a stream of its own, so that the next
codes do not wait for it; previews that come too late are left out, but for the last one, which whole pictures would wait for
anyway. Codes are the same with previews and without.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from PIL import Image

from unimm.checkpoints.drawing_defaults import DrawingDefaults
from unimm.data.grids import Grid
from unimm.data.template import Template
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine_parts import ImageCoder
from unimm.inference.inpainting import GREY, Canvas
from unimm.inference.input_validation import check_text
from unimm.runtime.number_checks import whole_number, whole_numbers
from unimm.runtime.provenance import attach


@dataclass(frozen=True)
class DrawingProgress:
    """How far a drawing is: `step` of `num_steps` codes an image are chosen, on average; by a flow so many positions' worth of
    its passes is done, and there are no codes.

    images: previews of all images, or at the end (`is_final`) the images; None where there are none at this step.
    num_prompt_positions: positions that their prompts take, all together.
    """

    step: int
    num_steps: int
    images: list[Image.Image] | None = None
    is_final: bool = False
    num_prompt_positions: int = 0
    _filled: list[list[int]] = field(default_factory=list, repr=False)
    _lengths: tuple[int, ...] = field(default=(), repr=False)

    @property
    def codes(self) -> torch.Tensor:
        """The codes so far: (num_images of all prompts, most that any has) long; -1 where one has not come so far."""
        sizes = list(zip(self._filled, self._lengths, strict=True))  # the lists go on growing
        longest = max(self._lengths, default=0)
        return torch.tensor([codes[:size] + [-1] * (longest - size) for codes, size in sizes])


def drawing_requests(
    template: Template,
    num_codes: int | Grid,
    prompt: str | list[str],
    count: tuple[int, int],
    seed: Any,
    defaults: DrawingDefaults,
    settings: dict[str, Any],
    canvases: list[Canvas] | None = None,
) -> list[Request]:
    """A request an image, prompt after prompt.

    num_codes: of an image; a grid, where it is not the model's own, which the prompt then names.
    count: images of a prompt, and of how many drawings each is the best.
    seed: of all prompts, or one for each; of Python's, NumPy's or PyTorch's integers.
    settings: what a call says, beside `defaults`; None says nothing. Of DrawingDefaults, and `min_p`, `guidance_interval`,
        `first_index` (of the first image).
    canvases: for each image of one prompt, what it is to be painted on.

    Raises:
        ValueError: a prompt is empty, there is nothing to draw, or seeds do not fit.
        TypeError: there is no such setting.
    """
    num_images, best_of = count
    how = read_settings(defaults, settings)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    requests = []
    for text, own_seed in zip(prompts, read_seeds(seed, len(prompts)), strict=True):
        check_text(text, "prompt")
        grid = num_codes if isinstance(num_codes, Grid) else None
        sequence = template.draw(text, num_codes=None if isinstance(num_codes, Grid) else num_codes, grid=grid)
        for number in range(num_images * best_of):
            sampling = how.sampling(own_seed, how.first + number)
            request = Request(sequence, sampling, how.defaults.guidance_scale, how.guidance_interval)
            requests.append(request if canvases is None else _painting_request(request, canvases[number]))
    return requests


def _painting_request(request: Request, canvas: Canvas) -> Request:
    """The request for a drawing as one for a part of it."""
    own = canvas.interval(*request.guidance_interval)
    sequence = canvas.sequence(request.sequence)
    return replace(request, sequence=sequence, guidance_interval=own, first_place=canvas.first_place)


class DrawingChoices(NamedTuple):
    """How the images of a call are drawn: what it says, and where it says nothing the model's own.

    first: the number of the first image.
    """

    defaults: DrawingDefaults
    min_p: float
    guidance_interval: tuple[float, float]
    first: int

    def sampling(self, seed: int, index: int) -> Sampling:
        """Of image `index` of a seed."""
        return Sampling(self.defaults.temperature, self.defaults.top_k, self.defaults.top_p, seed, index, self.min_p)


def read_settings(defaults: DrawingDefaults, settings: dict[str, Any]) -> DrawingChoices:
    """The settings of a call, as `drawing_requests` has them. TypeError: there is no such setting."""
    settings = dict(settings)
    first = whole_number("first_index", settings.pop("first_index", 0), 0)
    own = {name: value for name in asdict(defaults) if (value := settings.pop(name, None)) is not None}
    min_p, interval = settings.pop("min_p", 0.0), settings.pop("guidance_interval", (0.0, 1.0))
    if settings:
        raise TypeError(f"A drawing has no setting {', '.join(settings)}.")
    return DrawingChoices(replace(defaults, **own), min_p, interval, first)


def read_seeds(seed: Any, count: int) -> list[int]:
    """A seed for each of so many prompts. ValueError: there are others, or one of them is none."""
    seeds = whole_numbers("seed", seed, count)
    if len(seeds) != count:
        raise ValueError(f"Give one seed, or one for each of the {count} prompts, not {len(seeds)}.")
    return seeds


def draw(
    decoder: Decoder,
    requests: list[Request],
    coder: ImageCoder | None = None,
    preview_every: int = 0,
    canvases: list[Canvas] | None = None,
    provenance: list[dict[str, Any]] | None = None,
) -> Generator[DrawingProgress]:
    """Fill the open codes of requests, all of the same number.

    Args:
        coder: turns codes into pictures; None: there are only codes.
        preview_every: codes an image between previews; 0: none.
        canvases: what each of the requests paints a part of; all have the same codes to be chosen.
        provenance: what each image carries of where it comes from (`unimm.runtime.provenance`).

    Returns:
        An iterator over the progress of every step; the last one is final.

    Raises:
        ValueError: a request can never be filled; before the first step.
    """
    preview_every = whole_number("preview_every", preview_every, 0)
    return _draw(_Drawing(requests, coder, preview_every, canvases, provenance), decoder.steps(requests))


def finish(progress: Generator[DrawingProgress], callback: Callable[[DrawingProgress], None] | None) -> DrawingProgress:
    """The end of a drawing; the callback is called with the progress of every step."""
    state = DrawingProgress(0, 0)
    with closing(progress):  # a callback that raises ends the drawing, however long its exception is kept
        for state in progress:
            if callback is not None and state.num_steps:
                callback(state)
    return state


def _draw(drawing: "_Drawing", steps: Generator[dict[int, int]]) -> Generator[DrawingProgress]:
    with closing(drawing):
        with closing(steps):
            for new in steps:
                if (progress := drawing.advance(new)) is not None:
                    yield progress
        final = drawing.finish()
    yield final


async def adraw(
    decoder: Decoder,
    requests: list[Request],
    coder: ImageCoder | None = None,
    preview_every: int = 0,
    canvases: list[Canvas] | None = None,
    provenance: list[dict[str, Any]] | None = None,
) -> AsyncGenerator[DrawingProgress]:
    """As `draw`, for coroutines."""
    preview_every = whole_number("preview_every", preview_every, 0)
    with closing(_Drawing(requests, coder, preview_every, canvases, provenance)) as drawing:
        async with aclosing(decoder.asteps(requests)) as steps:
            async for new in steps:
                # Where it may wait for a preview, the event loop does not.
                waits = drawing.has_preview_under_way
                if (progress := await asyncio.to_thread(drawing.advance, new) if waits else drawing.advance(new)) is not None:
                    yield progress
        final = await asyncio.to_thread(drawing.finish)
    yield final


class _Drawing:
    """The images of one call: their codes so far, and a thread that turns codes into pictures."""

    def __init__(
        self,
        requests: list[Request],
        coder: ImageCoder | None,
        preview_every: int,
        canvases: list[Canvas] | None,
        provenance: list[dict[str, Any]] | None,
    ) -> None:
        self._coder, self._preview_every, self._canvases, self._provenance = coder, preview_every, canvases, provenance
        self._filled = [canvas.first_codes for canvas in canvases] if canvases else [[] for _ in requests]
        self._last_codes = [canvas.last_codes for canvas in canvases] if canvases else [[] for _ in requests]
        given = len(self._filled[0]) + len(self._last_codes[0]) if requests else 0
        self._num_steps = given + ((requests[0].blank.limit or 0) if requests else 0)
        self._num_prompt_positions = sum(request.sequence.given.length for request in requests)
        self._thread = ThreadPoolExecutor(1, "unimm-images")
        self._images: list[tuple[list[int], Future[list[Image.Image]]]] = []
        self._full: list[int] = []  # images whose codes are all there, and which nothing was done with yet
        self._preview: Future[list[Image.Image]] | None = None
        self._last_preview = 0

    def advance(self, new: dict[int, int]) -> DrawingProgress | None:
        """The next codes; returns the progress, but of the last step."""
        for index, token in new.items():
            codes = self._filled[index]
            codes.append(token)
            if len(codes) + len(self._last_codes[index]) == self._num_steps:
                codes += self._last_codes[index]
        step = sum(len(codes) for codes in self._filled) // len(self._filled)
        self._full += [index for index in new if len(self._filled[index]) == self._num_steps]
        is_last = step == self._num_steps
        # On a CPU two networks at a time only slow each other down.
        if self._coder is not None and self._full and (is_last or self._coder.has_own_stream):
            codes = torch.tensor([self._filled[index] for index in self._full])
            self._images.append((self._full, self._thread.submit(self._decode, self._coder, codes, self._full)))
            self._full = []
        return None if is_last else self._progress(step, self._next_preview(step))

    @property
    def has_preview_under_way(self) -> bool:
        """Whether a preview was begun that nobody has got."""
        return self._preview is not None

    def _next_preview(self, step: int) -> list[Image.Image] | None:
        images = None
        if self._preview is not None and (self._preview.done() or step == self._num_steps - 1):
            images, self._preview = self._preview.result(), None
        if self._coder is None or not self._preview_every or self._preview is not None:
            return images
        if step - self._last_preview >= self._preview_every:
            codes = [list(codes) for codes in self._filled]
            self._preview = self._thread.submit(_preview, self._coder, codes, self._num_steps, self._canvases)
            self._last_preview = step
        return images

    def _progress(self, step: int, images: list[Image.Image] | None, is_final: bool = False) -> DrawingProgress:
        codes = (self._filled, tuple(map(len, self._filled)))
        return DrawingProgress(step, self._num_steps, images, is_final, self._num_prompt_positions, *codes)

    def finish(self) -> DrawingProgress:
        """Wait for the images; returns the final progress."""
        images = None if self._coder is None else _in_order(self._images)
        for image, said in zip(images or [], self._provenance or [], strict=False):
            attach(image, said)
        return self._progress(self._num_steps, images, is_final=True)

    def _decode(self, coder: ImageCoder, codes: torch.Tensor, indices: list[int]) -> list[Image.Image]:
        images = coder.decode(codes)
        if self._canvases is None:
            return images
        return [self._canvases[index].blend(image) for index, image in zip(indices, images, strict=True)]

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _in_order(finished: list[tuple[list[int], Future[list[Image.Image]]]]) -> list[Image.Image]:
    images = {index: image for indices, future in finished for index, image in zip(indices, future.result(), strict=True)}
    return [images[index] for index in sorted(images)]


def preview_of(coder: ImageCoder, codes: list[int], num_codes: int) -> Image.Image:
    """The picture of the first codes of a drawing: whole rows, and grey below them."""
    return _preview(coder, [codes], num_codes, None)[0]


def _preview(coder: ImageCoder, filled: list[list[int]], num_codes: int, canvases: list[Canvas] | None) -> list[Image.Image]:
    """Pictures of codes so far: whole rows, and grey below them; or, on a canvas, all of it that is known."""
    if canvases is not None:
        both = list(zip(filled, canvases, strict=True))
        images = coder.decode(torch.tensor([codes + canvas.codes[len(codes) :].tolist() for codes, canvas in both]))
        return [canvas.preview(image, len(codes)) for (codes, canvas), image in zip(both, images, strict=True)]
    # The rest must be some code; the last one that is there disturbs its neighbours least.
    padded = [codes + [codes[-1] if codes else 0] * (num_codes - len(codes)) for codes in filled]
    images = coder.decode(torch.tensor(padded))
    for codes, image in zip(filled, images, strict=True):
        top = len(codes) // coder.grid.columns * image.height // coder.grid.rows
        image.paste(GREY, (0, top, image.width, image.height))
    return images
