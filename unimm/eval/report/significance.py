"""Whether two models differ by more than chance on the same items.

    shares     McNemar's exact test (1947): of the items that only one has right, does each have as many?
    others     paired bootstrap (Koehn 2004, EMNLP): does the mean difference change its sign when items are drawn again?
    several    Holm (1979): p values that hold for all of them together

Items are what chance is counted over: another seed of the training is another model, and its chance is not in here.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 10_000
DRAWN_AT_ONCE = 2_000_000
"""Numbers in memory: there may be as many values as items."""

MCNEMAR, BOOTSTRAP = "McNemar", "bootstrap"


class Difference(NamedTuple):
    """How much higher the second model scores, over the items that both have.

    interval: of 95 %, by the bootstrap. p: two-sided. test: which one. num_items: that both have.
    """

    value: float
    interval: tuple[float, float]
    p: float
    test: str
    num_items: int


def compare_items(before: Iterable[float], now: Iterable[float]) -> Difference:
    """Two models' values of the same items, in the same order: 0 or 1 where they are wrong or right, else any numbers.

    Raises:
        ValueError: they are not as many, or there are none.
    """
    one, other = np.asarray(list(before), dtype=float), np.asarray(list(now), dtype=float)
    if one.shape != other.shape or not one.size:
        raise ValueError(f"Values of the same items are as many on both sides, and some, not {one.size} and {other.size}.")
    means = _resampled_means(other - one)
    low, high = np.quantile(means, [0.025, 0.975])
    is_share = all(np.isin(values, (0.0, 1.0)).all() for values in (one, other))
    p = mcnemar(int((one > other).sum()), int((other > one).sum())) if is_share else _sign_changes(means)
    test = MCNEMAR if is_share else BOOTSTRAP
    return Difference(float((other - one).mean()), (float(low), float(high)), p, test, one.size)


def mcnemar(num_lost: int, num_won: int) -> float:
    """The two-sided p value of McNemar's exact test: items that only the first, and only the second model has right."""
    from scipy.stats import binomtest

    return float(binomtest(num_won, num_lost + num_won, 0.5).pvalue) if num_lost + num_won else 1.0


def holm(p_values: Iterable[float]) -> list[float]:
    """p values, in the same order, such that with all those below 0.05 at most one time in twenty any is there by chance."""
    given = list(p_values)
    adjusted, highest = [1.0] * len(given), 0.0
    for place, index in enumerate(sorted(range(len(given)), key=given.__getitem__)):
        highest = max(highest, min(1.0, (len(given) - place) * given[index]))
        adjusted[index] = highest
    return adjusted


def _resampled_means(differences: np.ndarray) -> np.ndarray:
    """The mean of as many items drawn again with repetition, many times: by how often each value is drawn."""
    values, counts = np.unique(differences, return_counts=True)
    rng, num, shares = np.random.default_rng(0), differences.size, counts / differences.size
    step = max(1, DRAWN_AT_ONCE // values.size)
    sizes = (min(step, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, step))
    return np.concatenate([rng.multinomial(num, shares, size=size) @ values / num for size in sizes])


def _sign_changes(means: np.ndarray) -> float:
    """Two-sided, never 0: of so many resamples one more could have been on the other side."""
    least = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (least + 1) / (means.size + 1))
