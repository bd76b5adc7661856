"""A data set in shards: each file of a folder is read by itself, when it is first met; shards may be added at any time.

What any other data set has to know of all its records at the start (how many there are, where each lies), this one knows of a
shard at a time, and remembers from run to run how many records a shard holds (`shard_index`). So neither start nor memory grow
with the number of records. A training goes through it pass by pass (`unimm.data.shards.order`): shards that come while it runs
are part of its next pass. Asked for its length, or for a record by number, as where nothing is trained (`unimm data inspect`),
it is all shards that are there, in the order of their names; then all of them are counted.
"""

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from unimm.data.binding import bind
from unimm.data.readers.lru_cache import ProcessLocalLRU
from unimm.data.readers.paths import Paths, find_files, is_pattern, locate
from unimm.data.records import Dataset, DatasetContext
from unimm.data.shards.joined import Joined
from unimm.data.shards.located import Located
from unimm.data.shards.order import ShardedOrder
from unimm.data.shards.passes import Sizes
from unimm.data.shards.shard_index import FIRST, ShardIndex, ShardInfo
from unimm.runtime.number_checks import check_probability, check_whole

SUFFIXES = (".tar", ".jsonl", ".parquet", ".arrow")

FIRST_SHARDS = 8
"""Records that are held out are those of so many shards."""

KEY = 7
"""Of the generator that chooses them; as in `unimm.data.holdout`."""

logger = logging.getLogger(__name__)


class ShardedDataset(Located):
    """Shards, each read by a reader of its own.

    Args:
        paths: a folder, a pattern with `*`, or a list of such. New shards are looked for there.
        reader: makes a data set of the path of a shard: `unimm.data.WebDataset`, `JsonLines`, `Parquet`, or another.
        cache: the folder for what is known of shards (`shard_index`); default: beside them, or in your cache folder.
        max_bad: the share of shards that may be damaged: they are left out, with a warning.
        mix_shards: records are shuffled within so many shards at a time, which are kept open.
        suffixes: of the files that are shards.
        settings: of the reader; it is also given `cache` and `max_bad`, where it takes such.

    Raises ValueError where there is no shard, the first one cannot be read; later, where another one cannot, or has changed
    since it was first met.
    """

    def __init__(
        self,
        paths: Paths,
        reader: Callable[..., Dataset],
        cache: str | Path | None = None,
        max_bad: float = 0.0,
        mix_shards: int = 8,
        suffixes: tuple[str, ...] = SUFFIXES,
        **settings: Any,
    ) -> None:
        taken = signature(reader).parameters
        settings |= {name: value for name, value in (("cache", cache), ("max_bad", max_bad)) if name in taken}
        self.reader = partial(reader, **settings)
        self.paths, self.suffixes = paths, tuple(suffixes)
        self.max_bad, self.mix_shards = max_bad, mix_shards
        check_probability(self, "max_bad")
        check_whole(self, 1, "mix_shards")
        self.top = _top(paths)
        self.index = ShardIndex(self.top, _name_of(self.reader), None if cache is None else Path(cache))
        self.withheld: dict[str, np.ndarray] = {}
        self._wraps: list[Callable[[Dataset, str], Dataset]] = []
        self._bad: set[str] = set()
        self._open_shards: ProcessLocalLRU[Dataset] = ProcessLocalLRU(2 * mix_shards + 2)
        self._has_warned = False
        self.at_start = self.find()
        self._check_first()

    # -- shards -------------------------------------------------------------------------------------------------------

    def find(self) -> Sizes:
        """The shards that are there now, and their sizes."""
        files = [file for file in find_files(self.paths, self.suffixes) if self.index.home not in file.parents]
        sizes = {Path(os.path.relpath(file, self.top)).as_posix(): file.stat().st_size for file in files}
        return dict(sorted(sizes.items()))

    def path(self, name: str) -> Path:
        """The file of a shard."""
        return self.top / name

    def open(self, name: str) -> Dataset:
        """The records of a shard, those too that are withheld.

        Raises:
            ValueError: it is damaged, gone, or another one than it was.
        """
        return self._open_shards.get(name, lambda: self._open(name))

    def count(self, name: str) -> int:
        """How many records of a shard are learned from; 0 where it is damaged, and may be."""
        info = self.index.get(name) or self._meet(name)
        if info.reason and name not in self._bad:
            self._bad.add(name)
            self._leave_out(name, info)
        return info.num_records - (0 if info.reason else len(self.withheld.get(name, ())))

    def check_size(self, name: str, size: int) -> None:
        """Raises ValueError where a shard of a pass is gone, or has another size than when the pass began."""
        info, path = self.index.get(name), self.path(name)
        now = info.size if info is not None else path.stat().st_size if path.is_file() else None
        if now is None:
            raise self._unreadable(name, FileNotFoundError("it is gone since this pass over the data began: put it back"))
        if now != size:
            raise self._unreadable(
                name,
                ValueError(
                    f"it had {size:,} bytes when this pass over the data began, and now {now:,}: write shards elsewhere, move "
                    f"them into their folder when they are whole, and give changed data another name"
                ),
            )

    def place(self, name: str, number: int) -> int:
        """The place in its shard of the n-th of the records that are learned from."""
        held = self.withheld.get(name)
        if held is None:
            return number
        return int(np.searchsorted(held - np.arange(len(held)), number, side="right")) + number

    def _meet(self, name: str) -> ShardInfo:
        """Count the records of a shard that was never met."""
        path = self.path(name)
        try:
            with self._quiet():
                records = self.reader(path)
            info = ShardInfo.of(path, len(records))
        except (ValueError, OSError) as error:
            if not self.max_bad or not path.is_file():
                raise self._unreadable(name, error) from None
            info = ShardInfo.of(path, 0, " ".join(str(error).split()))
        return self.index.put(name, info)

    def _open(self, name: str) -> Dataset:
        path, known = self.path(name), self.index.get(name) or self._meet(name)
        try:
            if not known.is_of(path):
                raise ValueError(
                    f"it has changed since it was first read, when it held {known.num_records:,} records in {known.size:,} "
                    f"bytes: give changed data another name, or delete {self.index.path(name)} to begin anew with it"
                )
            with self._quiet():
                records = self.reader(path)
            if len(records) != known.num_records:
                raise ValueError(
                    f"it holds {len(records):,} records, and held {known.num_records:,}: delete {self.index.path(name)}"
                )
        except (ValueError, OSError) as error:
            raise self._unreadable(name, error) from None
        for wrap in self._wraps:
            records = wrap(records, name)
        return records

    def _unreadable(self, name: str, error: Exception) -> ValueError:
        told = str(error).rstrip(".")
        return ValueError(f"The shard {self.path(name)} cannot be read: {told}.")

    def _leave_out(self, name: str, info: ShardInfo) -> None:
        num_shards = len(self.find())
        if len(self._bad) > self.max_bad * num_shards:
            raise ValueError(
                f"{len(self._bad):,} of {num_shards:,} shards cannot be read, and max_bad={self.max_bad:g} of them may be; the "
                f"last is {self.path(name)} ({info.reason}): put sound ones there under other names, and take these out."
            )
        if not self._has_warned:
            logger.warning(f"The shard {self.path(name)} cannot be read and is left out, as all such: {info.reason}")
            self._has_warned = True

    def _check_first(self) -> None:
        """Read the first shard that can be: a wrong name of a field is an error now, not after the model is loaded."""
        first: Exception | None = None
        for name in list(self.at_start)[:FIRST_SHARDS]:
            try:
                if self.count(name):
                    self.open(name)
                    return
            except (ValueError, OSError) as error:
                first = first or error
                if not self.max_bad:
                    break
        raise first or ValueError(f"None of the first shards at {self.paths} can be read: put sound ones there.")

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """What a reader warns of in its first shard is true of the others, too."""
        readers = logging.getLogger("unimm.data.readers")
        level = readers.level
        if self._has_opened:
            readers.setLevel(logging.ERROR)
        try:
            yield
        finally:
            readers.setLevel(level)
            self._has_opened = True

    _has_opened = False

    # -- as it is learned from ----------------------------------------------------------------------------------------

    def order(self, key: int) -> ShardedOrder:
        """The records in the order of a training. key: of its random numbers."""
        return ShardedOrder(self, key)

    def wrapped(self, wrap: Callable[[Dataset, str], Dataset]) -> Self:
        """The same shards, each as `wrap(records, name)` makes it."""
        other = self._copy()
        other._wraps = [*self._wraps, wrap]
        return other

    def bind(self, context: DatasetContext) -> Self:
        """The same data set, as it is used with certain networks."""
        return self.wrapped(partial(_bound, context=replace(context, tower=None)))  # shards hold no features

    def hold_out(self, num_records: int) -> tuple[Self, Dataset]:
        """What is learned from, and so many records that are held out, of the shards that were there when any were held out
        first: later shards change nothing about it.

        Raises:
            ValueError: these shards hold too few.
        """
        from unimm.data.holdout import Subset

        names = self.index.first_shards(list(islice((name for name in self.at_start if self.count(name)), FIRST_SHARDS)))
        gone = [name for name in names if name not in self.at_start]
        if gone:
            raise ValueError(
                f"Records of the shard {self.path(gone[0])} are held out, and it is not there or has no codes: put it back, or "
                f"delete {self.index.path(FIRST)} to hold out others."
            )
        held: list[Dataset] = []
        other = self._copy()
        for number, name in enumerate(names):
            share, count = len(range(number, num_records, len(names))), self.count(name)
            if 2 * share > count:
                raise ValueError(f"{share} records cannot be held out of the {count} of {self.path(name)}: lower held_out.")
            order = np.random.Generator(np.random.Philox(key=KEY)).permutation(count)
            other.withheld[name] = np.sort(order[:share])
            if share:
                held.append(Subset(self.open(name), other.withheld[name]))
        return other, Joined(held)

    def settings(self) -> dict[str, Any]:
        """What the order of records depends on beside shards and seed; JSON-able."""
        held = sum(len(places) for places in self.withheld.values())
        return {"shards_of": _name_of(self.reader), "mix_shards": self.mix_shards, "held_out": held}

    def _copy(self) -> Self:
        other = copy.copy(self)
        other._open_shards, other.withheld = ProcessLocalLRU(2 * self.mix_shards + 2), dict(self.withheld)
        other._bad = set(self._bad)
        vars(other).pop("counted", None)
        return other

    # -- as all that is there -----------------------------------------------------------------------------------------

    @cached_property
    def counted(self) -> tuple[list[str], np.ndarray]:
        """The shards that were there at the start, in the order of their names, and where the records of each end."""
        names = [name for name in self.at_start if self.count(name)]
        return names, np.cumsum([self.count(name) for name in names])

    def __len__(self) -> int:
        return int(self.counted[1][-1]) if len(self.counted[1]) else 0

    def locate(self, index: int) -> tuple[Dataset, int]:
        """A record by number: the records of its shard, and its place there."""
        names, ends = self.counted
        shard, number = locate(ends, index)
        return self.open(names[shard]), self.place(names[shard], number)

    def head(self, count: int | None) -> Iterator[tuple[Dataset, int]]:
        """The first records (None: all) as `locate` gives them, without counting more shards than these lie in."""
        left = count
        for name in self.at_start:
            own = self.count(name) if left is None else min(left, self.count(name))
            yield from ((self.open(name), self.place(name, number)) for number in range(own))
            left = None if left is None else left - own
            if left == 0:
                return


def _bound(records: Dataset, name: str, context: DatasetContext) -> Dataset:
    return bind(records, context)


def _top(paths: Paths) -> Path:
    """The folder that names of shards start from: the one that is named, or holds what is; whatever lies in it."""
    tops = []
    for path in map(Path, paths if isinstance(paths, list) else [paths]):
        parts = [number for number, part in enumerate(path.parts) if is_pattern(part)]
        tops.append(Path(*path.parts[: parts[0]]) if parts else path if path.is_dir() else path.parent)
    return Path(os.path.commonpath([os.path.abspath(top) for top in tops]))  # noqa: PTH100 - links stay as they are named


def _name_of(reader: Any) -> str:
    """What a reader is called, its settings left out (`functools.partial`)."""
    while isinstance(reader, partial):
        reader = reader.func
    return str(getattr(reader, "__name__", type(reader).__name__))
