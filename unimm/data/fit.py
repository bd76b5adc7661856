"""How a picture lies in the square that a network looks at: shrunk and padded for the vision tower, cut for the image
tokenizer. What `unimm.data.image` does with pixels, and `unimm.data.boxes` with places in them.
"""

from typing import NamedTuple

MIN_SIDE = 14
"""The shortest side that Janus shrinks to."""

KEPT = 0.9
"""The share of a box that has to be shown for it to be located."""


class Fit(NamedTuple):
    """How a picture lies in the square of `size` pixels that a network looks at: resized to (width, height), its upper left
    corner at (left, top); these are negative where the square cuts it. picture: its own width and height, upright."""

    picture: tuple[int, int]
    size: int
    width: float
    height: float
    left: float
    top: float

    def inward_x(self, x: float) -> float:
        """From a pixel of the picture to one of the square; so does `inward_y` downwards; `outward_x` and `outward_y` go back,
        never beyond the picture's edge."""
        return x * self.width / self.picture[0] + self.left

    def inward_y(self, y: float) -> float:
        return y * self.height / self.picture[1] + self.top

    def outward_x(self, x: float) -> float:
        return min(max((x - self.left) * self.picture[0] / self.width, 0.0), float(self.picture[0]))

    def outward_y(self, y: float) -> float:
        return min(max((y - self.top) * self.picture[1] / self.height, 0.0), float(self.picture[1]))

    def shows(self, box: tuple[float, float, float, float]) -> bool:
        """Whether enough of a box of the picture (`KEPT`), cut at the picture's edges, lies in the square."""
        xs, ys = ([min(max(one, 0.0), side) for one in box[axis::2]] for axis, side in enumerate(self.picture))
        left, right = (min(max(self.inward_x(x), 0.0), self.size) for x in xs)
        top, bottom = (min(max(self.inward_y(y), 0.0), self.size) for y in ys)
        area = (xs[1] - xs[0]) * self.width / self.picture[0] * (ys[1] - ys[0]) * self.height / self.picture[1]
        return (right - left) * (bottom - top) >= KEPT * area


def is_resized(picture: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) are of a picture and a resized copy of it: one shape, up to a pixel of rounding."""
    return abs(picture[0] * other[1] - picture[1] * other[0]) <= max(*picture, *other)


def fit_look(picture: tuple[int, int], size: int) -> Fit:
    """How `look` lays a picture of (width, height)."""
    longest, shortest = max(picture), min(MIN_SIDE, size)
    # Truncated as Janus does; transformers' processor rounds, and is then up to a pixel off.
    width, height = (max(int(side / longest * size), shortest) for side in picture)
    return Fit(picture, size, width, height, (size - width) // 2, (size - height) // 2)


def fit_crop(picture: tuple[int, int], size: int) -> Fit:
    """How `crop` lays a picture of (width, height)."""
    width, height = (side * size / min(picture) for side in picture)
    return Fit(picture, size, width, height, (size - width) / 2, (size - height) / 2)


def crop_box(picture: tuple[int, int], form: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest part at the centre of a picture of (width, height) pixels that has the form of
    another width and height."""
    across, down = min(picture[0], picture[1] * form[0] / form[1]), min(picture[1], picture[0] * form[1] / form[0])
    left, top = (picture[0] - across) / 2, (picture[1] - down) / 2
    return left, top, left + across, top + down
