"""A plan as a folder: `unimm plan` makes it once, and every rank and worker reads the rows it is asked for, and no more.

    samples.npy    (S, 2) int64    source and number there, row after row
    lengths.npy    (S,) int32      positions of each
    ends.npy       (R,) int64      where each row ends, step after step; as many rows a step
    windows.npy    (W + 1,) int64  the first sample of the stream in each window, and behind the last
    parts.npy      (S,) int32      only where a sample takes several rows: which of its parts lies there, -1 for all of it
    starts.npy     (W + 1,) int64  only where mixing weights change by step: the first step of each window; and, by source, what
                                   came before and is owed (`PlanCursor`): drawn.npy, owed.npy  (W + 1, sources)
    plan.json                      what it was made for

What is stored is what would have been planned: a run may begin with a stored plan, lose it, and go on the same.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unimm.data.mixing_weights import SampleId, Stretch
from unimm.data.mixture import Mixture
from unimm.data.packing import WHOLE, RowLayout, SampleSize, num_placed, row_groups
from unimm.data.plan import CHUNK, Planned, cut_lengths, measured, warn_of_cuts
from unimm.data.plan_windows import PlanCursor, open_stretch, window_layout
from unimm.data.records import known_length
from unimm.runtime.atomic_files import read_json, whole_folder, write_json
from unimm.runtime.environment import loader_processes
from unimm.runtime.format_version import check_format

MARK = "plan.json"
VERSION, VERSION_WITH_PARTS, VERSION_WITH_STARTS = 1, 2, 3
CURSORS = ("starts", "drawn", "owed")


class StoredPlan:
    """The windows of a folder.

    Raises:
        ValueError: there is no plan, it is damaged, or it was made for another mixture or other rows.
    """

    def __init__(self, folder: str | Path, mixture: Mixture, shape: RowLayout) -> None:
        self.folder, self.mixture, self.shape = Path(folder), mixture, shape
        made_for = read_json(self.folder / MARK)
        if made_for is None:
            raise ValueError(f"{self.folder} holds no plan: make one with `unimm plan`, with the arguments of the training.")
        check_format(made_for, VERSION_WITH_STARTS, self.folder / MARK, "version")
        has_parts = bool(made_for.get("has_parts", made_for.get("version") == VERSION_WITH_PARTS))
        expected = describe(mixture, shape, has_parts)
        differ = sorted(key for key in expected if made_for.get(key) != expected[key])
        if differ:
            key = differ[0]
            raise ValueError(
                f"{self.folder} was planned for another {', '.join(differ)} ({made_for.get(key)}, here {expected[key]}): "
                f"plan again with `unimm plan`."
            )
        try:
            names = ["samples", "lengths", "ends", "windows", *(["parts"] if has_parts else [])]
            names += CURSORS if mixture.weights.changes else ()
            held = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is damaged or cut short ({error}): plan again with `unimm plan`.") from error
        self._samples, self._lengths, self._ends, self._windows = (held[name] for name in names[:4])
        self._parts: np.ndarray | None = held.get("parts")
        self._starts: np.ndarray = held.get("starts", np.arange(len(self._windows)) * shape.num_steps)
        self._drawn = [held[name] for name in CURSORS[1:] if name in held]

    @property
    def num_steps(self) -> int:
        """Steps that are planned."""
        return len(self._ends) // self.shape.num_rows

    def window(self, origin: PlanCursor) -> "_StoredWindow | None":
        """The window that begins there, where it is stored."""
        number = int(np.searchsorted(self._starts, origin.step))
        if number >= len(self._windows) - 1 or self._cursor(number) != origin:
            return None
        return _StoredWindow(self, origin.step, self._cursor(number + 1))

    def _cursor(self, number: int) -> PlanCursor:
        """Where a window begins."""
        drawn = (tuple(array[number].tolist()) if number else () for array in self._drawn)
        return PlanCursor(int(self._starts[number]), int(self._windows[number]), *drawn)

    def row(self, number: int) -> list[Planned]:
        """A row by its number from the start, its samples measured.

        Raises:
            ValueError: a sample has not the length that was stored.
        """
        here, num_positions = self._place(number), self.shape.num_positions
        parts = [WHOLE] * (here.stop - here.start) if self._parts is None else self._parts[here]
        planned = []
        for (source, index), length, part in zip(self._samples[here], self._lengths[here], parts, strict=True):
            name = int(source), int(index)
            sample = measured(self.mixture, name, num_positions)
            is_split = sample.length > num_positions
            one = None if is_split != (part != WHOLE) else Planned.of(name, sample, int(part), num_positions)
            if one is None or one.length != length:
                raise ValueError(
                    f"{self.folder} was planned for other data: {self.mixture.name(name)} takes "
                    f"{sample.length if one is None else one.length} positions, not {length}; plan again with `unimm plan`."
                )
            planned.append(one)
        return planned

    def split_sample(self, number: int) -> tuple[int, int] | None:
        """The sample of which a row, by its number from the start, holds one part of several; as a rule there is none."""
        if self._parts is None:
            return None
        here = self._place(number)
        split = np.flatnonzero(self._parts[here] != WHOLE)
        return (*self._samples[here][split[0]].tolist(),) if len(split) else None

    def _place(self, number: int) -> slice:
        return slice(int(self._ends[number - 1]) if number else 0, int(self._ends[number]))


class _StoredWindow:
    def __init__(self, stored: StoredPlan, start: int, end: PlanCursor) -> None:
        self._stored, self._start, self.end = stored, start, end

    def groups(self, step: int) -> list[list[int]]:
        first = self._first_row(step)
        return row_groups(self._stored.split_sample(first + row) for row in range(self._stored.shape.num_rows))

    def rows(self, step: int, numbers: Iterable[int]) -> list[list[Planned]]:
        first = self._first_row(step)
        return [self._stored.row(first + number) for number in numbers]

    def _first_row(self, step: int) -> int:
        return (self._start + step) * self._stored.shape.num_rows


def describe(mixture: Mixture, shape: RowLayout, has_parts: bool = False) -> dict[str, Any]:
    """What a plan depends on, as far as it is known without reading samples; JSON-able.

    has_parts: whether some samples take several rows, which only later versions of a plan can hold.
    """
    for one in mixture.sources:
        if known_length(one.dataset) is None:
            raise ValueError(
                f"The source '{one.name}' is in shards that may grow, and has no stored plan: leave trainer.plan out."
            )
    sources = [[one.name, len(one.dataset), mixture.weights.described(n)] for n, one in enumerate(mixture.sources)]
    how = {"seed": mixture.seed, "weigh_by": mixture.weigh_by, "max_positions": mixture.template.max_positions}
    rows = {"num_positions": shape.num_positions, "num_rows": shape.num_rows}
    version = VERSION_WITH_PARTS if has_parts else VERSION
    starts = {"version": VERSION_WITH_STARTS, "has_parts": has_parts} if mixture.weights.changes else {"version": version}
    return {**starts, **rows, **how, "sources": sources}


def store_plan(
    folder: str | Path,
    mixture: Mixture,
    shape: RowLayout,
    num_steps: int,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Plan the first steps of a training, in whole windows, and write them; a plan that was there is replaced.

    num_workers: processes that measure samples. progress: called with the number of steps planned so far, window after window.

    Returns:
        The fill: the share of positions that are no padding.

    Raises:
        ValueError: a sample is longer than a row, or the path holds something else than a plan.
    """
    describe(mixture, shape)  # what cannot be stored is said now
    with whole_folder(Path(folder).resolve(), MARK, "a plan") as place:
        made = _Made(mixture, shape, num_workers)
        while made.origins[-1].step < max(1, num_steps):
            made.add_window()
            if progress is not None:
                progress(min(num_steps, made.origins[-1].step))
        warn_of_cuts(mixture, shape.num_positions, made.origins[-1].sample, made.cut)
        arrays = made.arrays()
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array, allow_pickle=False)
        write_json(place / MARK, describe(mixture, shape, "parts" in arrays))
    return int(arrays["lengths"].sum(dtype=np.int64)) / (made.origins[-1].step * shape.num_rows * shape.num_positions)


class _Made:
    """What is planned so far. origins: where each window begins, and the next one."""

    def __init__(self, mixture: Mixture, shape: RowLayout, num_workers: int) -> None:
        self.mixture, self.shape = mixture, shape
        self.origins = [PlanCursor()]
        self.cut: dict[SampleId, int] = {}
        self._samples: list[np.ndarray] = []
        self._parts: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._ends = [0]
        self._sizes = _Sizes(mixture, shape, num_workers)

    def add_window(self) -> None:
        """Plan the next window."""
        origin = self.origins[-1]
        own, middle = window_layout(self.mixture, self.shape, origin.step)
        stretch = open_stretch(self.mixture, origin, middle)
        names, sizes = self._sizes.more_than(own.room, stretch)
        steps = own.assign_rows(sizes, self.mixture.seed, origin.sample)
        num_samples, rows = num_placed(steps), [row for step in steps for row in step]
        pieces = [piece for row in rows for piece in row]
        placed = np.array([names[piece.sample] for piece in pieces], dtype=np.int64).reshape(-1, 2)
        self._samples.append(placed)
        self._parts.append(np.array([piece.part for piece in pieces], dtype=np.int32))
        self._lengths.append(np.array([sizes[one.sample].length_of(one.part, own.num_positions) for one in pieces], np.int32))
        self._ends += (self._ends[-1] + np.cumsum([len(row) for row in rows])).tolist()
        self.cut |= cut_lengths(names[:num_samples], sizes[:num_samples])
        self._sizes.forget(names[:num_samples])
        self.origins.append(origin.after(own.num_steps, num_samples, stretch))

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names of their files."""
        arrays = {
            "samples": np.concatenate(self._samples),
            "lengths": np.concatenate(self._lengths),
            "ends": np.array(self._ends[1:], dtype=np.int64),
            "windows": np.array([origin.sample for origin in self.origins], dtype=np.int64),
        }
        if any((part != WHOLE).any() for part in self._parts):
            arrays["parts"] = np.concatenate(self._parts)
        if self.mixture.weights.changes:
            nothing = (0,) * len(self.mixture.sources)
            arrays["starts"] = np.array([origin.step for origin in self.origins], dtype=np.int64)
            arrays["drawn"] = np.array([origin.drawn or nothing for origin in self.origins], dtype=np.int64)
            arrays["owed"] = np.array([origin.owed or nothing for origin in self.origins], dtype=np.float64)
        return arrays


class _Measuring(TorchDataset):
    """Sizes of samples, by their names: what a loader's processes measure."""

    def __init__(self, mixture: Mixture, shape: RowLayout) -> None:
        self.mixture, self.shape = mixture, shape

    def __getitem__(self, names: list[SampleId]) -> list[tuple[SampleId, SampleSize]]:
        sizes = (self.shape.num_positions, self.shape.num_rows)
        return [(name, SampleSize.of(measured(self.mixture, name, *sizes))) for name in names]


def _as_it_is(sizes: list[tuple[SampleId, SampleSize]]) -> list[tuple[SampleId, SampleSize]]:
    return sizes


class _Sizes:
    """Sizes of the stream's samples, measured ahead by other processes: which come behind the end of a window is guessed by the
    shares in it. A guess that does not come true is measured in vain, or early."""

    def __init__(self, mixture: Mixture, shape: RowLayout, num_workers: int) -> None:
        self._known: dict[SampleId, SampleSize] = {}
        self._asked = [0] * len(mixture.sources)  # of each source, the first that nobody was asked to measure
        self._stretch: Stretch | None = None
        self._place = 0
        self._loader: Iterable[list[tuple[SampleId, SampleSize]]] = DataLoader(
            _Measuring(mixture, shape),
            batch_size=None,
            sampler=self._ahead(),
            num_workers=loader_processes(num_workers),
            collate_fn=_as_it_is,  # PyTorch's own makes lists of tuples
        )

    @cached_property
    def _made(self) -> Iterator[list[tuple[SampleId, SampleSize]]]:
        return iter(self._loader)  # which asks for the first ones at once

    def more_than(self, room: int, stretch: Stretch) -> tuple[list[SampleId], list[SampleSize]]:
        """The first samples of a stretch, in whole chunks, so many that together they do not fit: as a plan that is not stored
        takes them; and their sizes."""
        self._stretch, self._place = stretch, 0
        names: list[SampleId] = []
        sizes: list[SampleSize] = []
        while room >= 0:
            more = stretch.samples(len(names), CHUNK)
            while any(name not in self._known for name in more):
                self._known |= dict(next(self._made))
            names += more
            sizes += [self._known[name] for name in more]
            room -= sum(size.length for size in sizes[-CHUNK:])
        return names, sizes

    def forget(self, names: list[SampleId]) -> None:
        """They have their rows."""
        for name in names:
            del self._known[name]

    def _ahead(self) -> Iterator[list[SampleId]]:
        """What is to be measured next, without an end."""
        while self._stretch is not None:
            names = self._stretch.samples(self._place, CHUNK)
            self._place += CHUNK
            new = [(source, number) for source, number in names if number >= self._asked[source]]
            for source, number in new:
                self._asked[source] = number + 1
            if new:
                yield new
