"""Grids of codes: how many rows and columns of them an image has, which its form follows from.

An image tokenizer is convolutional, so one that was made for squares gives any grid. A model that was taught to draws other
grids than its own (`PromptFormat.sizes`): the prompt names rows and columns before the first code, so it knows where a row
ends.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

MAX_CODES_A_SIDE = 1024


class Grid(NamedTuple):
    """Rows and columns of codes."""

    rows: int
    columns: int

    @classmethod
    def read(cls, value: Any) -> Self:
        """A grid as "ROWSxCOLUMNS", or a pair. ValueError: it is neither."""
        parts = value.lower().split("x") if isinstance(value, str) else value
        try:
            rows, columns = (int(part) for part in parts if re.fullmatch("[0-9]{1,4}", str(part)))
            is_right = len(parts) == 2 and 0 < rows <= MAX_CODES_A_SIDE and 0 < columns <= MAX_CODES_A_SIDE
        except (TypeError, ValueError):
            is_right, rows, columns = False, 0, 0
        if not is_right:
            raise ValueError(f'A grid of codes is "ROWSxCOLUMNS", such as "8x12", not {value!r}.')
        return cls(rows, columns)

    @property
    def num_codes(self) -> int:
        """Codes of an image."""
        return self.rows * self.columns

    @property
    def name(self) -> str:
        """As the prompt names it."""
        return f"{self.rows}x{self.columns}"

    def in_pixels(self, pixels_a_code: int) -> str:
        """The size of its image, "WIDTHxHEIGHT", as users write it."""
        return f"{self.columns * pixels_a_code}x{self.rows * pixels_a_code}"


def choose_grid(size: Any, own: Grid, pixels_a_code: int, taught: Iterable[str]) -> Grid:
    """The grid of an image of a size.

    Args:
        size: (width, height) in pixels, or "WIDTHxHEIGHT"; None: the model's own.
        own: grid of the model. taught: further ones by name (`PromptFormat.sizes`).

    Raises:
        ValueError: the model draws no such size; says which it does.
    """
    if size is None:
        return own
    grids = {grid.in_pixels(pixels_a_code): grid for grid in (own, *map(Grid.read, taught))}
    asked = size.lower() if isinstance(size, str) else "x".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
    if asked not in grids:
        more = "" if len(grids) > 1 else ", and was taught no other size (recipes/sizes.md)"
        raise ValueError(f"This model draws {', '.join(grids)}{more}: ask for one of them, WIDTHxHEIGHT, not {size!r}.")
    return grids[asked]
