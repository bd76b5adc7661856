"""Tasks and results: a task is data together with its own score, and a result keeps every answer that made it.

A task goes through its items in batches, runs the engine, judges the output, and yields one `Example` an item. The score is
the share of correct ones, with the Wilson interval (Wilson 1927) at 95 %. A task of your own is a class with `name`,
`num_items` and `run(engine, progress)`; `evaluate` and `unimm eval --task pkg.module:Task` run it (recipes/evaluate.md).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from unimm.inference.engine import Engine

Z_95 = 1.959964
"""Standard deviations to either side that hold 95 % of a normal distribution."""

PICTURES_KEPT = 64
"""Examples of a result that keep their images, and as many wrong ones beyond: enough to look at, few enough for any size."""

Item = TypeVar("Item")


class Judgement(NamedTuple):
    """What a judge says of one answer: whether it is right, what was read in it, and why it is wrong."""

    correct: bool
    answer: str
    reason: str = ""


@dataclass(frozen=True)
class Example:
    """One item with what the model made of it.

    key: a stable name of the item. prompt: the question, or what was to be drawn. expected: the right answer, or the
    requirement in English. answer: what the model said, or what the judge reads in its drawing.
    image: (H, W, 3) uint8, what was looked at or, where `drawn`, what the model made. original: what a reconstruction is of.
    codes: (rows, columns), the codes of a reconstruction. provenance: of a drawing (`unimm.runtime.provenance`).
    """

    key: str
    prompt: str
    expected: str
    answer: str
    correct: bool
    reason: str = ""
    category: str = ""
    language: str = ""
    drawn: bool = False
    image: np.ndarray | None = field(default=None, compare=False, repr=False)
    original: np.ndarray | None = field(default=None, compare=False, repr=False)
    codes: np.ndarray | None = field(default=None, compare=False, repr=False)
    provenance: dict[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Score:
    """A share in [0, 1], how many items it is of, and its 95 % interval."""

    value: float
    count: int
    interval: tuple[float, float]

    @classmethod
    def share(cls, value: float, count: int) -> "Score":
        """The score of a share of `count` items."""
        return cls(value, count, wilson_interval(value, count))


@dataclass(frozen=True)
class Result:
    """What a task returns. details: a score for each category and language. measures: other numbers, which are no shares.

    `summarize` makes it from the examples.
    """

    name: str
    score: float
    count: int
    interval: tuple[float, float]
    details: dict[str, Score]
    examples: list[Example]
    measures: dict[str, float] = field(default_factory=dict)


class Task(Protocol):
    """Data and its own score.

    name: of the score, and of the files that are written. num_items: how many examples `run` makes.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_items(self) -> int: ...

    def run(self, engine: Engine, progress: Callable[[Example], None]) -> Result:
        """Run all items; `progress` is to be called with every example as soon as it is judged (`collect` does so)."""
        ...


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent items. ValueError: no items.

    For a mean of equally many items a category it is a little too wide, never too narrow.
    """
    if count < 1:
        raise ValueError("A score needs at least 1 item.")
    spread = Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    reach = Z_95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


class ImageRetention:
    """Says which examples keep their images: the first ones, and the first wrong ones after them."""

    def __init__(self) -> None:
        self._num_seen = self._num_wrong = 0

    def keeps(self, example: Example) -> bool:
        """Of every example in turn."""
        self._num_seen += 1
        if self._num_seen <= PICTURES_KEPT:
            return True
        self._num_wrong += not example.correct
        return not example.correct and self._num_wrong <= PICTURES_KEPT


def collect(examples: Iterable[Example], progress: Callable[[Example], None]) -> list[Example]:
    """All examples as a list, each given to `progress` as it comes; not all of them keep their images (`ImageRetention`)."""
    kept, retention = [], ImageRetention()
    for example in examples:
        progress(example)
        kept.append(example if retention.keeps(example) else replace(example, image=None, original=None, codes=None))
    return kept


def summarize(
    name: str, examples: list[Example], measures: dict[str, float] | None = None, mean_of_categories: bool = False
) -> Result:
    """The result of all examples: the share of correct ones, or the mean of the categories' shares."""
    groups: dict[str, list[bool]] = {}
    for part in ("category", "language"):
        for example in sorted(examples, key=lambda example: getattr(example, part)):
            if label := getattr(example, part):
                groups.setdefault(label, []).append(example.correct)
    details = {label: Score.share(sum(right) / len(right), len(right)) for label, right in groups.items()}
    value = sum(example.correct for example in examples) / max(len(examples), 1)
    if mean_of_categories:
        categories = {example.category for example in examples}
        value = sum(details[category].value for category in categories) / max(len(categories), 1)
    total = Score.share(value, len(examples))
    return Result(name, total.value, total.count, total.interval, details, examples, measures or {})


def split_batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    """The items in order, `size` at a time; the last batch may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
