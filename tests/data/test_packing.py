"""Packing: every sequence once, whole, in the fewest rows that best fit finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimm.data.packing import best_fit, fill_rows

ROW = 192
LENGTHS = st.lists(st.integers(0, ROW), max_size=60)


@given(LENGTHS)
def test_every_sequence_is_in_one_row_and_rows_do_not_overflow(lengths: list[int]) -> None:
    rows = best_fit(lengths, ROW)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and sum(lengths[index] for index in row) <= ROW for row in rows)
    assert rows == best_fit(iter(lengths), ROW)
    loads = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > ROW, "two rows that fit into one were not joined"


@given(LENGTHS)
def test_each_sequence_goes_where_it_leaves_least(lengths: list[int]) -> None:
    """The definition of best fit, word by word, beside the one that searches a sorted list."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        left = [ROW - sum(lengths[other] for other in row) - lengths[index] for row in rows]
        fitting = [row for row in range(len(rows)) if left[row] >= 0]
        if fitting:
            rows[min(fitting, key=lambda row: (left[row], row))].append(index)
        else:
            rows.append([index])
    assert [sorted(row) for row in rows] == best_fit(lengths, ROW)


@given(LENGTHS, st.integers(1, 12))
def test_filled_rows_hold_the_first_sequences_and_no_more_than_fit(lengths: list[int], num_rows: int) -> None:
    rows = fill_rows(lengths, ROW, num_rows)
    assert len(rows) == num_rows
    taken = sorted(index for row in rows for index in row)
    assert taken == list(range(len(taken)))
    assert all(sum(lengths[index] for index in row) <= ROW for row in rows)
    if len(taken) < len(lengths):
        assert len(best_fit(lengths, ROW)) > num_rows
        assert len(taken) >= num_rows, "no row stays empty while there is more"


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
