"""Packing: sequences of many lengths -> rows of T positions with little left over. Sequences are never cut."""

from bisect import bisect_left, insort
from collections.abc import Iterable


def best_fit(lengths: Iterable[int], num_positions: int) -> list[list[int]]:
    """Best-fit decreasing: which sequences share a row.

    Args:
        lengths: the length of every sequence.
        num_positions: T, the length of a row.

    Returns:
        For each row the indices of its sequences, in their original order; deterministic.

    Raises:
        ValueError: a sequence is longer than a row.
    """
    order = sorted(enumerate(lengths), key=lambda item: (-item[1], item[0]))
    if order:
        check_length(order[0][1], num_positions, "A sequence")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (positions left, row), ascending: the first that suffices fits best
    for index, length in order:
        place = bisect_left(room, (length, 0))
        left, row = room.pop(place) if place < len(room) else (num_positions, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(room, (left - length, row))
    return [sorted(row) for row in rows]


def fill_rows(lengths: list[int], num_positions: int, num_rows: int) -> list[list[int]]:
    """As many of the first sequences as best fit brings into `num_rows` rows.

    Args:
        lengths: the length of every sequence, in the order in which they are wanted.
        num_positions: T, the length of a row.
        num_rows: how many rows there are.

    Returns:
        For each row the indices of its sequences: together 0, 1, 2, ... without a gap. Rows that are not needed are empty.

    Raises:
        ValueError: a sequence is longer than a row.
    """
    low, high = 0, len(lengths)  # the first `low` fit; what more than `high` do is not asked
    while low < high:
        middle = (low + high + 1) // 2
        if len(best_fit(lengths[:middle], num_positions)) <= num_rows:
            low = middle
        else:
            high = middle - 1
    rows = best_fit(lengths[:low], num_positions)
    return rows + [[] for _ in range(num_rows - len(rows))]


def check_length(length: int, num_positions: int, name: str) -> None:
    """ValueError: a sequence of this length is longer than a row."""
    if length > num_positions:
        raise ValueError(
            f"{name} takes {length} positions, which do not fit into a row of {num_positions}: raise the row length "
            f"(trainer.num_positions), or say less in it."
        )
