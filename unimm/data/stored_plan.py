"""A plan as a folder: `unimm plan` makes it once, and every rank and worker reads the rows it is asked for, and no more.

    samples.npy    (S, 2) int64    source and number there, row after row
    lengths.npy    (S,) int32      positions of each
    ends.npy       (R,) int64      where each row ends, step after step; as many rows a step
    windows.npy    (W + 1,) int64  the first sample of the stream in each window, and behind the last
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
from unimm.data.plan import CHUNK, PlanCursor, Planned, RowLayout, SampleSize, cut_lengths, measured, tell_cuts
from unimm.runtime.atomic_files import read_json, whole_folder, write_json
from unimm.runtime.environment import loader_processes
from unimm.runtime.format_version import check_format

MARK = "plan.json"
VERSION = 1


class StoredPlan:
    """The windows of a folder.

    Raises:
        ValueError: there is no plan, it is damaged, or it was made for another mixture or other rows.
    """

    def __init__(self, folder: str | Path, mixture: Mixture, shape: RowLayout) -> None:
        self.folder, self.mixture, self.shape = Path(folder), mixture, shape
        made_for = read_json(self.folder / MARK)
        if made_for is None:
            raise ValueError(f"{self.folder} holds no plan: make one with `unimm plan`, by the words of the training.")
        check_format(made_for, VERSION, self.folder / MARK, "version")
        expected = describe(mixture, shape)
        differ = sorted(key for key in expected if made_for.get(key) != expected[key])
        if differ:
            key = differ[0]
            raise ValueError(
                f"{self.folder} was planned for another {', '.join(differ)} ({made_for.get(key)}, here {expected[key]}): "
                f"plan again with `unimm plan`."
            )
        try:
            names = ("samples", "lengths", "ends", "windows")
            arrays = [np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is damaged or cut short ({error}): plan again with `unimm plan`.") from error
        self._samples, self._lengths, self._ends, self._windows = arrays

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
        start, stop = (int(self._ends[number - 1]) if number else 0), int(self._ends[number])
        planned = []
        for (source, index), length in zip(self._samples[start:stop], self._lengths[start:stop], strict=True):
            sample = int(source), int(index)
            planned.append(Planned(sample, measured(self.mixture, sample, self.shape.num_positions)))
            if planned[-1].sequence.length != length:
                raise ValueError(
                    f"{self.folder} was planned for other data: {self.mixture.name(sample)} takes "
                    f"{planned[-1].sequence.length} positions, not {length}; plan again with `unimm plan`."
                )
        return planned


class _StoredWindow:
    def __init__(self, stored: StoredPlan, number: int, end: int) -> None:
        self._stored, self._number, self.end = stored, number, end

    def rows(self, step: int, part: slice) -> list[list[Planned]]:
        shape = self._stored.shape
        first = (self._number * shape.num_steps + step) * shape.num_rows
        return [self._stored.row(row) for row in range(first, first + shape.num_rows)[part]]


def describe(mixture: Mixture, shape: RowLayout) -> dict[str, Any]:
    """What a plan depends on, as far as it can be told without looking at samples; JSON-able."""
    sources = [[source.name, len(source.dataset), source.weight] for source in mixture.sources]
    told = {"seed": mixture.seed, "weigh_by": mixture.weigh_by, "max_positions": mixture.template.max_positions}
    return {"version": VERSION, **asdict(shape), **told, "sources": sources}


def store_plan(
    folder: str | Path,
    mixture: Mixture,
    shape: RowLayout,
    num_steps: int,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Plan the first steps of a training, in whole windows, and write them; a plan that was there is replaced.

    num_workers: processes that measure samples. progress: told how many steps are planned, window after window.

    Returns:
        The fill: the share of positions that are no padding.

    Raises:
        ValueError: a sample is longer than a row, or the path holds something else than a plan.
    """
    num_windows = max(1, -(-num_steps // shape.num_steps))
    with whole_folder(Path(folder).resolve(), MARK, "a plan") as place:
        order: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        cut: dict[int, int] = {}
        ends, windows, filled = [0], [0], 0
        sizes = _Ahead(_measured(mixture, shape, num_workers))
        for window in range(num_windows):
            ahead = sizes.more_than(shape.room)
            dealt = [row for step in shape.deal(ahead, mixture.seed, windows[-1]) for row in step]
            order.append(windows[-1] + np.array([index for row in dealt for index in row], dtype=np.int64))
            lengths.append(np.array([ahead[index].length for row in dealt for index in row], dtype=np.int32))
            ends += (ends[-1] + np.cumsum([len(row) for row in dealt])).tolist()
            cut |= cut_lengths(ahead[: len(order[-1])], windows[-1])
            windows.append(windows[-1] + len(order[-1]))
            filled += int(lengths[-1].sum())
            sizes.forget(len(order[-1]))
            if progress is not None:
                progress(min(num_steps, (window + 1) * shape.num_steps))
        tell_cuts(mixture, shape.num_positions, windows[-1], cut)
        stream = np.array(mixture.samples(0, windows[-1]), dtype=np.int64).reshape(-1, 2)
        arrays = {
            "samples": stream[np.concatenate(order)],
            "lengths": np.concatenate(lengths),
            "ends": np.array(ends[1:], dtype=np.int64),
            "windows": np.array(windows, dtype=np.int64),
        }
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array, allow_pickle=False)
        write_json(place / MARK, describe(mixture, shape))
    return filled / (num_windows * shape.room)


class _Chunks(TorchDataset):
    """Sizes of the stream, chunk by chunk."""

    def __init__(self, mixture: Mixture, num_positions: int) -> None:
        self.mixture, self.num_positions = mixture, num_positions

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, number: int) -> list[SampleSize]:
        samples = self.mixture.samples(number * CHUNK, CHUNK)
        return [SampleSize.of(measured(self.mixture, sample, self.num_positions)) for sample in samples]


def _measured(mixture: Mixture, shape: RowLayout, num_workers: int) -> Iterator[SampleSize]:
    chunks = _Chunks(mixture, shape.num_positions)
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
    """Sizes that were measured and not yet dealt out."""

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
