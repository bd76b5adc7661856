"""Inpainting: a part of an image is painted anew, and the rest of it stays.

A model that writes images code by code needs no training for this: the image's own codes are given, but for those that are to
be painted, and these are chosen in reading order. So each of them follows from what was asked for and from all codes above it
and to its left, kept or new; not from those below it, which the model has no way to read.

The model sees squares of one size. An image of any size is painted through windows: squares of its own pixels, which are
resized for the model, and back (`unimm.inference.windows_of_images`). A code is painted where any of its pixels is marked.
Pixels that are not marked keep their values exactly: what was painted is laid over the original, and fades into it at the
border of the mask.

Shapes: H W pixels of the image, S the side of a window in these pixels, N codes of the image tokenizer.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from PIL import Image, ImageFilter

from unimm.data.grids import Grid
from unimm.data.image import crop, decode_image, decode_mask, pixels_to_array, transparent_part
from unimm.data.image_forms import read_once
from unimm.data.records import ImageLike
from unimm.inference.engine_parts import ImageCoder
from unimm.inference.windows_of_images import Window, choose_windows
from unimm.sequence import BLANK, Kind, Segment, Sequence

FADE = 8
"""What is painted fades into the original over this part of a code's side, inside the mask."""

GREY = (128, 128, 128)
"""Where a preview has nothing yet."""


@dataclass(frozen=True, eq=False)
class Marked:
    """An image with what is to be painted of it, and the windows through which that is done, in their order.

    picture: (H, W, 3) uint8. is_marked: (H, W) bool, the pixels that may change.
    """

    picture: np.ndarray
    is_marked: np.ndarray
    windows: list[Window]


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image, and a window of it of which a part is to be painted.

    known: (N,) int64, the codes of what the window shows, `BLANK` where they are to be chosen; codes: all of them.
    original: (H, W, 3) uint8. is_marked: (S, S) bool, the pixels of the window that may change.
    number: of the window among those of the image, from 0 on; noise goes by it. grid: of its codes.
    """

    known: np.ndarray
    codes: np.ndarray
    original: np.ndarray
    window: Window
    is_marked: np.ndarray
    number: int
    grid: Grid

    @cached_property
    def blank(self) -> range:
        """From the first code to be chosen to the last one."""
        places = np.flatnonzero(self.known == BLANK)
        return range(int(places[0]), int(places[-1]) + 1)

    @property
    def first_place(self) -> int:
        """Of the blank among all codes of all windows."""
        return self.number * len(self.known) + self.blank.start

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
        """The whole image: the original outside of the mask, inside what was painted, a square of any size, and at the border a
        little of both."""
        side, (rows, columns) = self.window.side, self.window.slices
        if painted.size != (side, side):
            painted = painted.resize((side, side), Image.Resampling.BICUBIC)
        opacity_SS1, blended = self._opacity[..., None], self.original.copy()
        mixed = opacity_SS1 * np.asarray(painted, dtype=np.float32) + (1 - opacity_SS1) * blended[rows, columns]
        blended[rows, columns] = np.rint(mixed).astype(np.uint8)
        return Image.fromarray(blended)

    def preview(self, painted: Image.Image, num_filled: int) -> Image.Image:
        """What is painted so far, and grey where something is still to come."""
        is_missing = ((self.known == BLANK) & (np.arange(len(self.known)) >= num_filled)).reshape(self.grid)
        rows, columns = (np.arange(self.window.side) * count // self.window.side for count in self.grid)
        preview = np.asarray(self.blend(painted)).copy()
        preview[self.window.slices][is_missing[rows][:, columns] & self.is_marked] = GREY
        return Image.fromarray(preview)

    @cached_property
    def _opacity(self) -> np.ndarray:
        """(S, S) float32 of what is painted: 0 outside of the mask, 1 well inside."""
        radius = self.window.side / self.grid.rows / FADE
        blurred = Image.fromarray(self.is_marked.astype(np.uint8) * np.uint8(255)).filter(ImageFilter.GaussianBlur(radius))
        return np.where(self.is_marked, np.asarray(blurred, dtype=np.float32) / 255, np.float32(0))


def read_marked(
    image: ImageLike, mask: ImageLike | np.ndarray | None, square: int | None = None, margin: int | None = None
) -> Marked:
    """An image and what is to be painted of it.

    mask: of the image's size, as `decode_mask` reads it; None: where the image itself is transparent.
    square: cut both to the square at the centre, and resize them to this side; None: they keep their size.
    margin: as `choose_windows` takes it.

    Raises:
        ValueError: one of them cannot be read, they differ in size, or nothing is marked, or everything.
    """
    image, mask = read_once(image), read_once(mask)
    picture = np.asarray(decode_image(image))
    height, width = picture.shape[:2]
    marked_HW = transparent_part(image) if mask is None else decode_mask(mask)
    if marked_HW.shape != (height, width):
        raise ValueError(
            f"The mask is {marked_HW.shape[1]}x{marked_HW.shape[0]}, but the image {width}x{height}: give a mask of its size."
        )
    if marked_HW.all():
        what = "The image is transparent everywhere" if mask is None else "The mask marks the whole image"
        raise ValueError(f"{what}, so nothing of it would stay: mark a part of it, or draw from the prompt alone.")
    if mask is None and marked_HW.any():  # there it has no colours of its own to fade into
        picture = _spread(picture, marked_HW)
    if square is not None:
        picture, marked_HW = pixels_to_array(crop(picture, square)), any_in_cells(marked_HW, square)
    if not marked_HW.any():
        what = "The image is transparent nowhere" if mask is None else "The mask marks nothing"
        where = "" if square is None else " inside the square at the image's centre"
        raise ValueError(f"{what}{where}: make what is to be painted white in a mask, or transparent.")
    return Marked(picture, marked_HW, choose_windows(marked_HW, margin))


def make_canvases(coder: ImageCoder, pictures: list[np.ndarray], marked_HW: np.ndarray, window: Window, number: int) -> list:
    """A canvas for each of several images (H, W, 3) uint8 of which the same is marked; an image that is there several times is
    encoded once."""
    rows, columns = window.slices
    is_marked = marked_HW[rows, columns]
    is_painted = any_in_cells(is_marked, coder.tokenizer.grid_size).flatten()  # windows are squares, as the model's own grid
    encoded: dict[int, np.ndarray] = {}
    for picture in pictures:
        if id(picture) not in encoded:
            encoded[id(picture)] = coder.encode([np.ascontiguousarray(picture[rows, columns])])[0].numpy()
    all_codes = [encoded[id(picture)] for picture in pictures]
    return [
        Canvas(np.where(is_painted, BLANK, codes), codes, picture, window, is_marked, number, coder.grid)
        for picture, codes in zip(pictures, all_codes, strict=True)
    ]


def any_in_cells(marked_HW: np.ndarray, side: int) -> np.ndarray:
    """(side, side) bool: whether any pixel is marked that a cell covers, a part of it perhaps, of the square at the centre."""
    rows, columns = (_edges(length, min(marked_HW.shape), side) for length in marked_HW.shape)
    any_in_rows = np.stack([marked_HW[start:stop].any(0) for start, stop in rows])
    return np.stack([any_in_rows[:, start:stop].any(1) for start, stop in columns], axis=1)


def _edges(length: int, square: int, side: int) -> list[tuple[int, int]]:
    """For each of `side` equal cells over the middle `square` of `length` pixels, the pixels that it touches: [start, stop)."""
    places = [(length - square) * side + 2 * square * cell for cell in range(side + 1)]  # in parts of 1 / (2 * side) of a pixel
    return [(start // (2 * side), -(-stop // (2 * side))) for start, stop in pairwise(places)]


def _spread(picture: np.ndarray, marked_HW: np.ndarray) -> np.ndarray:
    """The picture with every marked pixel in the colour of the nearest one that is not marked."""
    from scipy import ndimage  # takes longer to import than drawing the demo's pictures, which need nothing of it

    nearest = ndimage.distance_transform_edt(marked_HW, return_distances=False, return_indices=True)
    return picture[tuple(nearest)]  # pyright: ignore[reportArgumentType]
