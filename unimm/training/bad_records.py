"""Records that cannot be read: when a run finds one, it searches for others for a while and names all of them at once.

They are listed in `bad_records.txt` of the run's folder, a key and a reason a line. Once they are repaired or taken out, the
run goes on (`unimm.data.run_signature` lets it, where nothing else has changed).
"""

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from unimm.data.image import decode_image
from unimm.data.records import Dataset, SeenImage
from unimm.data.run_signature import BAD_RECORDS

SECONDS_OF_SEARCH = 20.0
MOST_NAMED = 12


class DataError(ValueError):
    """A step cannot be made, since what it would learn from cannot be read."""


class BadRecord(NamedTuple):
    """A record that cannot be read, or whose image cannot: its key, and why."""

    key: str
    reason: str


class Search(NamedTuple):
    """What was found, in how many of how many records."""

    bad: list[BadRecord]
    num_seen: int
    num_records: int


def lost_step(error: Exception, step: int, datasets: Iterable[Dataset], folder: Path, is_saved: bool) -> Exception:
    """The error that ends a run which could not read what step number `step` would learn from; anything but data: the same.

    folder: the run's, in which the bad records are listed. is_saved: whether the steps before it are.
    """
    if not isinstance(error, ValueError | OSError):
        return error
    found = find_bad_records(datasets)
    if found.bad:
        lines = "".join(f"{key}\t{reason}\n" for key, reason in found.bad)
        unseen = found.num_records - found.num_seen
        why = f", since {len(found.bad):,} of {found.num_seen:,} records cannot be used: {_named(found.bad)}"
        why += f"; there was no time to look at {unseen:,} others" if unseen else ""
        why += f"; {_listed(folder / BAD_RECORDS, lines)}"
    else:
        why = f": {reason_of(error)}"
    if step == 1:
        done = "nothing was learned yet"
    else:
        done = f"the {step - 1:,} steps before it are saved" if is_saved else "what was learned before it could not be saved"
    return DataError(f"Step {step:,} cannot be made{why}; {done}: mend these or take them out, and give the same line again.")


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
        for index in range(len(dataset)):
            if time.monotonic() > deadline:
                return Search(list(bad.values()), num_seen, sum(len(one) for one in datasets))
            num_seen += 1
            key = f"record {index}"
            try:
                record = dataset[index]
                key, image = record.key, record.image
                if image is not None and not isinstance(image, SeenImage) and str(image)[:300] not in seen:
                    decode_image(image)
            except (ValueError, OSError) as error:
                bad.setdefault(key, BadRecord(key, reason_of(error)))
            else:
                seen |= {str(image)} if isinstance(image, str | Path) else set()
    return Search(list(bad.values()), num_seen, num_seen)


def reason_of(error: Exception) -> str:
    """What is wrong, in one line, without the traceback of a process that loads data."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _named(bad: list[BadRecord]) -> str:
    """Keys by reason, which many share."""
    keys: dict[str, list[str]] = {}
    for key, reason in bad[:MOST_NAMED]:
        keys.setdefault(re.sub(r"^Cannot (read|use) .{1,400}?: ", "", reason), []).append(key)
    others = f" and {len(bad) - MOST_NAMED:,} others" if len(bad) > MOST_NAMED else ""
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in keys.items()) + others
