"""Packing: every sequence once, whole, in the fewest rows that best fit finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimm.data.packing import best_fit

ROW = 192


@given(st.lists(st.integers(0, ROW), max_size=60))
def test_every_sequence_is_in_one_row_and_rows_do_not_overflow(lengths: list[int]) -> None:
    rows = best_fit(lengths, ROW)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and sum(lengths[index] for index in row) <= ROW for row in rows)
    assert rows == best_fit(iter(lengths), ROW)
    loads = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > ROW, "two rows that fit into one were not joined"


@pytest.mark.parametrize("seed", range(5))
def test_typical_lengths_fill_rows(seed: int) -> None:
    """Lengths of a step of the built-in worlds: talk of about 130, drawings of about 95, plain text of about 25."""
    rng = np.random.default_rng(seed)
    lengths = [int(n) for mean, count in ((130, 23), (95, 23), (25, 2)) for n in rng.normal(mean, 12, count)]
    rows = best_fit(lengths, 512)
    assert sum(lengths) / (512 * len(rows)) >= 0.9


def test_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"\b193\b.*\b192\b"):
        best_fit([10, 193], ROW)
