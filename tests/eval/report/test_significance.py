"""Differences that chance does not explain: exact where shares are compared, and no more often claimed than promised."""

import numpy as np
import pytest

from unimm.eval.report.significance import BOOTSTRAP, MCNEMAR, compare_items, holm, mcnemar


def test_mcnemars_test_is_the_binomial_one() -> None:
    assert mcnemar(1, 9) == mcnemar(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(3, 3) == 1.0 and mcnemar(0, 0) == 1.0


def test_items_that_both_have_right_or_wrong_say_nothing() -> None:
    before, now = [1] * 40 + [0] * 9 + [1] + [0] * 50, [1] * 40 + [1] * 9 + [0] + [0] * 50
    found = compare_items(before, now)
    assert (found.value, found.test, found.num_items) == (pytest.approx(0.08), MCNEMAR, 100)
    assert found.p == pytest.approx(2 * 11 / 2**10)
    assert found.interval[0] < 0.08 < found.interval[1] and found.interval[0] > 0
    back = compare_items(now, before)
    assert (back.value, back.p) == (pytest.approx(-0.08), found.p)


def test_other_numbers_go_through_the_bootstrap() -> None:
    values = np.random.default_rng(0).random(60)
    better = compare_items(values, values + 0.02)
    assert better.test == BOOTSTRAP and 0 < better.p < 0.001 and better.value == pytest.approx(0.02)
    assert compare_items(values, values).p == 1.0
    with pytest.raises(ValueError, match="as many on both sides, and some, not 2 and 1"):
        compare_items([1, 0], [1])
    with pytest.raises(ValueError, match="and some, not 0 and 0"):
        compare_items([], [])


def test_intervals_and_tests_keep_their_promise() -> None:
    """Of models that are equally good, one in twenty differs; of others the true difference lies in the interval."""
    rng = np.random.default_rng(0)
    covered = claimed = 0
    for _ in range(100):
        hard = rng.random(80)
        one, same, better = (rng.random((3, 80)) < np.stack([hard, hard, np.minimum(1, hard + 0.1)])).astype(float)
        claimed += compare_items(one, same).p < 0.05
        low, high = compare_items(one, better).interval
        covered += low <= np.minimum(1, hard + 0.1).mean() - hard.mean() <= high
    assert claimed <= 10 and covered >= 88


def test_several_at_once_are_held_to_more() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == [] and holm([0.2]) == [0.2]
