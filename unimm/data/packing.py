"""Packing: sequences of many lengths -> rows of T positions with little left over. Sequences are never cut."""

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
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in order:
        if length > num_positions:
            raise ValueError(
                f"A sequence of {length} positions does not fit into a row of {num_positions}: raise the row length."
            )
        fitting = [row for row, left in enumerate(room) if left >= length]
        if fitting:
            row = min(fitting, key=lambda r: (room[r], r))
        else:
            row = len(rows)
            rows.append([])
            room.append(num_positions)
        rows[row].append(index)
        room[row] -= length
    return [sorted(row) for row in rows]
