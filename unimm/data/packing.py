"""Packing: samples of many lengths -> rows of T positions, step by step, with little padding. Functions of sizes alone.

Sequences are never cut. The sequences of a sample share a row where they fit into one. Where they do not, they take several
rows, which then belong together: they lie side by side in one step, and no rank or micro-batch gets one without the others.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unimm.runtime.number_checks import check_whole
from unimm.sequence import Sample

WINDOW_ROWS = 256
"""Rows that are filled together, at least: what stays empty at the end of so many is little."""

MAX_POSITIONS = 2**31 - 1
"""Of a step, at most."""

WHOLE = -1
"""In place of a part's number: all of a sample."""


class SampleSize(NamedTuple):
    """What packing needs to know of a sample.

    lengths: positions of each of its sequences. num_learned_codes: positions of all of them that are learned codes.
    full_length: positions that it would have if nothing had been cut; None: nothing was.
    """

    lengths: tuple[int, ...]
    num_learned_codes: int
    full_length: int | None = None

    @classmethod
    def of(cls, sample: Sample) -> "SampleSize":
        """The size of a sample."""
        num_codes = sum(sequence.num_learned_codes for sequence in sample.sequences)
        return cls(tuple(sequence.length for sequence in sample.sequences), num_codes, sample.full_length)

    @property
    def length(self) -> int:
        """Positions of all its sequences."""
        return sum(self.lengths)

    def length_of(self, part: int, num_positions: int) -> int:
        """Positions of all of it (`WHOLE`), or of one part of what takes several rows of so many positions."""
        if part == WHOLE:
            return self.length
        return sum(self.lengths[place] for place in split_sample(self.lengths, num_positions)[part])


class Piece(NamedTuple):
    """What a row holds of a sample, by the sample's index: all of it, or the sequences of one part (`split_sample`)."""

    sample: int
    part: int = WHOLE


Steps = list[list[list[Piece]]]
"""For each step, for each of its rows, what it holds."""


@dataclass(frozen=True)
class RowLayout:
    """Rows of `num_positions` positions, `num_rows` of them a step, over all ranks and micro-batches.

    most_steps: of a window, where it ends earlier than others because mixing weights change.

    Raises ValueError where there are none, or more than any machine learns from.
    """

    num_positions: int
    num_rows: int
    most_steps: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, 1, "num_rows", "num_positions")
        if (positions := self.num_positions * self.num_rows) > MAX_POSITIONS:
            raise ValueError(
                f"{self.num_rows:,} rows of {self.num_positions:,} positions are {positions:,} in a step, more than any run "
                f"learns from at once: lower num_rows or num_positions."
            )

    @property
    def num_steps(self) -> int:
        """Steps of a window."""
        whole = -(-WINDOW_ROWS // self.num_rows)
        return whole if self.most_steps is None else min(whole, self.most_steps)

    @property
    def room(self) -> int:
        """Positions of a window."""
        return self.num_positions * self.num_rows * self.num_steps

    def assign_rows(self, sizes: list[SampleSize], seed: int, first: int) -> Steps:
        """A window: as many of the first samples as there is room for, each once.

        Every step has its share of every kind, and so has every n-th row of a step. Samples that take several rows have them in
        one step, side by side.

        Args:
            sizes: of samples from number `first` of the stream on, more than fit.
            seed: of the mixture.
        """
        num_rows = self.num_rows * self.num_steps
        parts = [split_sample(size.lengths, self.num_positions) for size in sizes]
        if any(parts):
            together, rows = self._fill_in_groups(sizes, parts)
        else:
            filled = fill_rows([size.length for size in sizes], self.num_positions, num_rows)
            together, rows = [[] for _ in range(self.num_steps)], [[Piece(index) for index in row] for row in filled]
        rows.sort(key=lambda row: sum(sizes[piece.sample].num_learned_codes for piece in row))
        # One after another, over all steps in turn: the first steps of a window would have the least codes, a few of them where
        # rows are few. So the steps themselves are shuffled.
        columns, column = together, 0
        for row in rows:
            while len(columns[column]) == self.num_rows:
                column = (column + 1) % self.num_steps
            columns[column].append(row)
            column = (column + 1) % self.num_steps
        rng = np.random.Generator(np.random.Philox(key=[seed, first]))
        return [columns[column] for column in rng.permutation(self.num_steps)]

    def _fill_in_groups(self, sizes: list[SampleSize], parts: list[list[list[int]]]) -> tuple[Steps, list[list[Piece]]]:
        """The rows of samples that take several, by step, and all other rows.

        parts: of every sample (`split_sample`).
        """

        def fill(count: int) -> tuple[Steps, list[list[Piece]]] | None:
            """With the first `count` samples; None: there is no room for all of them."""
            steps: Steps = [[] for _ in range(self.num_steps)]
            for index in sorted(range(count), key=lambda index: (-len(parts[index]), index)):
                step = min(steps, key=len)
                step += [[Piece(index, part)] for part in range(len(parts[index]))]
                if len(step) > self.num_rows:
                    return None
            begun = [row for step in steps for row in step]
            taken = [sum(sizes[piece.sample].lengths[one] for one in parts[piece.sample][piece.part]) for (piece,) in begun]
            whole = [index for index in range(count) if not parts[index]]
            rows = best_fit([sizes[index].length for index in whole], self.num_positions, taken)
            num_more = self.num_rows * self.num_steps - len(rows)
            for row, more in zip(begun, rows, strict=False):
                row += [Piece(whole[one]) for one in more]
            others = [[Piece(whole[one]) for one in row] for row in rows[len(begun) :]]
            return None if num_more < 0 else (steps, others + [[] for _ in range(num_more)])

        filled = fill(_largest(len(sizes), lambda count: fill(count) is not None))
        assert filled is not None
        return filled


def split_sample(lengths: tuple[int, ...], num_positions: int) -> list[list[int]]:
    """Which sequences of a sample share a row, for each row that it takes; empty where all of them fit into one."""
    return [] if len(lengths) == 1 or sum(lengths) <= num_positions else best_fit(lengths, num_positions)


def num_placed(steps: Steps) -> int:
    """How many samples have their place."""
    return 1 + max((piece.sample for rows in steps for row in rows for piece in row), default=-1)


def row_groups(split: Iterable[object]) -> list[list[int]]:
    """The rows of a step that belong together, by number.

    split: for each row the sample that lies in it in part, None where there is none: as a rule.
    """
    groups: list[list[int]] = []
    before: object = None
    for number, sample in enumerate(split):
        if sample is not None and sample == before:
            groups[-1].append(number)
        else:
            groups.append([number])
        before = sample
    return groups


def share_out(groups: list[list[int]], num_shares: int) -> list[list[int]]:
    """Rows for ranks and micro-batches: for each of `num_shares` the numbers of its rows, ascending.

    Where no rows belong together, share i gets rows i, i + num_shares, ... Groups of several rows come first, each to the share
    that has the fewest so far.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for group in sorted(groups, key=lambda group: (-len(group), group)):
        min(shares, key=len).extend(group)
    return [sorted(share) for share in shares]


def best_fit(lengths: Iterable[int], num_positions: int, taken: Iterable[int] = ()) -> list[list[int]]:
    """Best-fit decreasing: which sequences share a row.

    Args:
        lengths: the length of every sequence.
        num_positions: T, the length of a row.
        taken: of rows that are there already, how many of their positions are taken.

    Returns:
        For each row, those that are there already first, the indices of its sequences in their original order; deterministic.

    Raises:
        ValueError: a sequence is longer than a row.
    """
    order = sorted(enumerate(lengths), key=lambda item: (-item[1], item[0]))
    if order:
        check_length(order[0][1], num_positions, "A sequence")
    room = sorted((num_positions - positions, row) for row, positions in enumerate(taken))
    rows: list[list[int]] = [[] for _ in room]  # `room`: (positions left, row), ascending: the first that suffices fits best
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
        lengths: the length of every sequence, in the order in which they are to be learned.
        num_positions: T, the length of a row.
        num_rows: how many rows there are.

    Returns:
        For each row the indices of its sequences: together 0, 1, 2, ... without a gap. Rows that are not needed are empty.

    Raises:
        ValueError: a sequence is longer than a row.
    """
    count = _largest(len(lengths), lambda count: len(best_fit(lengths[:count], num_positions)) <= num_rows)
    rows = best_fit(lengths[:count], num_positions)
    return rows + [[] for _ in range(num_rows - len(rows))]


def check_length(length: int, num_positions: int, name: str) -> None:
    """ValueError: a sequence of this length is longer than a row."""
    if length > num_positions:
        raise ValueError(
            f"{name} takes {length} positions, which do not fit into a row of {num_positions}: raise the row length "
            f"(trainer.num_positions), or say less in it."
        )


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """A count up to `most` that fits and is the largest, or nearly: found by bisection, though it may be that more fit."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
