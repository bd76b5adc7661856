"""Tasks and results: a task is data together with its own score, and a result keeps every answer that made it.

A task of your own is an `ItemTask`: `ask(engine, items)` answers some of its items, and `score(examples)` scores them all. The
runner then goes on after the answers that are on disk, and shares the items among processes. A class that has only `name`,
`num_items` and `run(engine, progress)` is a task, too, which starts again from its beginning (recipes/evaluate.md).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from unimm.eval.score import SHARE, Example, Interval, Judgement, Score, Statistic, finite_or_none, wilson_interval
from unimm.inference.engine import Engine

__all__ = [
    "SHARE",
    "Example",
    "ItemTask",
    "Judgement",
    "Result",
    "Score",
    "Statistic",
    "Task",
    "collect",
    "split_batches",
    "summarize",
    "wilson_interval",
]

PICTURES_KEPT = 64
"""Examples of a result that keep their images, and as many wrong ones beyond: enough to look at, few enough for any size."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Result:
    """What a task returns. `summarize` makes it from the examples.

    score, count, interval, unit, higher_is_better: as a `Score` has them (`total`).
    details: a score for each category and language.
    other_scores: further scores of the same answers, such as precision and recall, or PSNR.
    measures: numbers beside them that have no interval, such as settings, or the accuracy of the judge.
    """

    name: str
    score: float
    count: int
    interval: Interval | None
    details: dict[str, Score]
    examples: list[Example]
    measures: dict[str, float] = field(default_factory=dict)
    unit: str = SHARE
    higher_is_better: bool = True
    other_scores: dict[str, Score] = field(default_factory=dict)

    @property
    def total(self) -> Score:
        """The score itself."""
        return Score(self.score, self.count, self.interval, self.unit, self.higher_is_better)

    def plain(self) -> dict[str, Any]:
        """All numbers as scores.json has them, without the examples."""
        return {
            **self.total.plain(),
            "details": {label: score.plain() for label, score in self.details.items()},
            "other_scores": {label: score.plain() for label, score in self.other_scores.items()},
            "measures": {key: finite_or_none(value) for key, value in self.measures.items()},
        }

    @classmethod
    def read(cls, name: str, content: dict[str, Any], examples: list[Example]) -> "Result":
        """Of what `plain` gives."""
        return result_of(
            name,
            Score.read(content),
            examples,
            {label: Score.read(one) for label, one in content["details"].items()},
            {key: math.nan if value is None else value for key, value in content["measures"].items()},
            {label: Score.read(one) for label, one in content.get("other_scores", {}).items()},
        )


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


class ItemTask:
    """A task whose items are answered in any order and by any process: what the runner can resume and share out.

    A subclass has `name` and `num_items`, and `ask`; `score` where it is more than a share of correct answers. batch_size:
    items that are asked at once, where nobody says.
    """

    name: Any
    num_items: Any
    batch_size: int = 64

    def ask(self, engine: Engine, items: list[int]) -> Iterable[Example]:
        """The examples of these items, numbers in [0, num_items), in their order. What an item is, and the noise of its
        drawing, depends on its number alone."""
        raise NotImplementedError

    def score(self, examples: list[Example]) -> Result:
        """The result of all examples, in the order of the items; not of their `image`, `original` and `provenance`."""
        return summarize(self.name, examples)

    def run(self, engine: Engine, progress: Callable[[Example], None]) -> Result:
        """Ask all items in batches, and score them."""
        batches = split_batches(list(range(self.num_items)), self.batch_size)
        return self.score(collect((example for items in batches for example in self.ask(engine, items)), progress))


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
        kept.append(example if retention.keeps(example) else replace(example, image=None, original=None))
    return kept


def summarize(
    name: str,
    examples: list[Example],
    measures: dict[str, float] | None = None,
    mean_of_categories: bool = False,
    *,
    unit: str = SHARE,
    higher_is_better: bool = True,
    statistic: Statistic | None = None,
    other_scores: dict[str, Score] | None = None,
) -> Result:
    """The result of all examples: the share of correct ones, the mean of their values where they have some, or a statistic of
    them; and the same for each category and language.

    Args:
        mean_of_categories: the score is the mean of the categories' scores; its interval is that of a share, or there is none.
        statistic: of any examples; its interval is a bootstrap's. Those of categories have none.
    """

    def score(some: list[Example], num_resamples: int) -> Score:
        if statistic is not None:
            return Score.bootstrap(some, statistic, unit, higher_is_better, num_resamples)
        if all(example.value is None for example in some):
            return Score.share(sum(example.correct for example in some) / max(len(some), 1), len(some))
        return Score.mean([example.mark for example in some], unit, higher_is_better)

    groups: dict[str, list[Example]] = {}
    for part in ("category", "language"):
        for example in sorted(examples, key=lambda example: getattr(example, part)):
            if label := getattr(example, part):
                groups.setdefault(label, []).append(example)
    details = {label: score(some, 0) for label, some in groups.items()}
    if mean_of_categories and examples:
        categories = {example.category for example in examples}
        value = sum(details[category].value for category in categories) / len(categories)
        interval = wilson_interval(value, len(examples)) if unit == SHARE else None
        total = Score(value, len(examples), interval, unit, higher_is_better)
    else:
        total = score(examples, 1000)
    return result_of(name, total, examples, details, measures, other_scores)


def result_of(
    name: str,
    total: Score,
    examples: list[Example],
    details: dict[str, Score] | None = None,
    measures: dict[str, float] | None = None,
    other_scores: dict[str, Score] | None = None,
) -> Result:
    """A result with this score."""
    numbers = (details or {}, examples, measures or {})
    return Result(
        name, total.value, total.count, total.interval, *numbers, total.unit, total.higher_is_better, other_scores or {}
    )


def split_batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    """The items in order, `size` at a time; the last batch may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
