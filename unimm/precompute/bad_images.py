"""Images that cannot be read: gathered over hours and several processes, and named all at once."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset as TorchDataset

from unimm.data.bad_records import as_listed
from unimm.data.records import Dataset, ImageLike, Video, key_at, unchecked
from unimm.runtime.resumable_folder import ResumableFolder

MOST_NAMED = 20
"""Of those that are named in a message; the others are counted."""

MOST_CHARACTERS = 700
"""Of their names in a message."""

HOPELESS = 100
"""So many of them end the work where it is, if they are most of what was seen so far."""


class BadImage(NamedTuple):
    """An image that cannot be used: its record's key, and why."""

    key: str
    reason: str


class UsedImages(TorchDataset):
    """What `use` makes of the image of a record, by index; a BadImage where it cannot."""

    def __init__(self, dataset: Dataset, use: Callable[[ImageLike], Any]) -> None:
        self._dataset, self._use = dataset, use

    def __getitem__(self, index: int) -> Any:
        key = f"record {index}"
        try:
            record = unchecked(self._dataset, index)
            key = record.key
            if isinstance(record.image, Video):
                return BadImage(key, "it is a video, of which nothing is stored: leave its source out, or train without")
            return BadImage(key, "it has no image") if record.image is None else self._use(record.image)
        except (ValueError, OSError) as error:
            key = key_at(self._dataset, index) or key
            return BadImage(key, short_reason(error))


def is_hopeless(num_bad: int, num_seen: int) -> bool:
    """Whether it is of no use to go on: nearly all are bad."""
    return num_bad >= HOPELESS and 2 * num_bad > num_seen


def note_bad(unfinished: ResumableFolder, part: int | None, bad: list[BadImage]) -> None:
    """Leave word for all processes of the bad images of a part, or (None) of the records that name no image: an interrupted
    pass goes on with what it has made, and knows what it could not make."""
    path = _note(unfinished, part)
    if bad:
        temporary = path.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(bad), encoding="utf-8")
        temporary.replace(path)
    else:
        path.unlink(missing_ok=True)


def forget_bad(unfinished: ResumableFolder, are_rows_known: bool = False) -> None:
    """Forget what is tried again, since it may have been mended: all but the bad images of parts that are there. By the first
    process, before the others begin. are_rows_known: whether the records are not read again."""
    made = {_note(unfinished, part) for part in unfinished.begun(_noted_parts(unfinished))}
    made |= {_note(unfinished, None)} if are_rows_known else set()
    for path in unfinished.workspace.glob("bad*"):
        if path not in made:
            path.unlink()


def retry_bad(unfinished: ResumableFolder, parts: Iterable[int]) -> None:
    """Have those of these parts made again that have bad images; what was made of the others is kept."""
    for part in sorted({*parts} & {*_noted_parts(unfinished)}):
        unfinished.set_aside(part)


def noted_bad(unfinished: ResumableFolder) -> list[BadImage]:
    """The bad images that any process met, in the order of the records."""
    noted = [None, *_noted_parts(unfinished)]
    paths = [path for path in (_note(unfinished, part) for part in noted) if path.is_file()]
    return [BadImage(*one) for path in paths for one in json.loads(path.read_text("utf-8"))]


def _note(unfinished: ResumableFolder, part: int | None) -> Path:
    return unfinished.workspace / ("bad-records.json" if part is None else f"bad-{part:05}.json")


def _noted_parts(unfinished: ResumableFolder) -> list[int]:
    names = (path.stem.removeprefix("bad-") for path in unfinished.workspace.glob("bad-*.json"))
    return sorted(int(name) for name in names if name.isdigit())


def list_bad(bad: list[BadImage], path: Path) -> None:
    """Write the list of bad images: a key and a reason a line."""
    path.write_text("".join(f"{as_listed(one.key)}\t{as_listed(one.reason)}\n" for one in bad), encoding="utf-8")


def raise_bad(unfinished: ResumableFolder, num_images: int, max_bad: float = 0.0) -> None:
    """Raises ValueError where the processes met more bad images than a share of `max_bad`: names them, and says where all are
    listed if they are many."""
    bad = noted_bad(unfinished)
    if len(bad) <= max_bad * num_images:
        return
    num_named = min(len(bad), MOST_NAMED)
    while num_named > 1 and len(_told(bad[:num_named])) > MOST_CHARACTERS:
        num_named -= 1
    others = ""
    if num_named < len(bad):
        listed = unfinished.workspace / "bad_images.txt"
        list_bad(bad, listed)
        others = f"; and {len(bad) - num_named:,} others, see {listed}"
    allowed = f", and max_bad={max_bad:g} of them may be" if max_bad else ""
    raise ValueError(
        f"{len(bad):,} of {num_images:,} images cannot be used ({_told(bad[:num_named])}{others}){allowed}: mend them or take "
        f"their records out, and run it again; what was made of the others is kept."
    )


def _told(bad: list[BadImage]) -> str:
    """Names by reason, which many share."""
    keys: dict[str, list[str]] = {}
    for one in bad:
        keys.setdefault(as_listed(one.reason), []).append(as_listed(one.key))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in keys.items())


def short_reason(error: Exception) -> str:
    """What is wrong, in a few words; the key says with which image."""
    said = " ".join(str(error).split()).rstrip(".")
    said = re.sub(r"^Cannot (read|use) (the image data|the array|the image|the file '.*?'): ", "", said)
    return said if len(said) <= 200 else f"{said[:200]}..."
