"""A plan as a folder: `unimm plan` makes it once, and every rank and worker reads the rows it is asked for, and no more.

    samples.npy    (S, 2) int64    source and number there, row after row
    lengths.npy    (S,) int32      positions of each
    ends.npy       (R,) int64      where each row ends, step after step; as many rows a step
    windows.npy    (W + 1,) int64  the first sample of the stream in each window, and behind the last
    parts.npy      (S,) int32      only where a sample takes several rows: which of its parts lies there, -1 for all of it
    plan.json                      what it was made for

What is stored is what would have been planned: a run may begin with a stored plan, lose it, and go on the same.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unimm.data.mixture import Mixture
from unimm.data.packing import WHOLE, RowLayout, SampleSize, num_placed, row_groups
from unimm.data.plan import CHUNK, PlanCursor, Planned, cut_lengths, measured, warn_of_cuts
from unimm.runtime.atomic_files import read_json, whole_folder, write_json
from unimm.runtime.environment import loader_processes
from unimm.runtime.format_version import check_format

MARK = "plan.json"
VERSION, VERSION_WITH_PARTS = 1, 2


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
        check_format(made_for, VERSION_WITH_PARTS, self.folder / MARK, "version")
        has_parts = made_for.get("version") == VERSION_WITH_PARTS
        expected = describe(mixture, shape, has_parts)
        differ = sorted(key for key in expected if made_for.get(key) != expected[key])
        if differ:
            key = differ[0]
            raise ValueError(
                f"{self.folder} was planned for another {', '.join(differ)} ({made_for.get(key)}, here {expected[key]}): "
                f"plan again with `unimm plan`."
            )
        try:
            names = ("samples", "lengths", "ends", "windows", *(["parts"] if has_parts else []))
            arrays = [np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is damaged or cut short ({error}): plan again with `unimm plan`.") from error
        self._samples, self._lengths, self._ends, self._windows, *parts = arrays
        self._parts: np.ndarray | None = parts[0] if parts else None

    @property
    def num_steps(self) -> int:
        """Steps that are planned."""
        return len(self._ends) // self.shape.num_rows

    def window(self, origin: PlanCursor) -> "_StoredWindow | None":
        """The window that begins there, where it is stored."""
        number, rest = divmod(origin.step, self.shape.num_steps)
        if rest or number >= len(self._windows) - 1 or self._windows[number] != origin.sample:
            return None
        return _StoredWindow(self, number, int(self._windows[number + 1]))

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
    def __init__(self, stored: StoredPlan, number: int, end: int) -> None:
        self._stored, self._number, self.end = stored, number, end

    def groups(self, step: int) -> list[list[int]]:
        first = self._first_row(step)
        return row_groups(self._stored.split_sample(first + row) for row in range(self._stored.shape.num_rows))

    def rows(self, step: int, numbers: Iterable[int]) -> list[list[Planned]]:
        first = self._first_row(step)
        return [self._stored.row(first + number) for number in numbers]

    def _first_row(self, step: int) -> int:
        shape = self._stored.shape
        return (self._number * shape.num_steps + step) * shape.num_rows


def describe(mixture: Mixture, shape: RowLayout, has_parts: bool = False) -> dict[str, Any]:
    """What a plan depends on, as far as it is known without reading samples; JSON-able.

    has_parts: whether some samples take several rows, which only later versions of a plan can hold.
    """
    sources = [[source.name, len(source.dataset), source.weight] for source in mixture.sources]
    how = {"seed": mixture.seed, "weigh_by": mixture.weigh_by, "max_positions": mixture.template.max_positions}
    return {"version": VERSION_WITH_PARTS if has_parts else VERSION, **asdict(shape), **how, "sources": sources}


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
    num_windows = max(1, -(-num_steps // shape.num_steps))
    with whole_folder(Path(folder).resolve(), MARK, "a plan") as place:
        order: list[np.ndarray] = []
        parts: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        cut: dict[int, int] = {}
        ends, windows, filled = [0], [0], 0
        sizes = _Ahead(_measured(mixture, shape, num_workers))
        for window in range(num_windows):
            ahead = sizes.more_than(shape.room)
            steps = shape.assign_rows(ahead, mixture.seed, windows[-1])
            num_samples, rows = num_placed(steps), [row for step in steps for row in step]
            pieces = [piece for row in rows for piece in row]
            order.append(windows[-1] + np.array([piece.sample for piece in pieces], dtype=np.int64))
            parts.append(np.array([piece.part for piece in pieces], dtype=np.int32))
            lengths.append(np.array([ahead[one.sample].length_of(one.part, shape.num_positions) for one in pieces], np.int32))
            ends += (ends[-1] + np.cumsum([len(row) for row in rows])).tolist()
            cut |= cut_lengths(ahead[:num_samples], windows[-1])
            windows.append(windows[-1] + num_samples)
            filled += int(lengths[-1].sum())
            sizes.forget(num_samples)
            if progress is not None:
                progress(min(num_steps, (window + 1) * shape.num_steps))
        warn_of_cuts(mixture, shape.num_positions, windows[-1], cut)
        stream = np.array(mixture.samples(0, windows[-1]), dtype=np.int64).reshape(-1, 2)
        arrays = {
            "samples": stream[np.concatenate(order)],
            "lengths": np.concatenate(lengths),
            "ends": np.array(ends[1:], dtype=np.int64),
            "windows": np.array(windows, dtype=np.int64),
        }
        has_parts = any((part != WHOLE).any() for part in parts)
        if has_parts:
            arrays["parts"] = np.concatenate(parts)
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array, allow_pickle=False)
        write_json(place / MARK, describe(mixture, shape, has_parts))
    return filled / (num_windows * shape.room)


class _Chunks(TorchDataset):
    """Sizes of the stream, chunk by chunk."""

    def __init__(self, mixture: Mixture, shape: RowLayout) -> None:
        self.mixture, self.shape = mixture, shape

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, number: int) -> list[SampleSize]:
        samples = self.mixture.samples(number * CHUNK, CHUNK)
        sizes = (self.shape.num_positions, self.shape.num_rows)
        return [SampleSize.of(measured(self.mixture, sample, *sizes)) for sample in samples]


def _measured(mixture: Mixture, shape: RowLayout, num_workers: int) -> Iterator[SampleSize]:
    chunks = _Chunks(mixture, shape)
    loader: Iterable[list[SampleSize]] = DataLoader(
        chunks, batch_size=None, sampler=_Counting(), num_workers=loader_processes(num_workers)
    )
    for chunk in loader:
        yield from (SampleSize(*size) for size in chunk)


class _Counting:
    """0, 1, 2, ... without an end."""

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1


class _Ahead:
    """Sizes that were measured and have no rows yet."""

    def __init__(self, sizes: Iterator[SampleSize]) -> None:
        self._sizes, self._known = sizes, []

    def more_than(self, room: int) -> list[SampleSize]:
        """The next ones, in whole chunks, so many that together they do not fit: as a plan that is not stored takes them."""
        ahead: list[SampleSize] = []
        while room >= 0:
            while len(self._known) < len(ahead) + CHUNK:
                self._known.append(next(self._sizes))
            ahead += self._known[len(ahead) : len(ahead) + CHUNK]
            room -= sum(size.length for size in ahead[-CHUNK:])
        return ahead

    def forget(self, count: int) -> None:
        """The first ones have their rows."""
        del self._known[:count]
