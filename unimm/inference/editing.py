"""Editing: an image and what to change in it, drawn anew code by code.

A model that was taught to edit reads the source twice, as pixels and as codes, and the instruction; what follows is a drawing.
Guidance has two scales (InstructPix2Pix, arXiv 2211.09800): for the image i and for the text t,

    l = l(nothing) + i (l(image) - l(nothing)) + t (l(image, text) - l(image))

so the instruction is followed more closely with t, and the source with i. With i = 1 the first prompt cancels out, and editing
takes two rows of the batch instead of three.

Beside guidance, `source_bias` adds to the logit of the source's own code in each place. It keeps what nothing speaks against,
and costs nothing. A model that learned with it (`PromptFormat.source_bias`) draws with it, too.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.image_forms import read_once
from unimm.data.prompt_format import check_source_bias
from unimm.data.records import ImageLike
from unimm.data.video.sources import is_video
from unimm.inference.decode.request import Branch, Request
from unimm.inference.drawing import DrawingProgress, adraw, draw, finish, read_seeds, read_settings
from unimm.inference.input_validation import check_text
from unimm.inference.painting_calls import PaintingCalls
from unimm.runtime.number_checks import MOST_IMAGES, real_number, whole_number
from unimm.runtime.provenance import EDITED, describe
from unimm.sequence import Expected

IMAGE_GUIDANCE = 1.0
"""Where a caller says nothing: guidance by the text alone."""


class EditingCalls(PaintingCalls):
    """An image and an instruction in, images out."""

    def edit_images(
        self,
        image: ImageLike | list,
        instruction: str | list[str],
        num_images: int = 1,
        seed: int | list[int] = 0,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        source_bias: float | None = None,
        callback: Callable[[DrawingProgress], None] | None = None,
        **settings: Any,
    ) -> Any:
        """Change an image as an instruction says, and keep the rest.

        Args:
            image: any form of an image, cut to a square at its centre and resized to the image tokenizer's size; or a list.
            instruction: what to change, such as "make the circle blue"; or a list. A single image goes with every
                instruction, and a single instruction with every image.
            num_images, seed, callback: as in `generate_images`; image i is keyed by (seed, i).
            guidance_scale: how closely the instruction is followed; 1.0 is off. None: the model's own, as for drawings.
            image_guidance_scale: how closely the source is; 1.0 [default] is off and costs nothing.
            source_bias: added to the logit of the source's code in each place, from 0, which is off, to 100. None: as it was
                learned with (`prompt_format.source_bias`); of a model that learned without, 2 to 6 keep more of the source.
            settings: `temperature`, `top_k`, `top_p`, `min_p`, `guidance_interval`, `first_index` of `generate_images`.

        Returns:
            A list of PIL images; a list of such lists where images or instructions are a list. Each carries its instruction,
            seed and settings, and a hash of the source's codes.

        Raises:
            ValueError: the model was not taught to edit, there is no image, it cannot be read, an instruction is empty or too
                long, or images and instructions do not pair.
        """
        num_images = whole_number("num_images", num_images, 1, MOST_IMAGES)
        own = {"guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale, "source_bias": source_bias}
        requests, said = self._editing(image, instruction, num_images, seed, {**own, **settings})
        images = finish(draw(self.decoder, requests, self.coder, provenance=said), callback).images or []
        if not isinstance(image, list) and not isinstance(instruction, list):
            return images
        return [images[start : start + num_images] for start in range(0, len(images), num_images)]

    async def aedit_images(
        self,
        image: ImageLike | list,
        instruction: str | list[str],
        num_images: int = 1,
        seed: int | list[int] = 0,
        **settings: Any,
    ) -> list[Image.Image]:
        """As `edit_images`, for coroutines; all images in one list."""
        images = []
        async with aclosing(self.astream_edit_images(image, instruction, num_images, seed, 0, **settings)) as editing:
            async for progress in editing:
                images = progress.images or images
        return images

    def stream_edit_images(
        self,
        image: ImageLike | list,
        instruction: str | list[str],
        num_images: int = 1,
        seed: int | list[int] = 0,
        preview_every: int = 64,
        **settings: Any,
    ) -> Iterator[DrawingProgress]:
        """As `edit_images`, with the progress and previews of `stream_images`; the images of all pairs in one list."""
        requests, said = self._editing(image, instruction, num_images, seed, settings)
        return draw(self.decoder, requests, self.coder, preview_every, provenance=said)

    async def astream_edit_images(
        self,
        image: ImageLike | list,
        instruction: str | list[str],
        num_images: int = 1,
        seed: int | list[int] = 0,
        preview_every: int = 64,
        **settings: Any,
    ) -> AsyncGenerator[DrawingProgress]:
        """As `stream_edit_images`, for coroutines."""
        requests, said = await asyncio.to_thread(self._editing, image, instruction, num_images, seed, settings)
        async with aclosing(adraw(self.decoder, requests, self.coder, preview_every, provenance=said)) as editing:
            async for progress in editing:
                yield progress

    def _editing(
        self, image: Any, instruction: Any, num_images: int, seed: Any, settings: dict[str, Any]
    ) -> tuple[list[Request], list[dict[str, Any]]]:
        """A request an image, pair after pair, and what each says of where it comes from."""
        self.prompt_format.check_edits()
        num_images = whole_number("num_images", num_images, 1, MOST_IMAGES)
        sources, instructions = _pairs(image, instruction)
        settings = dict(settings)
        image_scale = settings.pop("image_guidance_scale", None)
        image_scale = IMAGE_GUIDANCE if image_scale is None else check_scale("image_guidance_scale", image_scale)
        bias = settings.pop("source_bias", None)
        bias = self.prompt_format.source_bias if bias is None else check_source_bias(bias)
        how = read_settings(self.drawing, settings)
        text_scale = check_scale("guidance_scale", how.defaults.guidance_scale)
        distinct = list({id(one): one for one in sources}.values())
        codes = dict(zip(map(id, distinct), self.coder.encode(distinct).numpy(), strict=True))
        branches, requests, said = guide_edits(text_scale, image_scale), [], []
        told = {"task": EDITED, "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch.")}
        own = {name: getattr(how.defaults, name) for name in ("temperature", "top_k", "top_p")} | {"min_p": how.min_p}
        own |= {"guidance_scale": text_scale, "image_guidance_scale": image_scale}
        own |= {"source_bias": bias, "guidance_interval": list(how.guidance_interval)}
        for source, text, own_seed in zip(sources, instructions, read_seeds(seed, len(sources)), strict=True):
            known = codes[id(source)]
            sequence = self.template.edit(source, known, text, num_codes=self.image_tokenizer.num_codes).opened()
            of_source = {"source": hashlib.sha256(np.ascontiguousarray(known).tobytes()).hexdigest()}
            for index in range(how.first, how.first + num_images):
                sampling = how.sampling(own_seed, index)
                expected = Expected(tuple(known.tolist()), bias)
                interval = how.guidance_interval
                request = Request(sequence, sampling, guidance_interval=interval, branches=branches, expected=expected)
                requests.append(request)
                more = {**told, "weights": self.weights, **of_source}
                said.append(describe(text, own_seed, index, dict(own), self.model_hash, **more))
        return requests, said


def guide_edits(text_scale: float, image_scale: float = 1.0) -> tuple[Branch, ...]:
    """The branches of guidance by text and image: three, or fewer where a weight is 0."""
    further = (
        Branch(frozenset({"text"}), image_scale - text_scale),
        Branch(frozenset({"text", "image"}), 1.0 - image_scale),
    )
    return (Branch(weight=text_scale), *(branch for branch in further if branch.weight))


def check_scale(name: str, value: Any) -> float:
    """A scale of guidance. ValueError: it is no number, or negative."""
    scale = real_number(name, value)
    if not 0.0 <= scale < float("inf"):
        raise ValueError(f"{name} must be 0 or positive, not {scale}.")
    return scale


def _pairs(image: Any, instruction: Any) -> tuple[list[Any], list[str]]:
    """Images and instructions as two lists of one length, each image read once."""
    images = image if isinstance(image, list) else [image]
    instructions = instruction if isinstance(instruction, list) else [instruction]
    for text in instructions:
        check_text(text, "instruction")
    for one in images:
        if one is None:
            raise ValueError("An instruction changes an image, and there is none: give one, or draw with generate_images.")
        if is_video(one):
            raise ValueError("One image is edited, and this is a video: give a frame of it.")
    images = [read_once(one) for one in images]
    count = max(len(images), len(instructions)) if images and instructions else 0
    images = images * count if len(images) == 1 else images[: count or None]
    instructions = instructions * count if len(instructions) == 1 else instructions
    if count and len(images) != len(instructions):
        raise ValueError(f"{len(images)} images do not pair with {len(instructions)} instructions: give as many, or one.")
    return images[:count], instructions[:count]
