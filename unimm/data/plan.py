"""The packing plan: `packing` applied to a mixture, split into steps and shared out among ranks. A pure function of (mixture,
T, rows a step).

Rows are filled a window of steps at a time: samples are taken from the mixture's stream as long as best fit finds room for
them in the window's rows, so every sample is learned once, in almost full rows. The rows of a window are then assigned to its
steps (`unimm.data.packing`), so that each step has its share of every kind, and lie in an order in which every n-th row has it,
too: what ranks and micro-batches take. How many of these there are does not enter the plan.

To fill a window, all of its samples are measured, by every process that reads a row of it. Where there are many ranks, or
samples are slow to make, the plan is stored once for all of them (`unimm.data.stored_plan`).
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from unimm.batch import Batch, collate
from unimm.data.bad_records import BadRecord
from unimm.data.mixing_weights import SampleId
from unimm.data.mixture import Mixture
from unimm.data.packing import (
    WHOLE,
    Piece,
    RowLayout,
    SampleSize,
    check_length,
    num_placed,
    row_groups,
    share_out,
    split_sample,
)
from unimm.data.plan_windows import PlanCursor, open_stretch, window_layout
from unimm.sequence import Sample, Sequence

CHUNK = 256
"""Samples that are measured at a time."""

logger = logging.getLogger(__name__)


class Planned(NamedTuple):
    """What a row holds of a sample: sequences, whose images are opened where they are learned, and their places in it."""

    sample: SampleId
    sequences: tuple[Sequence, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, name: SampleId, sample: Sample, part: int, num_positions: int) -> "Planned":
        """All of a sample (`WHOLE`), or one part of what takes several rows of so many positions."""
        all_of_it = range(len(sample.sequences))
        places = all_of_it if part == WHOLE else split_sample(SampleSize.of(sample).lengths, num_positions)[part]
        return cls(name, tuple(sample.sequences[place] for place in places), tuple(places))

    @property
    def length(self) -> int:
        """Positions that it takes in its row."""
        return sum(sequence.length for sequence in self.sequences)


def measured(mixture: Mixture, name: SampleId, num_positions: int, num_rows: int | None = None) -> Sample:
    """A sample, its sequences cut to a row of so many positions where its view can cut.

    num_rows: a step has; None: it does not matter.

    Raises:
        ValueError: a sequence does not fit into a row, or the sample into a step; says which one.
    """
    sample = mixture.sample(name, num_positions)
    for sequence in sample.sequences:
        if sequence.length > num_positions:
            check_length(sequence.length, num_positions, f"The sample {mixture.name(name)}")
    if num_rows is not None and sample.length > num_positions:
        needed = len(split_sample(SampleSize.of(sample).lengths, num_positions))
        if needed > num_rows:
            raise ValueError(
                f"The sample {mixture.name(name)} has {len(sample.sequences)} sequences that are learned together, which take "
                f"{needed} rows, and a step has {num_rows}: raise trainer.num_rows or trainer.num_positions."
            )
    return sample


def cut_lengths(names: list[SampleId], sizes: list[SampleSize]) -> dict[SampleId, int]:
    """Which of some samples were cut, and their lengths before."""
    return {name: size.full_length for name, size in zip(names, sizes, strict=True) if size.full_length is not None}


def warn_of_cuts(mixture: Mixture, num_positions: int, num_samples: int, cut: dict[SampleId, int]) -> None:
    """Say how many of some samples lost their end, if any did: in the log of one process of a run.

    cut: the lengths that they had.
    """
    worker = get_worker_info()
    if not cut or (worker is not None and worker.id > 0) or os.environ.get("RANK", "0") != "0":
        return
    longest, made_for = max(cut, key=lambda name: cut[name]), mixture.template.max_positions
    logger.warning(
        f"{len(cut):,} of {num_samples:,} samples are longer than there is room for, and lose the end of their text; the "
        f"longest is {mixture.name(longest)} with {cut[longest]:,} positions. A row has "
        f"{num_positions:,} (trainer.num_positions){f', and the model was made for {made_for:,}' if made_for else ''}."
    )


class Window(Protocol):
    """The rows of a window's steps; `end` is where the next one begins."""

    end: PlanCursor

    def groups(self, step: int) -> list[list[int]]:
        """The rows of the window's n-th step that belong together, by number; as a rule each is alone."""
        ...

    def rows(self, step: int, numbers: Iterable[int]) -> list[list[Planned]]:
        """Rows of the window's n-th step, by number."""
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
        self._has_warned = False

    def rows(self, step: int, part: slice | Iterable[int] = slice(None)) -> list[list[Planned]]:
        """What each row of a step holds, or each of a part of them.

        Raises:
            ValueError: a sample is longer than a row, or a stored plan is one of other data.
            IndexError: the step lies before the plan's origin.
        """
        numbers = range(self.shape.num_rows)[part] if isinstance(part, slice) else part
        return self._go_to(step).rows(step - self._origin.step, numbers)

    def groups(self, step: int) -> list[list[int]]:
        """The rows of a step that belong together, by number: a micro-batch that gets one gets all of a group."""
        return self._go_to(step).groups(step - self._origin.step)

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
        while step >= window.end.step:
            self._origin = window.end
            window = self._open()
        self._window = window
        return window

    def _open(self) -> Window:
        stored = None if self._stored is None else self._stored.window(self._origin)
        if stored is not None:
            return stored
        window = _MeasuredWindow(self.mixture, self.shape, self._origin)
        if window.cut and not self._has_warned:
            warn_of_cuts(self.mixture, self.shape.num_positions, len(window.names), window.cut)
            self._has_warned = True
        return window


class _MeasuredWindow:
    """A window whose samples were all measured to fill it."""

    def __init__(self, mixture: Mixture, shape: RowLayout, origin: PlanCursor) -> None:
        self.names: list[SampleId] = []
        self.samples: list[Sample] = []
        self._num_positions = shape.num_positions
        own, middle = window_layout(mixture, shape, origin.step)
        stretch, room = open_stretch(mixture, origin, middle), own.room
        while room >= 0:
            for name in stretch.samples(len(self.names), CHUNK):
                self.names.append(name)
                self.samples.append(measured(mixture, name, shape.num_positions, shape.num_rows))
                room -= self.samples[-1].length
        sizes = [SampleSize.of(sample) for sample in self.samples]
        self.cut = cut_lengths(self.names, sizes)
        self._steps = own.assign_rows(sizes, mixture.seed, origin.sample)
        self.end = origin.after(own.num_steps, num_placed(self._steps), stretch)

    def groups(self, step: int) -> list[list[int]]:
        return row_groups(next((piece.sample for piece in row if piece.part != WHOLE), None) for row in self._steps[step])

    def rows(self, step: int, numbers: Iterable[int]) -> list[list[Planned]]:
        return [[self._planned(piece) for piece in self._steps[step][number]] for number in numbers]

    def _planned(self, piece: Piece) -> Planned:
        return Planned.of(self.names[piece.sample], self.samples[piece.sample], piece.part, self._num_positions)


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of a step.

    batches: a micro-batch for each forward pass. samples: what they hold. origin: the window of the plan that the step is in.
    bad: records in whose place others stand.
    """

    batches: list[Batch]
    samples: list[SampleId]
    origin: PlanCursor
    bad: tuple[BadRecord, ...] = ()

    @property
    def num_samples(self) -> int:
        """Of the stream, up to the window of the step."""
        return self.origin.sample

    @property
    def drawn(self) -> tuple[int, ...]:
        """These of each source, where mixing weights change by step; else empty."""
        return self.origin.drawn

    def pin_memory(self) -> "StepBatch":
        """The same in page-locked memory, from where a GPU reads faster; a loader asks for it."""
        return StepBatch([batch.pin_memory() for batch in self.batches], self.samples, self.origin, self.bad)


class Steps(TorchDataset):
    """The steps of one rank, by number, as batches: what a loader's workers make ahead.

    A rank gets every `num_ranks`-th row of the plan, and a micro-batch of it every `num_micro_batches`-th of these, so that all
    see all kinds. Rows that belong together stay together: then a micro-batch may have some rows more than another, or a single
    one that is all padding.

    num_micro_batches: how many forward passes a step takes.

    Raises ValueError where a micro-batch would get no row at all.
    """

    def __init__(
        self, plan: Plan, num_micro_batches: int = 1, rank: int = 0, num_ranks: int = 1, num_steps: int = 1 << 40
    ) -> None:
        num_rows = plan.shape.num_rows
        if num_rows < num_ranks * num_micro_batches:
            raise ValueError(
                f"{num_rows} rows cannot be cut into {num_micro_batches} micro-batches for each of {num_ranks} processes: "
                f"raise trainer.num_rows to at least {num_ranks * num_micro_batches}."
            )
        self.plan = plan
        self.num_micro_batches = num_micro_batches
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> StepBatch:
        shares = share_out(self.plan.groups(step), self.num_ranks * self.num_micro_batches)[self.rank :: self.num_ranks]
        own = sorted(number for share in shares for number in share)
        rows = dict(zip(own, self.plan.rows(step, own), strict=True))
        bad: dict[BadRecord, None] = {}
        opened = [open_rows(self.plan.mixture, [rows[number] for number in share] or [[]], bad) for share in shares]
        batches = [self._collate(share) for share in opened]
        samples = dict.fromkeys(one.sample for row in rows.values() for one in row)
        return StepBatch(batches, list(samples), self.plan.origin(step), tuple(bad))

    def _collate(self, rows: list[list[Planned]]) -> Batch:
        return collate_rows(rows, self.plan.shape.num_positions)


def open_rows(mixture: Mixture, rows: list[list[Planned]], bad: dict[BadRecord, None]) -> list[list[Planned]]:
    """Planned rows, compared with what is stored of their images. Where there may be bad records, their images are opened, and
    others stand in place of what cannot be used; a sample of which one part of several has no stand-in is left out.

    bad: collects the records in whose place others stand.

    Raises:
        ValueError: a record is bad, and there may be none.
    """
    if not mixture.max_bad:
        for one in (one for row in rows for one in row):
            mixture.check(one.sample)
        return rows
    left_out: set[SampleId] = set()
    opened: dict[int, Planned] = {}
    for one in (one for row in rows for one in row):
        bad.update(dict.fromkeys(mixture.replaced(one.sample)))
        sequences, found = mixture.open(one.sample, one.sequences)
        bad.update(dict.fromkeys(found))
        if sequences is None or (found and len(mixture.sample(one.sample).sequences) > len(one.sequences)):
            left_out.add(one.sample)
        else:
            places = one.places if not found else tuple(range(len(sequences)))
            opened[id(one)] = Planned(one.sample, sequences, places)
    return [[opened[id(one)] for one in row if one.sample not in left_out] for row in rows]


def collate_rows(rows: list[list[Planned]], num_positions: int, num_rows: int | None = None) -> Batch:
    """Planned rows as a batch of rows of so many positions, which knows what of them are samples."""
    return collate(
        [[sequence for one in row for sequence in one.sequences] for row in rows],
        num_positions,
        num_rows,
        samples=[[(one.sample, place) for one in row for place in one.places] for row in rows],
    )
