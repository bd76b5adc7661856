"""Where a model that sees squares looks, to paint a part of an image of any form; and images that are put on a larger canvas.

A window is a square of the image's own pixels, as large as the image's short side has room for. What fits into one is painted
through one. What is longer is painted window after window along the long side, each, where that is possible, half over what is
there already, so that what is painted goes on from it.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from unimm.data.image import MAX_PIXELS, decode_image
from unimm.data.records import ImageLike
from unimm.runtime.number_checks import shorten, whole_number

MAX_WINDOWS = 64
"""Of one image: a longer one is a mistake more often than a wish."""


class Window(NamedTuple):
    """A square of an image, in its pixels."""

    left: int
    top: int
    side: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)


class Sides(NamedTuple):
    """Pixels by which an image grows on each side; below 0, so many are cut off."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


def choose_windows(marked_HW: np.ndarray, margin: int | None = None) -> list[Window]:
    """The windows through which what is marked, (H, W) bool, something of it, is painted.

    margin: pixels around what is marked that a window shows at least, where it need not show more: a small part of a large
        image then is painted in more detail. None: windows are as large as they can be.

    Raises:
        ValueError: it takes more than `MAX_WINDOWS`.
    """
    height, width = marked_HW.shape
    any_in_rows, any_in_columns = np.any(marked_HW, axis=1), np.any(marked_HW, axis=0)
    side = min(height, width)
    if margin is not None:
        longest = max(_extent(any_in_rows)[1], _extent(any_in_columns)[1])
        side = min(side, longest + 2 * whole_number("margin", margin, 0))
    tops, lefts = _starts(any_in_rows, side), _starts(any_in_columns, side)
    count = max(len(tops), len(lefts))  # along one side, there is only one place
    if count > MAX_WINDOWS:
        raise ValueError(
            f"The image of {width}x{height} is painted in more than {MAX_WINDOWS} squares, one after another: shorten it."
        )
    tops, lefts = (starts * count if len(starts) == 1 else starts for starts in (tops, lefts))
    return [Window(left, top, side) for left, top in zip(lefts, tops, strict=True)]


def extend_image(
    image: ImageLike, sides: Sides, size: tuple[int, int] | str | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, np.ndarray]:
    """An image on a larger canvas.

    Args:
        sides: by how much it grows; a side below 0 is cut. Opposite ones together move the image: left=16, right=-16.
        size: of the canvas, (width, height) or "WIDTHxHEIGHT", instead of `sides`; the image is in its middle.
        max_pixels: of the canvas.

    Returns:
        The canvas (H, W, 3) uint8, where what is new has the colours of the image's border; and what is new, (H, W) bool.

    Raises:
        ValueError: the image cannot be read, nothing is new, nothing of it is left, or the canvas is too large.
    """
    picture = np.asarray(decode_image(image))
    height, width = picture.shape[:2]
    sides = Sides(**{name: whole_number(name, value) for name, value in sides._asdict().items()})
    if size is not None:
        if any(sides):
            raise ValueError("Say by how much the image grows on each side, or the size of the canvas: not both.")
        across, down = (asked - own for asked, own in zip(read_size(size), (width, height), strict=True))
        sides = Sides(across // 2, across - across // 2, down // 2, down - down // 2)
    new_width, new_height = width + sides.left + sides.right, height + sides.top + sides.bottom
    cut = [max(-side, 0) for side in sides]
    if cut[0] + cut[1] >= width or cut[2] + cut[3] >= height:
        raise ValueError(f"Nothing of the image of {width}x{height} would be left: cut off less of it.")
    if max(sides) <= 0:
        raise ValueError("There is nothing new to paint: say by how many pixels the image grows (left, right, top, bottom).")
    if new_width * new_height > max_pixels:
        raise ValueError(f"A canvas of {new_width}x{new_height} has more than {max_pixels:,} pixels: make it smaller.")
    grown = [max(side, 0) for side in sides]
    kept = picture[cut[2] : height - cut[3], cut[0] : width - cut[1]]
    canvas = np.pad(kept, ((grown[2], grown[3]), (grown[0], grown[1]), (0, 0)), mode="edge")
    is_new = np.ones((new_height, new_width), dtype=bool)
    is_new[grown[2] : new_height - grown[3], grown[0] : new_width - grown[1]] = False
    return canvas, is_new


def lay_over(source: Image.Image, square: Image.Image) -> Image.Image:
    """The source with the square at its centre replaced by what was made of that; it says where that comes from."""
    side = min(source.size)
    left, top = ((length - side) // 2 for length in source.size)
    whole = source.copy()
    whole.paste(square.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    whole.info.update(square.info)
    return whole


def read_size(size: tuple[int, int] | str) -> tuple[int, int]:
    """Width and height. ValueError: it is no such pair."""
    parts = size.lower().split("x") if isinstance(size, str) else list(size) if isinstance(size, Iterable) else [size]
    if len(parts) != 2 or not all(re.fullmatch("0*[1-9][0-9]{0,8}", str(part)) for part in parts):
        raise ValueError(f'A size is "WIDTHxHEIGHT" in pixels, such as "96x64", not {shorten(size)}.')
    return int(parts[0]), int(parts[1])


def _extent(marked: np.ndarray) -> tuple[int, int]:
    """The first marked place, and how many from there to the last one."""
    places = np.flatnonzero(marked)
    return int(places[0]), int(places[-1] - places[0]) + 1


def _starts(marked: np.ndarray, side: int) -> list[int]:
    """Where windows begin along one axis, of which places are marked (length,) bool."""
    last, (first, extent) = len(marked) - side, _extent(marked)
    if extent <= side:
        middle = last // 2
        if middle <= first and first + extent <= middle + side:  # what is marked is inside the square at the centre
            return [middle]
        return [min(max(first + (extent - side) // 2, 0), last)]
    left, starts = marked.copy(), []
    while left.any() and len(starts) <= MAX_WINDOWS:  # a canvas of a million columns would take hours
        starts.append(_next_start(left, side))
        left[starts[-1] : starts[-1] + side] = False
    return starts


def _next_start(left: np.ndarray, side: int) -> int:
    """The window that shows most of what is left to paint, at least half over what is there; or else the first one that shows
    any."""
    before = np.concatenate(([0], np.cumsum(left)))
    new = before[side:] - before[:-side]
    anchored = np.where(new <= side // 2, new, 0)
    return int(anchored.argmax()) if anchored.any() else int(np.flatnonzero(new)[0])
