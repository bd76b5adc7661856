"""A run's budget of records that cannot be read (`max_bad`), and what a run that ends for them says of all it finds.

They are listed in `bad_records.txt` of the run's folder, a key and a reason a line. Once they are repaired or taken out, the
run goes on (`unimm.training.run_state` lets it, where nothing else has changed).

Where some may be bad (`max_bad`), others stand in for them, and the run ends only when there are more: `BadBudget` counts. Its
list is then `bad_records.txt`, and a search that ends the run for another reason lists in `bad_records_found.txt`.
"""

import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from unimm.data.bad_records import BAD_RECORDS, BadRecord, as_listed, count_kinds, reason_of
from unimm.data.image import decode_image
from unimm.data.image_batches import ImageBatches
from unimm.data.mixture import Mixture
from unimm.data.records import Dataset, SeenImage, first_records, key_at, known_length
from unimm.runtime.rank_sync import Ranks

FOUND_RECORDS, BEFORE_RECORDS = "bad_records_found.txt", "bad_records_before.txt"
"""In the folder of a run in which some records may be bad: those that were found when it ended, a key and a reason a line; and
those that were met before the data were changed."""

SECONDS_OF_SEARCH = 20.0
ENOUGH = 1000
"""Of so many records a share may be bad, however few were read yet: the first that are read may be the bad ones."""

logger = logging.getLogger(__name__)
MOST_NAMED = 12


class DataError(ValueError):
    """A step cannot be made, since what it would learn from cannot be read."""


class TooManyBadError(DataError):
    """More records of a source cannot be used than may be."""


class Search(NamedTuple):
    """What was found, in how many of how many records."""

    bad: list[BadRecord]
    num_seen: int
    num_records: int | None


def lost_step(
    error: Exception, step: int, datasets: Iterable[Dataset], folder: Path, is_saved: bool, max_bad: float = 0.0
) -> Exception:
    """The error that ends a run which could not read what step number `step` would learn from; anything but data: the same.

    folder: the run's, in which the bad records are listed. is_saved: whether the steps before it are. max_bad: the share of
    records that may be bad; above 0 `bad_records.txt` is what the run has met, and the search has a list of its own.
    """
    if not isinstance(error, ValueError | OSError):
        return error
    found = Search([], 0, 0) if isinstance(error, TooManyBadError) else find_bad_records(datasets)
    if found.bad:
        lines = "".join(f"{key}\t{reason}\n" for key, reason, _ in found.bad)
        unseen = None if found.num_records is None else found.num_records - found.num_seen
        why = f", since {len(found.bad):,} of {found.num_seen:,} records cannot be used: {_named(found.bad)}"
        others = "all" if unseen is None else f"{unseen:,}"
        why += f"; there was no time to look at {others} others" if unseen != 0 else ""
        why += f"; {_listed(folder / (FOUND_RECORDS if max_bad else BAD_RECORDS), lines)}"
    else:
        why = f": {reason_of(error)}"
    if step == 1:
        done = "nothing was learned yet"
    else:
        done = f"the {step - 1:,} steps before it are saved" if is_saved else "what was learned before it could not be saved"
    ways = "mend these, take them out or raise max_bad" if isinstance(error, TooManyBadError) else "mend these or take them out"
    return DataError(f"Step {step:,} cannot be made{why}; {done}: {ways}, and give the same line again.")


def _listed(path: Path, lines: str) -> str:
    """Write the list, and say so, or that there is none."""
    try:
        path.write_text(lines, encoding="utf-8")
    except OSError as error:
        return f"they could not be listed in {path} ({error.strerror})"
    return f"all are listed in {path}"


def find_bad_records(datasets: Iterable[Dataset], seconds: float = SECONDS_OF_SEARCH) -> Search:
    """Read every record of some data sets and decode its image, for so many seconds at most. An image that several of them show
    is looked at once, one whose features are stored not at all."""
    datasets, seen, bad = list(datasets), set[str](), dict[str, BadRecord]()
    num_seen, deadline = 0, time.monotonic() + seconds
    for dataset in datasets:
        for records, index in first_records(dataset):
            if time.monotonic() > deadline:
                lengths = [known_length(one) for one in datasets]
                total = None if None in lengths else sum(length or 0 for length in lengths)
                return Search(list(bad.values()), num_seen, total)
            num_seen += 1
            key = f"record {index}"
            try:
                record = records[index]
                key = record.key
                for image in (one.image for one in record.images):
                    if not isinstance(image, SeenImage) and str(image)[:300] not in seen:
                        decode_image(image)
                    seen |= {str(image)} if isinstance(image, str | Path) else set()
            except (ValueError, OSError) as error:
                key = as_listed(key_at(records, index) or key)
                bad.setdefault(key, BadRecord(key, as_listed(reason_of(error))))
    return Search(list(bad.values()), num_seen, num_seen)


def _named(bad: list[BadRecord]) -> str:
    """Keys by reason, which many share."""
    keys: dict[str, list[str]] = {}
    for key, reason, _ in bad[:MOST_NAMED]:
        keys.setdefault(re.sub(r"^Cannot (read|use) .{1,400}?: ", "", reason), []).append(key)
    others = f" and {len(bad) - MOST_NAMED:,} others" if len(bad) > MOST_NAMED else ""
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in keys.items()) + others


class BadBudget:
    """Counts the bad records that a run has met, lists them, and ends it where they are more than a share of `max_bad`: of the
    records of a source that were read so far, or of a thousand of them where these are more.

    Args:
        folder: the run's; what is listed there of an earlier part of the run is counted.
        data: what is learned, with its `max_bad`.
        ranks: the processes of the run, all of which call this.
        kept: bytes of the list that are of the steps before the one that the run goes on with: what was listed later is met
            again. 0 for a run that begins: what is listed there is of another. None: all.
        lists: whether this process lists what it meets; else another one that reads the same does.
    """

    def __init__(self, folder: Path, data: Mixture | ImageBatches, ranks: Ranks, kept: int | None, lists: bool = True) -> None:
        self._lists = lists
        self.path, self.data, self.max_bad = folder / BAD_RECORDS, data, data.max_bad
        if ranks.number == 0 and self.path.is_file():
            if kept == 0:
                self.path.unlink()
            elif kept is not None and self.max_bad and self._size() > kept:
                os.truncate(self.path, kept)
        ranks.barrier()  # no process reads the list before that
        self.bad = self._read()
        self.is_ahead, self._size_before = False, 0

    @property
    def size(self) -> int:
        """Bytes of the list, which checkpoints keep: without what a step found that was met and not learned yet (`is_ahead`),
        since it is met again when the run goes on, where it was not mended."""
        return self._size_before if self.is_ahead else self._size()

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def add(self, found: Iterable[BadRecord]) -> None:
        """Count and list those that are new. Every process lists its own, and counts those of all."""
        listed = [BadRecord(as_listed(one.key), as_listed(one.reason), one.source) for one in found]
        new = {(one.source, one.key): one for one in listed if (one.source, one.key) not in self.bad}
        if new:  # another process may have listed them meanwhile
            self.bad |= self._read()
            new = {key: one for key, one in new.items() if key not in self.bad}
        if not new:
            return
        if not self._lists:
            self.bad |= new
            return
        if not self.bad:
            one = next(iter(new.values()))
            logger.warning(
                f"The record {one.key} of '{one.source}' cannot be used ({one.reason}): another one stands in for it, as for "
                f"all such, which {self.path} lists; the run ends when they are more than a share of max_bad={self.max_bad:g}."
            )
        try:
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{one.key}\t{one.reason}\t{one.source}\n" for one in new.values())
        except OSError as error:
            logger.warning(f"{len(new)} bad records cannot be listed in {self.path} ({error.strerror}).")
        self.bad |= {**self._read(), **new}

    def meet(self, found: Iterable[BadRecord], num_samples: int, drawn: tuple[int, ...] = ()) -> TooManyBadError | None:
        """Count what a step has found, and say what ends the run before it is learned. num_samples: of the stream, so far;
        drawn: of each source, where their shares change."""
        self._size_before, self.is_ahead = self._size(), True
        self.add(found)
        return self.exceeded(num_samples, drawn)

    def exceeded(self, num_samples: int, drawn: tuple[int, ...] = ()) -> TooManyBadError | None:
        """What ends the run where there are more than may be, else None. num_samples, drawn: see `meet`."""
        counts = drawn or [share * num_samples for share in self.data.shares]
        for source, count in zip(self.data.sources, counts, strict=True) if self.bad else ():
            bad = [one for one in self.bad.values() if one.source == source.name]
            length = known_length(source.dataset)
            read = int(max(count, ENOUGH) if length is None else min(length, max(count, ENOUGH)))
            if len(bad) > self.max_bad * read:
                return TooManyBadError(
                    f"{len(bad):,} of {read:,} records of the source '{source.name}' cannot be used ({count_kinds(bad)}), and "
                    f"max_bad={self.max_bad:g} of them may be; all are listed in {self.path}"
                )
        return None

    def numbers(self) -> dict[str, float]:
        """What is logged, where there are any."""
        return {"data/bad_records": float(len(self.bad))} if self.bad else {}

    def summary(self) -> list[str]:
        """A line for a person, where there are any."""
        bad = list(self.bad.values())
        if not bad:
            return []
        return [f"{len(bad):,} records could not be used and were replaced ({count_kinds(bad)}): see {self.path}"]

    def _read(self) -> dict[tuple[str, str], BadRecord]:
        lines = self.path.read_text("utf-8", "backslashreplace").splitlines() if self.path.is_file() else []
        read = [BadRecord(*[*line.split("\t", 2), "", ""][:3]) for line in lines]
        return {(one.source, one.key): one for one in read if one.source}  # others are of a run that allowed none
