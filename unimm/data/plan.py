"""The plan: which samples share which row of which step. A pure function of (mixture, T, rows a step).

Rows are filled a window of steps at a time: samples are taken from the mixture's stream as long as best fit finds room for
them in the window's rows, so every sample is learned once, in almost full rows. The rows of a window are then dealt out to its
steps, so that each step has its share of every kind, and lie in an order in which every n-th row has it, too: what ranks and
micro-batches take. How many of these there are does not enter the plan.

To fill a window, all of its samples are measured, by whoever wants a row of it. Where there are many ranks, or samples are slow
to make, the plan is stored once for all of them (`unimm.data.stored_plan`).
"""

import logging
import os
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from torch.utils.data import get_worker_info

from unimm.data.mixture import Mixture, Sample
from unimm.data.packing import check_length, fill_rows
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Sequence

WINDOW_ROWS = 256
"""Rows that are filled together, at least: what stays empty at the end of so many is little."""

MAX_POSITIONS = 2**31 - 1
"""Of a step, at most."""

CHUNK = 256
"""Samples that are measured at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanCursor:
    """Where a window begins: after so many steps, and with which sample of the stream."""

    step: int = 0
    sample: int = 0


class Planned(NamedTuple):
    """A sample that has its place, and its sequence, whose images are opened where it is learned."""

    sample: Sample
    sequence: Sequence


class SampleSize(NamedTuple):
    """What the plan asks of a sample: its positions, how many of them are codes that are learned, and how many it would have
    if nothing had been cut (None: nothing was)."""

    length: int
    num_learned_codes: int
    full_length: int | None = None

    @classmethod
    def of(cls, sequence: Sequence) -> "SampleSize":
        """Of a sample's sequence."""
        return cls(sequence.length, sequence.num_learned_codes, sequence.full_length)


def measured(mixture: Mixture, sample: Sample, num_positions: int) -> Sequence:
    """The sequence of a sample, cut to a row of so many positions where its view can cut.

    Raises:
        ValueError: it does not fit; says which one.
    """
    sequence = mixture.sequence(sample, num_positions)
    if sequence.length > num_positions:
        check_length(sequence.length, num_positions, f"The sample {mixture.name(sample)}")
    return sequence


def cut_lengths(sizes: list[SampleSize], first: int) -> dict[int, int]:
    """Which of the samples from number `first` of the stream on were cut, and their lengths before."""
    return {first + place: size.full_length for place, size in enumerate(sizes) if size.full_length is not None}


def tell_cuts(mixture: Mixture, num_positions: int, num_samples: int, cut: dict[int, int]) -> None:
    """Say how many of some samples lost their end, if any did: by the log of one process of a run.

    cut: the lengths that they had, by their numbers in the stream.
    """
    worker = get_worker_info()
    if not cut or (worker is not None and worker.id > 0) or os.environ.get("RANK", "0") != "0":
        return
    longest, made_for = max(cut, key=lambda number: cut[number]), mixture.template.max_positions
    logger.warning(
        f"{len(cut):,} of {num_samples:,} samples are longer than there is room for, and lose the end of their text; the "
        f"longest is {mixture.name(mixture.samples(longest, 1)[0])} with {cut[longest]:,} positions. A row has "
        f"{num_positions:,} (trainer.num_positions){f', and the model was made for {made_for:,}' if made_for else ''}."
    )


@dataclass(frozen=True)
class RowLayout:
    """Rows of so many positions, so many of them a step.

    Raises ValueError where there are none, or more than any machine learns from.
    """

    num_positions: int
    num_rows: int

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
        return -(-WINDOW_ROWS // self.num_rows)

    @property
    def room(self) -> int:
        """Positions of a window."""
        return self.num_positions * self.num_rows * self.num_steps

    def deal(self, sizes: list[SampleSize], seed: int, first: int) -> list[list[list[int]]]:
        """A window: for each step, for each of its rows, which of the samples it holds; as many of the first as find room.

        sizes: of samples from number `first` of the stream on, more than fit.
        """
        filled = fill_rows([size.length for size in sizes], self.num_positions, self.num_rows * self.num_steps)
        rows = sorted(filled, key=lambda row: sum(sizes[index].num_learned_codes for index in row))
        # Dealt out in order, the first steps of a window would have the least codes, a few of them where rows are few.
        rng = np.random.Generator(np.random.Philox(key=[seed, first]))
        return [rows[column :: self.num_steps] for column in rng.permutation(self.num_steps)]


class Window(Protocol):
    """The rows of a window's steps; `end` is the first sample after it."""

    end: int

    def rows(self, step: int, part: slice) -> list[list[Planned]]:
        """Rows of the window's n-th step."""
        ...


class Windows(Protocol):
    """Windows that were planned before."""

    def window(self, origin: PlanCursor) -> Window | None:
        """The one that begins there."""
        ...


class Plan:
    """Rows by step.

    Args:
        mixture: what samples are taken from.
        num_positions: T, the length of a row.
        num_rows: rows a step, over all ranks and micro-batches.
        origin: a window known from before: what lies between it and the start need not be planned again.
        stored: windows that need not be planned at all; what they lack is planned as ever.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(
        self,
        mixture: Mixture,
        num_positions: int,
        num_rows: int,
        origin: PlanCursor | None = None,
        stored: Windows | None = None,
    ) -> None:
        self.mixture = mixture
        self.shape = RowLayout(num_positions, num_rows)
        self._stored = stored
        self._first = self._origin = origin or PlanCursor()
        self._window: Window | None = None
        self._has_told_cuts = False

    def rows(self, step: int, part: slice = slice(None)) -> list[list[Planned]]:
        """What each row of a step holds, or each of a part of them.

        Raises:
            ValueError: a sample is longer than a row, or a stored plan is one of other data.
            IndexError: the step lies before the plan's origin.
        """
        return self._go_to(step).rows(step - self._origin.step, part)

    def origin(self, step: int) -> PlanCursor:
        """The window that holds a step: enough to plan on from there."""
        self._go_to(step)
        return self._origin

    def _go_to(self, step: int) -> Window:
        """Plan window after window up to the one that holds the step; one before the present is planned from the start."""
        if step < self._first.step:
            raise IndexError(f"step {step} lies before the plan's first, {self._first.step}")
        if step < self._origin.step:
            self._origin, self._window = self._first, None
        window = self._window or self._open()
        while step >= self._origin.step + self.shape.num_steps:
            self._origin = PlanCursor(self._origin.step + self.shape.num_steps, window.end)
            window = self._open()
        self._window = window
        return window

    def _open(self) -> Window:
        stored = None if self._stored is None else self._stored.window(self._origin)
        if stored is not None:
            return stored
        window = _Measured(self.mixture, self.shape, self._origin.sample)
        if window.cut and not self._has_told_cuts:
            tell_cuts(self.mixture, self.shape.num_positions, len(window.planned), window.cut)
            self._has_told_cuts = True
        return window


class _Measured:
    """A window whose samples were all measured to fill it."""

    def __init__(self, mixture: Mixture, shape: RowLayout, first: int) -> None:
        self.planned: list[Planned] = []
        room = shape.room
        while room >= 0:
            for sample in mixture.samples(first + len(self.planned), CHUNK):
                self.planned.append(Planned(sample, measured(mixture, sample, shape.num_positions)))
                room -= self.planned[-1].sequence.length
        sizes = [SampleSize.of(one.sequence) for one in self.planned]
        self.cut = cut_lengths(sizes, first)
        self._steps = shape.deal(sizes, mixture.seed, first)
        self.end = first + sum(len(row) for step in self._steps for row in step)

    def rows(self, step: int, part: slice) -> list[list[Planned]]:
        return [[self.planned[index] for index in row] for row in self._steps[step][part]]
