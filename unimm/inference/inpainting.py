"""Inpainting: a part of an image is painted anew, and the rest of it stays.

A model that writes images code by code needs no training for this: the image's own codes are given, but for those that are to
be painted, and these are chosen in reading order. So each of them follows from what was asked for and from all codes above it
and to its left, kept or new; not from those below it, which the model has no way to read.

A code is painted where any of its pixels is marked. Pixels that are not marked keep their colours: what was painted is laid
over the original, and fades into it at the border of the mask.

Shapes: H W pixels of the image tokenizer's square, h w its codes, N = h * w of them.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from PIL import Image, ImageFilter

from unimm.data.image import crop, decode_image, decode_mask, pixels_to_array, transparent_part
from unimm.data.image_forms import read_once
from unimm.data.records import ImageLike
from unimm.inference.engine_parts import ImageCoder
from unimm.sequence import BLANK, Kind, Segment, Sequence

FADE = 8
"""What is painted fades into the original over this part of a code's side, inside the mask."""

GREY = (128, 128, 128)
"""Where a preview has nothing yet."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image of which a part is to be painted.

    known: (N,) int64, the codes of the image, `BLANK` where they are to be chosen.
    original: (H, W, 3) uint8. is_marked: (H, W) bool, the pixels that may change.
    """

    known: np.ndarray
    codes: np.ndarray
    original: np.ndarray
    is_marked: np.ndarray

    @cached_property
    def blank(self) -> range:
        """From the first code to be chosen to the last one."""
        places = np.flatnonzero(self.known == BLANK)
        return range(int(places[0]), int(places[-1]) + 1)

    @property
    def first_codes(self) -> list[int]:
        """The codes before the first one to be chosen."""
        return self.codes[: self.blank.start].tolist()

    @property
    def last_codes(self) -> list[int]:
        """The codes behind the last one to be chosen."""
        return self.codes[self.blank.stop :].tolist()

    def sequence(self, prompt: Sequence) -> Sequence:
        """A drawing prompt, the codes before the first one to be chosen, and a blank that ends with the last one."""
        given = (Segment.codes(self.first_codes),) if self.blank.start else ()
        known = self.known[self.blank.start : self.blank.stop]
        return Sequence((*prompt.given.segments, *given, Segment.blank(Kind.CODES, len(self.blank), known)))

    def interval(self, begin: float, end: float) -> tuple[float, float]:
        """A part of all codes, from 0 to 1, as a part of the blank."""
        begin, end = ((place * len(self.known) - self.blank.start) / len(self.blank) for place in (begin, end))
        return min(max(begin, 0.0), 1.0), min(max(end, 0.0), 1.0)

    def blend(self, painted: Image.Image) -> Image.Image:
        """The original outside of the mask, what was painted inside, and at the border a little of both."""
        opacity_HW1 = self._opacity[..., None]
        mixed = opacity_HW1 * np.asarray(painted, dtype=np.float32) + (1 - opacity_HW1) * self.original
        return Image.fromarray(np.rint(mixed).astype(np.uint8))

    def preview(self, painted: Image.Image, num_filled: int) -> Image.Image:
        """What is painted so far, and grey where something is still to come."""
        side, size = round(len(self.known) ** 0.5), self.original.shape[0]
        is_missing = (self.known == BLANK) & (np.arange(len(self.known)) >= num_filled)
        grown = np.kron(is_missing.reshape(side, side), np.ones((size // side, size // side), dtype=bool))
        preview = np.asarray(self.blend(painted)).copy()
        preview[grown & self.is_marked] = GREY
        return Image.fromarray(preview)

    @cached_property
    def _opacity(self) -> np.ndarray:
        """(H, W) float32 of what is painted: 0 outside of the mask, 1 well inside."""
        radius = self.original.shape[0] / round(len(self.known) ** 0.5) / FADE
        blurred = Image.fromarray(self.is_marked.astype(np.uint8) * np.uint8(255)).filter(ImageFilter.GaussianBlur(radius))
        return np.where(self.is_marked, np.asarray(blurred, dtype=np.float32) / 255, np.float32(0))


def make_canvas(coder: ImageCoder, image: ImageLike, mask: ImageLike | np.ndarray | None) -> Canvas:
    """An image and what is to be painted of it, both cut to a square at the centre and resized as the image tokenizer has it.

    mask: of the image's size, as `decode_mask` reads it; None: where the image itself is transparent.

    Raises:
        ValueError: one of them cannot be read, they differ in size, or nothing is marked inside the square.
    """
    image, mask = read_once(image), read_once(mask)
    width, height = decode_image(image).size
    marked_HW = transparent_part(image) if mask is None else decode_mask(mask)
    if marked_HW.shape != (height, width):
        raise ValueError(
            f"The mask is {marked_HW.shape[1]}x{marked_HW.shape[0]}, but the image {width}x{height}: give a mask of its size."
        )
    size, side = coder.tokenizer.image_size, round(coder.tokenizer.num_codes**0.5)
    is_painted = _any_in_cells(marked_HW, side).flatten()
    if not is_painted.any():
        where = "The image is transparent nowhere" if mask is None else "The mask marks nothing"
        raise ValueError(
            f"{where} inside the square at the image's centre, which is what the model sees: make what is to be painted white "
            f"in a mask, or transparent."
        )
    codes = coder.encode([image])[0].numpy()
    known = np.where(is_painted, BLANK, codes)
    original = pixels_to_array(crop(image, size))
    return Canvas(known, codes, original, _any_in_cells(marked_HW, size))


def _any_in_cells(marked_HW: np.ndarray, side: int) -> np.ndarray:
    """(side, side) bool: whether any pixel is marked that a cell covers, a part of it perhaps, of the square at the centre."""
    rows, columns = (_edges(length, min(marked_HW.shape), side) for length in marked_HW.shape)
    any_in_rows = np.stack([marked_HW[start:stop].any(0) for start, stop in rows])
    return np.stack([any_in_rows[:, start:stop].any(1) for start, stop in columns], axis=1)


def _edges(length: int, square: int, side: int) -> list[tuple[int, int]]:
    """For each of `side` equal cells over the middle `square` of `length` pixels, the pixels that it touches: [start, stop)."""
    places = [(length - square) * side + 2 * square * cell for cell in range(side + 1)]  # in parts of 1 / (2 * side) of a pixel
    return [(start // (2 * side), -(-stop // (2 * side))) for start, stop in pairwise(places)]
