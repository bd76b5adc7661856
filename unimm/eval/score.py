"""Answers and scores: one item with what a model made of it and how that is judged, and the score of many.

A score is a value with an interval, a unit and a direction: a share of correct answers with the Wilson interval (Wilson 1927),
a mean of numbers with the normal interval, or any statistic of the answers with a bootstrap interval (Efron 1979); all at 95 %.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

Z_95 = 1.959964
"""Standard deviations to either side that hold 95 % of a normal distribution."""

SHARE = "share"
"""The unit of a score in [0, 1]: a share of correct answers, or a mean of marks between wrong and right."""

Interval = tuple[float, float]


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
    value: the item's own score, where right or wrong does not say it all, such as 0.6 of 1, or 31.2 dB; None: 1 where it is
        correct, else 0.
    numbers: further finite numbers of the item, which the score is computed from, such as its loss and its number of bytes.
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
    value: float | None = None
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def mark(self) -> float:
        """The item's own score as a number."""
        return float(self.correct) if self.value is None else self.value


Statistic = Callable[[list[Example]], float]
"""A score of examples as a whole, such as a perplexity or an F1."""


@dataclass(frozen=True)
class Score:
    """A number, how many items it is of, and its 95 % interval (None: it has none).

    unit: "share", "dB", "bits/byte", ...; what two scores that are compared have in common.
    higher_is_better: False where the lower number is the better one, as of a perplexity.
    """

    value: float
    count: int
    interval: Interval | None
    unit: str = SHARE
    higher_is_better: bool = True

    @classmethod
    def share(cls, value: float, count: int) -> "Score":
        """The score of a share of `count` items, with its Wilson interval."""
        return cls(value, count, wilson_interval(value, count))

    @classmethod
    def mean(cls, values: list[float], unit: str, higher_is_better: bool = True) -> "Score":
        """The mean of independent numbers, with the normal interval; a single one has none. ValueError: no numbers."""
        if not values:
            raise ValueError("A score needs at least 1 item.")
        value = fmean(values)
        if len(values) < 2 or not math.isfinite(value):
            return cls(value, len(values), None, unit, higher_is_better)
        reach = Z_95 * stdev(values) / math.sqrt(len(values))
        low, high = value - reach, value + reach
        interval = (max(0.0, low), min(1.0, high)) if unit == SHARE else (low, high)
        return cls(value, len(values), interval, unit, higher_is_better)

    @classmethod
    def bootstrap(
        cls,
        examples: list[Example],
        statistic: Statistic,
        unit: str,
        higher_is_better: bool = True,
        num_resamples: int = 1000,
    ) -> "Score":
        """A statistic of all examples; its interval holds 95 % of what it is of resamples with replacement.

        num_resamples: 0: no interval. The resamples are the same at every call.

        Raises:
            ValueError: no examples.
        """
        if not examples:
            raise ValueError("A score needs at least 1 item.")
        value, interval = statistic(examples), None
        if num_resamples and len(examples) > 1:
            rng, num = np.random.default_rng(len(examples)), len(examples)
            resamples = (rng.integers(num, size=num).tolist() for _ in range(num_resamples))
            found = [statistic([examples[place] for place in places]) for places in resamples]
            finite = [one for one in found if math.isfinite(one)]
            if finite:
                low, high = np.quantile(finite, [0.025, 0.975]).tolist()
                interval = (low, high)
        return cls(value, len(examples), interval, unit, higher_is_better)

    def plain(self) -> dict[str, Any]:
        """As scores.json has it; what is not finite is None."""
        return {
            "score": finite_or_none(self.value),
            "interval": None if self.interval is None else [finite_or_none(end) for end in self.interval],
            "count": self.count,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
        }

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Score":
        """Of what `plain` gives; an older unimm, whose scores were all shares, wrote neither unit nor direction."""
        value, interval = content["score"], content.get("interval")
        return cls(
            math.nan if value is None else value,
            content["count"],
            None if interval is None or None in interval else (interval[0], interval[1]),
            content.get("unit", SHARE),
            content.get("higher_is_better", True),
        )


def wilson_interval(share: float, count: int) -> Interval:
    """The 95 % interval of a share of `count` independent items. ValueError: no items.

    For a mean of equally many items a category it is a little too wide, never too narrow.
    """
    if count < 1:
        raise ValueError("A score needs at least 1 item.")
    spread = Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    reach = Z_95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def finite_or_none(value: float) -> float | None:
    """The number, or None where JSON has none such."""
    return value if math.isfinite(value) else None
