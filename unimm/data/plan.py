"""The plan: which samples share which row of which step. A pure function of (mixture, T, rows a step).

Rows are filled a window of steps at a time: samples are taken from the mixture's stream as long as best fit finds room for
them in the window's rows, so every sample is learned once, in almost full rows. The rows of a window are then dealt out to its
steps, so that each step has its share of every kind, and lie in an order in which every n-th row has it, too: what ranks and
micro-batches take. How many of these there are does not enter the plan.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unimm.data.mixture import Mixture, Sample
from unimm.data.packing import check_length, fill_rows
from unimm.data.template import Outline

WINDOW_ROWS = 256
"""Rows that are filled together, at least: what stays empty at the end of so many is little."""


@dataclass(frozen=True)
class Origin:
    """Where a window begins: after so many steps, and with which sample of the stream."""

    step: int = 0
    sample: int = 0


class Planned(NamedTuple):
    """A sample that has its place, and its outline: it is made once, and its images are opened where it is learned."""

    sample: Sample
    outline: Outline


class Plan:
    """Rows by step.

    Args:
        mixture: what samples are taken from.
        num_positions: T, the length of a row.
        num_rows: rows a step, over all ranks and micro-batches.
        origin: a window known from before: what lies between it and the start need not be planned again.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(self, mixture: Mixture, num_positions: int, num_rows: int, origin: Origin | None = None) -> None:
        if num_rows < 1:
            raise ValueError(f"A step needs at least one row, not {num_rows}.")
        self.mixture = mixture
        self.num_positions = num_positions
        self.num_rows = num_rows
        self.num_steps = -(-WINDOW_ROWS // num_rows)
        self._first = self._origin = origin or Origin()
        self._end = self._origin.sample
        self._steps: list[list[list[Planned]]] = []

    def rows(self, step: int) -> list[list[Planned]]:
        """What each row of a step holds.

        Raises:
            ValueError: a sample is longer than a row.
            IndexError: the step lies before the plan's origin.
        """
        self._go_to(step)
        return self._steps[step - self._origin.step]

    def origin(self, step: int) -> Origin:
        """The window that holds a step: enough to plan on from there."""
        self._go_to(step)
        return self._origin

    def _go_to(self, step: int) -> None:
        """Plan window after window up to the one that holds the step; one before the present is planned from the start."""
        if step < self._first.step:
            raise IndexError(f"step {step} lies before the plan's first, {self._first.step}")
        if step < self._origin.step:
            self._origin, self._end, self._steps = self._first, self._first.sample, []
        while not self._steps or step >= self._origin.step + self.num_steps:
            passed = self.num_steps if self._steps else 0
            self._origin = Origin(self._origin.step + passed, self._end)
            self._plan_window()

    def _plan_window(self) -> None:
        planned = self._measure(self._origin.sample)
        lengths = [one.outline.sequence.length for one in planned]
        filled = fill_rows(lengths, self.num_positions, self.num_rows * self.num_steps)
        self._end = self._origin.sample + sum(map(len, filled))
        rows = [[planned[index] for index in row] for row in filled]
        rows.sort(key=lambda row: sum(one.outline.sequence.num_learned_codes for one in row))
        # Dealt out in order, the first steps of a window would have the least codes, a few of them where rows are few.
        rng = np.random.Generator(np.random.Philox(key=[self.mixture.seed, self._origin.sample]))
        self._steps = [rows[column :: self.num_steps] for column in rng.permutation(self.num_steps)]

    def _measure(self, start: int) -> list[Planned]:
        """Samples from a number of the stream on, more than fit into a window."""
        planned: list[Planned] = []
        room = self.num_positions * self.num_rows * self.num_steps
        while room >= 0:
            for sample in self.mixture.samples(start + len(planned), 256):
                planned.append(Planned(sample, self.mixture.outline(sample)))
                length = planned[-1].outline.sequence.length
                check_length(length, self.num_positions)
                room -= length
        return planned
