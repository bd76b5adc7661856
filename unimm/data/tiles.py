"""Large pictures as tiles: a picture is cut into a grid of squares that the vision tower looks at one by one, and, where there
is more than one, a thumbnail of the whole. The grid is the one whose aspect ratio is nearest to the picture's, as in InternVL
1.5 (arXiv 2404.16821, section 3.3; `dynamic_preprocess` of OpenGVLab/InternVL).

    1,800 x 900 px, tiles of 448 px, at most 12     ->  4 x 2 tiles, each a square of 448 px, and the thumbnail

Which grid a picture gets depends on its size alone, which is read from the head of its file (`unimm.data.image.image_size`).
So a training is planned without decoding anything, and a picture is decoded once for all of its tiles.

H, W: pixels of a tile, both the side of the square that the tower looks at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.image import decode_image, image_size, look_uint8
from unimm.data.image_forms import ImageError, channels_first, plain_form
from unimm.data.records import ImageLike, SeenImage, UnreadImage
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Segment

MOST_TILES = 256
"""Tiles that a picture may be cut into at most, whatever is asked for."""

MAX_ASPECT = 200
"""A picture that is longer than so many times its width (or the other way round) is refused, as in Qwen2-VL."""

LINE = "\n"
"""Between rows of tiles, and before the thumbnail."""

Grid = tuple[int, int]
"""Columns and rows."""


@dataclass(frozen=True)
class Tiles:
    """How large pictures are cut into tiles.

    max_tiles, min_tiles: of a picture, without its thumbnail. thumbnail: show the whole picture behind its tiles, where there
        is more than one.

    Raises ValueError for numbers that are none, or of which the smaller one is larger.
    """

    max_tiles: int = 12
    min_tiles: int = 1
    thumbnail: bool = True

    def __post_init__(self) -> None:
        check_whole(self, 1, "max_tiles", "min_tiles")
        if self.min_tiles > self.max_tiles or self.max_tiles > MOST_TILES:
            raise ValueError(
                f"A picture has min_tiles to max_tiles tiles, at most {MOST_TILES}, not {self.min_tiles} to {self.max_tiles}."
            )
        if not isinstance(self.thumbnail, bool):
            raise ValueError(f"tiles.thumbnail is true or false, not {self.thumbnail!r}.")

    @property
    def most_images(self) -> int:
        """Squares that the vision tower looks at for one picture, at most."""
        return self.max_tiles + (self.thumbnail and self.max_tiles > 1)

    def check_room(self, num_positions: int, most: int) -> None:
        """Raises ValueError where the tiles of one picture, of so many positions each, may leave no room for a word."""
        if (taken := self.most_images * num_positions) >= most:
            raise ValueError(
                f"A picture may take {self.most_images} tiles of {num_positions} positions (its thumbnail is one), {taken:,}"
                f" in all, and the model was made for {most:,}: lower tiles.max_tiles, let a tile take fewer "
                f"(projector=pixel_shuffle), or make the model for more (model.trunk.max_position_embeddings)."
            )

    def grid(self, width: int, height: int, side: int) -> Grid:
        """The grid of a picture of width x height px in tiles of `side` px: the one with the nearest aspect ratio; of several
        that are as near, the largest one that the picture fills half of, so that small pictures are not blown up."""
        grids = _grids(self.min_tiles, self.max_tiles)
        off = [abs(width / height - columns / rows) for columns, rows in grids]
        nearest = [grid for grid, distance in zip(grids, off, strict=True) if distance == min(off)]
        filled = [grid for grid in nearest if width * height > 0.5 * side * side * grid[0] * grid[1]]
        return filled[-1] if filled else nearest[0]


class TiledImage:
    """A picture in tiles, row by row from the top left, and behind them its thumbnail where it has one; not decoded yet.

    Its first tile that is opened decodes it; the others are kept until each was opened once. A picture of one tile is looked at
    as any picture is: shrunk and padded, not stretched.

    image: it is not decoded here, but what can be read only once (a file object) is read. side: H and W of a tile in pixels.

    Raises ImageError (a ValueError) for what is no image, or too long and narrow; and ValueError for stored features.
    """

    def __init__(self, image: ImageLike, tiles: Tiles, side: int) -> None:
        if isinstance(image, SeenImage):
            raise ValueError(
                "Stored features are of pictures looked at as one square, and this model sees tiles: leave features out."
            )
        self.image: Any = image if isinstance(image, UnreadImage) else plain_form(image)
        self.side = side
        self.size = width, height = image_size(self.image)
        if max(self.size) > MAX_ASPECT * min(self.size):
            raise ImageError(
                f"Cannot use the image: {width}x{height} is more than {MAX_ASPECT} times as long as it is wide, and tiles show "
                "nothing of it: cut it into pieces."
            )
        self.grid = tiles.grid(width, height, side)
        self.num_tiles = self.grid[0] * self.grid[1]
        self.has_thumbnail = tiles.thumbnail and self.num_tiles > 1
        self._waiting: dict[int, np.ndarray] = {}

    def segments(self, encode: Callable[[str], list[int]], num_positions: int) -> tuple[Segment, ...]:
        """The picture in a sequence: of one tile its pixels alone; else each tile behind its number, a row of them a line, and
        the thumbnail on the last one.

        encode: gives the ids of a text. num_positions: of a tile.
        """
        shown = [
            Segment.look(partial(self.open, number), num_positions, condition="image")
            for number in range(self.num_tiles + self.has_thumbnail)
        ]
        if self.num_tiles == 1:
            return tuple(shown)
        names = [f"{'' if number % self.grid[0] or not number else LINE}{number + 1}" for number in range(self.num_tiles)]
        marks = [Segment.text(encode(name)) for name in (*names, LINE)]
        return tuple(segment for pair in zip(marks, shown, strict=False) for segment in pair)

    def open(self, number: int) -> np.ndarray:
        """Pixels (3, H, W) uint8 of a tile, or, behind the last one, of the thumbnail.

        Raises:
            ImageError: the picture cannot be decoded, or is another than when its size was read.
        """
        square = self._waiting.pop(number, None)
        if square is None:
            cut = dict(enumerate(self._cut()))
            square = cut.pop(number)
            self._waiting = cut
        return square

    def _cut(self) -> list[np.ndarray]:
        """Tiles and the thumbnail."""
        picture = decode_image(self.image)
        if picture.size != self.size:
            raise ImageError(
                f"Cannot use the image: it is {picture.width}x{picture.height}, and its tiles were counted for {self.size[0]}x"
                f"{self.size[1]}: it has changed since, or its orientation stands behind its pixels; save it again."
            )
        if self.num_tiles == 1:
            return [look_uint8(picture, self.side)]
        (columns, rows), side = self.grid, self.side
        whole = np.asarray(picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC))
        cut = whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        return [*map(channels_first, cut), *([look_uint8(picture, side)] if self.has_thumbnail else [])]


@lru_cache(maxsize=64)
def _grids(least: int, most: int) -> tuple[Grid, ...]:
    """All grids of so many tiles, those of fewer tiles first."""
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return tuple(sorted((grid for grid in grids if grid[0] * grid[1] >= least), key=lambda grid: (grid[0] * grid[1], grid[0])))
