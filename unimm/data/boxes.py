"""Boxes and points as text: the one place that writes them into prompts and answers, reads them back, and knows how pixels of
the picture that a user gave lie in the square that the model looks at.

    short, 64 bins     12 07 33 28, 40 41 50 52            x1 y1 x2 y2 of each box; every number has the same digits
    qwen, 1000 bins    (120,70),(330,280); (5,5),(90,40)   corners, as Qwen-VL writes them (arXiv 2308.12966), as plain text
    both               none                                 it is not there

A number counts bins of the square from its left or top edge, 0 to bins - 1: the nearest one to coordinate / size * (bins - 1).
Boxes stand from left to right. Points are pairs of numbers. Reading is strict: any other text, a number out of range, a box
without area or with its corners exchanged is an error. Which form a model writes, and with how many bins, is part of its
`PromptFormat`. No special tokens are used, so that any text tokenizer and any trained model will do.

Boxes of other people's data are read in three more forms (`rewrite`): Qwen-VL's `<ref>words</ref><box>(x1,y1),(x2,y2)</box>`
and InternVL's `<ref>words</ref><box>[[x1, y1, x2, y2]]</box>`, in thousandths of the picture, and LLaVA's
`[0.1, 0.2, 0.5, 0.9]`, in shares of the padded square.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from unimm.data.fit import Fit, fit_look
from unimm.data.records import PixelBox

NONE = "none"
"""The answer where nothing is there."""

SEPARATORS = {"short": ", ", "qwen": "; "}
FORMS = tuple(SEPARATORS)
FOREIGN = ("qwen", "internvl", "llava")
"""Whose boxes `rewrite` reads."""

OUTSIDE = 1.0
"""Pixels that a box of a data set may stick out of its picture: those of COCO do so by a rounding."""


@dataclass(frozen=True)
class Box:
    """A box in pixels of a picture: left, top, right and bottom edge, x to the right and y downwards, the last two exclusive.

    score: from 0 to 1, how likely the model found the text of this box (the geometric mean over its tokens). label: the phrase
        that it was asked for.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    score: float = 1.0
    label: str = ""

    @property
    def corners(self) -> PixelBox:
        """(x1, y1, x2, y2)."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y)."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2


@dataclass(frozen=True)
class Point:
    """A point in pixels of a picture; score and label as of a `Box`."""

    x: float
    y: float
    score: float = 1.0
    label: str = ""


def iou(a: PixelBox, b: PixelBox) -> float:
    """Intersection over union of two boxes, from 0 to 1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def check_box(box: Any, size: tuple[int, int], outside: float = 0.0) -> PixelBox:
    """A box (x1, y1, x2, y2) of a picture of `size` (width, height), cut at its edges. outside: pixels that it may stick out.

    Raises:
        ValueError: it is none, has no area, its corners are exchanged, or it sticks out further.
    """
    x1, y1, x2, y2 = _numbers(box, 4, "A box is four numbers, x1, y1, x2, y2 in pixels")
    width, height = size
    if x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"The box {_shown(box)} has no area: give left, top, right, bottom with left < right and top < bottom."
        )
    if min(x1, y1) < -outside or x2 > width + outside or y2 > height + outside:
        raise ValueError(f"The box {_shown(box)} reaches out of the picture of {width}x{height} px: give one inside it.")
    cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise ValueError(f"The box {_shown(box)} lies beside the picture of {width}x{height} px: give one inside it.")
    return cut


def check_point(point: Any, size: tuple[int, int]) -> tuple[float, float]:
    """A point (x, y) of a picture of `size`. ValueError: it is none, or lies outside."""
    x, y = _numbers(point, 2, "A point is two numbers, x, y in pixels")
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        raise ValueError(
            f"The point {_shown(point)} lies outside of the picture of {size[0]}x{size[1]} px: give one inside it."
        )
    return x, y


def _numbers(given: Any, count: int, what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(one) for one in given)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{what}, not {str(given)[:60]}.")
    return numbers


def _shown(numbers: Iterable[Any]) -> str:
    return "(" + ", ".join(f"{float(one):g}" for one in numbers) + ")"


@dataclass(frozen=True)
class BoxText:
    """How boxes and points are written. Raises ValueError for a form or a number of bins that there is not.

    form: one of `FORMS`. bins: of a coordinate, 2 to 10,000.
    """

    form: str
    bins: int

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"Boxes are written in the form {' or '.join(FORMS)}, not '{self.form}'.")
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or not 2 <= self.bins <= 10_000:
            raise ValueError(f"box_bins is a whole number from 2 to 10,000, not {self.bins!r}.")

    def write(self, boxes: Iterable[PixelBox], fit: Fit) -> str:
        """Boxes of a picture that lies in the square as `fit` says, as text."""
        return self._joined({self._bins_of_box(box, fit) for box in boxes})

    def write_points(self, points: Iterable[tuple[float, float]], fit: Fit) -> str:
        """As `write`, of points."""
        found = ((self._bin(fit.inward_x(x), fit.size), self._bin(fit.inward_y(y), fit.size)) for x, y in points)
        return self._joined(set(found))

    def read(self, text: str, fit: Fit) -> list[tuple[PixelBox, int, int]]:
        """Boxes in pixels of the picture, cut at its edges, each with where its text begins and ends; none for "none".

        Raises:
            ValueError: the text is anything else than boxes.
        """
        found = []
        for numbers, start, stop in self._parts(text, 4):
            if numbers[2] <= numbers[0] or numbers[3] <= numbers[1]:
                raise ValueError(f"The box {text[start:stop]!r} has no area.")
            x1, y1, x2, y2 = self._outward(numbers, fit)
            if x2 <= x1 or y2 <= y1:
                raise ValueError(f"The box {text[start:stop]!r} lies beside the picture.")
            found.append(((x1, y1, x2, y2), start, stop))
        return found

    def read_points(self, text: str, fit: Fit) -> list[tuple[tuple[float, float], int, int]]:
        """As `read`, of points."""
        found = []
        for numbers, start, stop in self._parts(text, 2):
            x, y = self._outward(numbers, fit)
            found.append(((x, y), start, stop))
        return found

    def cut(self, text: str) -> str:
        """A text that was cut short, without what it had begun last."""
        return text.rpartition(SEPARATORS[self.form])[0]

    def longest(self, count: int) -> str:
        """A text of so many boxes, to count the tokens that they need."""
        return SEPARATORS[self.form].join([self._one((self.bins - 1,) * 4)] * count)

    def _bin(self, place: float, size: int) -> int:
        return min(max(round(place / size * (self.bins - 1)), 0), self.bins - 1)

    def _bins_of_box(self, box: PixelBox, fit: Fit) -> tuple[int, ...]:
        """No box is written without area: what is smaller than a bin takes a whole one, of which some lies in the picture."""
        x1, x2 = (self._bin(fit.inward_x(x), fit.size) for x in (box[0], box[2]))
        y1, y2 = (self._bin(fit.inward_y(y), fit.size) for y in (box[1], box[3]))
        x1, x2 = self._apart(x1, x2, fit.inward_x(fit.picture[0]) / fit.size)
        y1, y2 = self._apart(y1, y2, fit.inward_y(fit.picture[1]) / fit.size)
        return x1, y1, x2, y2

    def _apart(self, low: int, high: int, end: float) -> tuple[int, int]:
        """end: where the picture ends, as a share of the square: a box that began there would read as one beside it."""
        if high > low:
            return low, high
        is_last = low >= min(end, 1.0) * (self.bins - 1) - 1e-6
        return (low - 1, low) if is_last else (low, low + 1)

    def _joined(self, found: set[tuple[int, ...]]) -> str:
        return SEPARATORS[self.form].join(map(self._one, sorted(found))) or NONE

    def _one(self, numbers: tuple[int, ...]) -> str:
        if self.form == "qwen":
            return ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
        return " ".join(f"{one:0{len(str(self.bins - 1))}}" for one in numbers)

    def _parts(self, text: str, count: int) -> list[tuple[tuple[int, ...], int, int]]:
        """The numbers of each box or point, and where it stands in the text."""
        if text == NONE:
            return []
        found, start = [], 0
        for piece in text.split(SEPARATORS[self.form]):
            match = re.fullmatch(self._pattern(count), piece, re.ASCII)
            numbers = tuple(map(int, match.groups())) if match else ()
            if not numbers or max(numbers) >= self.bins:
                raise ValueError(f"{text[:60]!r} is no list of {'boxes' if count == 4 else 'points'} below {self.bins}.")
            found.append((numbers, start, start + len(piece)))
            start += len(piece) + len(SEPARATORS[self.form])
        return found

    def _pattern(self, count: int) -> str:
        if self.form == "qwen":
            return ",".join([r"\((\d{1,4}),(\d{1,4})\)"] * (count // 2))
        return " ".join([rf"(\d{{{len(str(self.bins - 1))}}})"] * count)

    def _outward(self, numbers: tuple[int, ...], fit: Fit) -> tuple[float, ...]:
        places = [one / (self.bins - 1) * fit.size for one in numbers]
        return tuple(fit.outward_y(one) if number % 2 else fit.outward_x(one) for number, one in enumerate(places))


_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"
_CORNERS = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)")
_LISTED = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_TAGGED = re.compile(r"\s*<box>(.*?)</box>\s*", re.DOTALL)
_SHARES = re.compile(r"\s*\[\s*[01](?:\.\d+)?(?:\s*,\s*[01](?:\.\d+)?){3}\s*\]\s*")
_WORDS = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)
_STRAY = re.compile(r"</?(?:ref|box|quad)>")


def has_boxes(text: str, form: str) -> bool:
    """Whether a text holds boxes in a foreign form."""
    return bool((_SHARES if form == "llava" else _TAGGED).search(text))


def rewrite(text: str, form: str, boxes: BoxText, fit: Fit) -> str:
    """A text of another tool's data with its boxes as our model writes them.

    Args:
        form: one of `FOREIGN`. fit: how the picture lies in the square.

    Raises:
        ValueError: there is no such form, what is marked as boxes are none, or one lies outside of what the square shows.
    """
    if form not in FOREIGN:
        raise ValueError(f"Boxes in texts are read in the forms {', '.join(FOREIGN)}, not '{form}'.")
    if form == "llava":
        return _SHARES.sub(lambda found: f" {boxes.write(_foreign_boxes(found[0], form, fit), fit)} ", text).strip()
    plain = _WORDS.sub(lambda found: found[1].strip(), text)
    # Neighbouring tags are boxes of one phrase.
    joined = re.sub(r"</box>\s*,?\s*<box>", "", plain)
    written = _TAGGED.sub(lambda found: f" {boxes.write(_foreign_boxes(found[1], form, fit), fit)} ", joined)
    if _STRAY.search(written):
        raise ValueError(f"{text[:60]!r} has a tag of boxes that is not closed: mend it.")
    return re.sub(r" +([.,;:?!。，；：？！])", r"\1", re.sub(r" {2,}", " ", written)).strip()


def _foreign_boxes(held: str, form: str, fit: Fit) -> list[PixelBox]:
    """What stands in a tag, or a list of shares, as pixels of the picture."""
    pattern = _CORNERS if form == "qwen" else _LISTED
    found = [tuple(map(float, one)) for one in pattern.findall(held)]
    if not found or pattern.sub("", held).strip(" ,;[]\n"):
        raise ValueError(f"{held[:60]!r} is no list of boxes in the form of {form}: mend it, or name another form.")
    boxes, padded = [], fit_look(fit.picture, fit.size)
    for numbers in found:
        if form == "llava":
            xs, ys = ([fit.size * one for one in numbers[start::2]] for start in (0, 1))
            numbers = (padded.outward_x(xs[0]), padded.outward_y(ys[0]), padded.outward_x(xs[1]), padded.outward_y(ys[1]))
        else:
            numbers = tuple(one / 1000 * side for one, side in zip(numbers, fit.picture * 2, strict=True))
        boxes.append(check_box(numbers, fit.picture, OUTSIDE))
        if not fit.shows(boxes[-1]):
            raise ValueError(f"The box {_shown(boxes[-1])} lies outside of the part of the picture that this model sees.")
    return boxes
