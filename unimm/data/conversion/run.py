"""A data set is converted part by part, and goes on where it stopped; nothing half-written is ever read.

First all records are read, without their images: what they hold decides whether the format can hold them, and how. Then parts
are written, in a folder beside OUT that takes its place when all are there (`ResumableFolder`). A part ends where it is large
enough, so the note beside it tells which records it holds, and which of them could not be used. Where such a record has been
mended, its part is made again, and with it all parts behind: they begin elsewhere now.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from unimm.data.bad_records import BAD_RECORDS, BadRecord, count_kinds
from unimm.data.conversion.entries import PARTS, Entry, EntryReader, as_utf8
from unimm.data.conversion.format import FORMATS, Contents, Format
from unimm.data.conversion.formats import IMAGES, JsonLinesFormat
from unimm.data.records import Dataset, key_at
from unimm.runtime.atomic_files import flush, replace_json, write_json
from unimm.runtime.environment import loader_processes
from unimm.runtime.number_checks import check_number, check_probability, check_whole
from unimm.runtime.resumable_folder import ResumableFolder

MARK = ".conversion.json"
"""By which the folder of a conversion is known; readers pass over names that begin with a dot."""

LINES, SHARD_RECORDS = 1000, 10_000
"""The most records of a part: of lines, and of a shard. A part ends at `shard_megabytes` of images as well."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(title, number of records) -> what is called with how many more are done."""


@dataclass(frozen=True)
class ConversionConfig:
    """How it is gone about.

    to: one of `FORMATS`. leave_out: parts of records that are not written. shard_megabytes: a shard ends when its images have
    so many, and so does a part of the formats of lines, which bounds the memory.
    num_workers: processes that read images; 0: this one. max_bad: the share of records that may be unusable and are left out.
    settings: what else the result depends on, JSON-able: a conversion that was begun with others is not continued.
    """

    to: str
    leave_out: tuple[str, ...] = ()
    shard_megabytes: float = 256.0
    num_workers: int = 0
    max_bad: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_number(self, "shard_megabytes", above=0)
        check_whole(self, 0, "num_workers")
        check_probability(self, "max_bad")
        if self.to not in FORMATS:
            raise ValueError(f"There is no format '{self.to}': choose to={', to='.join(FORMATS)}.")
        if unknown := sorted({*self.leave_out} - {*PARTS}):
            raise ValueError(f"Records have no '{unknown[0]}' to leave out: there is {', '.join(PARTS)}.")


class Converted(NamedTuple):
    """What was made: records, those that were left out, and with which overrides it is read."""

    num_records: int
    bad: list[BadRecord]
    overrides: list[str]


def convert(dataset: Dataset, out: Path, config: ConversionConfig, progress: Progress) -> Converted:
    """Write all records of a data set in another format, or go on with it.

    Raises:
        ValueError: the format cannot hold what the records hold, too many cannot be used, or something else lies at `out`.
    """
    unfinished = _folder(dataset, out, config)
    unfinished.begin()
    contents = _contents(dataset, out, unfinished, config, progress)
    form = FORMATS[config.to](contents)
    notes = _make(dataset, form, out, unfinished, config, progress)
    _check_unread(contents, notes)
    bad = [one for note in notes for one in note.records]
    num_records = sum(note.num_records for note in notes)
    if not num_records:
        raise ValueError(f"None of {len(dataset):,} records can be used ({count_kinds(bad)}): nothing is written.")
    if isinstance(form, JsonLinesFormat):
        parts = [unfinished.path(number) for number, note in enumerate(notes) if note.num_records]
        unfinished.put(form.joined, lambda path: form.join(parts, path))
        for part in parts:
            part.unlink(missing_ok=True)
    _list_bad(out, bad)
    told = Converted(num_records, bad, form.overrides(out))
    unfinished.put(MARK, lambda path: write_json(path, {**unfinished.content, "records": num_records, "read": told.overrides}))
    unfinished.finish()
    return told


def _folder(dataset: Dataset, out: Path, config: ConversionConfig) -> ResumableFolder:
    form = FORMATS[config.to]
    ends = [as_utf8(key_at(dataset, index)) for index in (0, len(dataset) - 1)] if len(dataset) else []
    content = {
        "to": config.to,
        "leave_out": sorted(config.leave_out),
        "shard_megabytes": config.shard_megabytes,
        "data": {"num_records": len(dataset), "ends": ends, **config.settings},
    }
    content = json.loads(json.dumps(content, default=str))
    hidden = "" if form.is_shard else "."
    return ResumableFolder(out, MARK, "a converted data set", content, lambda number: f"{hidden}{number:06}{form.suffix}")


def _contents(
    dataset: Dataset, out: Path, unfinished: ResumableFolder, config: ConversionConfig, progress: Progress
) -> Contents:
    """What all records hold, without their images, read once; and again where a bad one has been mended."""
    path = unfinished.workspace / "contents.json"
    reader = EntryReader(dataset, config.leave_out, with_images=False)
    if path.is_file():
        kept = json.loads(path.read_text("utf-8"))
        if "bad" in kept and not any(isinstance(reader[index], Entry) for index in kept["bad"]):
            return Contents(**{**kept, "counts": Counter(kept["counts"])})
    _drop_from(unfinished, 0)  # they may lack what is found now
    contents, bad = Contents(), list[BadRecord]()
    form = FORMATS[config.to](contents)
    with progress("reading the records", len(dataset)) as advance:
        for index in range(len(dataset)):
            entry = reader[index]
            if isinstance(entry, Entry):
                form.check(entry)
                contents.add(entry)
            else:
                bad.append(BadRecord(*entry))
                contents.bad.append(index)
                _check_budget(bad, len(dataset), out, config)
            advance(1)
    form.check_all()
    replace_json(path, {**vars(contents), "counts": dict(contents.counts)})
    return contents


class _Note(NamedTuple):
    """Beside a part: the index of its first record and that behind its last, how many it holds, and which could not be used:
    index, key, reason."""

    start: int
    end: int
    num_records: int
    bad: list[tuple[int, str, str]]

    @property
    def records(self) -> list[BadRecord]:
        """Those that could not be used."""
        return [BadRecord(key, reason) for _, key, reason in self.bad]


def _make(
    dataset: Dataset, form: Format, out: Path, unfinished: ResumableFolder, config: ConversionConfig, progress: Progress
) -> list[_Note]:
    """Write the parts that are missing; gives the notes of all."""
    reader = EntryReader(dataset, config.leave_out)
    notes = _kept(unfinished, reader)
    start = notes[-1].end if notes else 0
    todo = range(start, len(dataset))
    bad = [one for note in notes for one in note.records]
    _check_budget(bad, len(dataset), out, config)
    loader = DataLoader(
        reader,  # pyright: ignore[reportArgumentType]
        batch_size=None,
        sampler=todo,
        num_workers=loader_processes(config.num_workers),
    )
    most = SHARD_RECORDS if form.is_shard else LINES
    entries, own, size = list[Entry](), list[tuple[int, str, str]](), 0
    with progress(f"writing {form.name}", len(todo)) as advance:
        for index, entry in zip(todo, loader, strict=True):
            if isinstance(entry, Entry):
                entries.append(entry)
                size += sum(len(image.content) for image in entry.images)
            else:
                own.append((index, *entry))
                _check_budget([*bad, BadRecord(*entry)], len(dataset), out, config)
                bad.append(BadRecord(*entry))
            advance(1)
            is_full = len(entries) >= most or size >= config.shard_megabytes * 1e6
            if entries and (is_full or index == len(dataset) - 1):
                first = sum(note.num_records for note in notes)
                notes.append(_Note(start, index + 1, len(entries), own))
                _save(form, entries, len(notes) - 1, first, unfinished, notes[-1])
                start, entries, own, size = index + 1, [], [], 0
    if own:  # behind the last part
        notes.append(_Note(start, len(dataset), 0, own))
    return notes


def _check_unread(contents: Contents, notes: list[_Note]) -> None:
    """Raises ValueError where records were written of which nothing was known when it was decided how."""
    mended = {*contents.bad} - {index for note in notes for index, *_ in note.bad}
    if mended:
        raise ValueError(
            f"{len(mended):,} records could not be read at first and can now, such as record {min(mended)}: give the same line "
            "again, so that all are written in one way."
        )


def _save(form: Format, entries: list[Entry], number: int, first: int, unfinished: ResumableFolder, note: _Note) -> None:
    def write(path: Path) -> None:
        form.write(entries, number, first, path, unfinished.whole)
        folder = unfinished.whole / IMAGES / f"{number:05}"
        for written in [*folder.iterdir(), folder, folder.parent] if folder.is_dir() else []:
            flush(written)

    replace_json(_note_path(unfinished, number), note._asdict())
    flush(_note_path(unfinished, number))
    unfinished.save(number, write)


def _kept(unfinished: ResumableFolder, reader: EntryReader) -> list[_Note]:
    """Of the parts that are there, one after the other, up to the first with a bad record that was mended meanwhile, or that
    does not begin where the one before ends; those behind are removed."""
    notes: list[_Note] = []
    while _note_path(unfinished, len(notes)).is_file() and not unfinished.missing([len(notes)]):
        told = json.loads(_note_path(unfinished, len(notes)).read_text("utf-8"))
        if told.get("start") != (notes[-1].end if notes else 0):
            break
        if any(isinstance(reader[index], Entry) for index, *_ in told["bad"]):
            break
        notes.append(_Note(**told))
    _drop_from(unfinished, len(notes))
    return notes


def _drop_from(unfinished: ResumableFolder, number: int) -> None:
    """Remove the parts from one on, their notes first, and what was made of all parts: it is made again."""
    workspace, whole = unfinished.workspace, unfinished.whole
    for path in [*sorted(workspace.glob("part-*.json")), *workspace.glob("*.sha256"), *whole.iterdir()]:
        own = re.fullmatch(r"(?:part-|\.)?(\d+)\.\w+", path.name)
        if path.is_file() and (own is None or int(own[1]) >= number):
            path.unlink()
    for folder in (unfinished.whole / IMAGES).glob("*"):
        if int(folder.name) >= number:
            shutil.rmtree(folder)
    flush(unfinished.workspace)


def _note_path(unfinished: ResumableFolder, number: int) -> Path:
    return unfinished.workspace / f"part-{number:06}.json"


def _check_budget(bad: list[BadRecord], num_records: int, out: Path, config: ConversionConfig) -> None:
    """Raises ValueError where more records cannot be used than may be, and lists them."""
    if len(bad) <= config.max_bad * num_records:
        return
    listed = _list_bad(out, bad)
    raise ValueError(
        f"{len(bad):,} of {num_records:,} records cannot be used ({count_kinds(bad)}), and max_bad={config.max_bad:g} of them "
        f"may be; they are listed in {listed}: mend them, take them out or raise max_bad, and give the same line again."
    )


def _list_bad(out: Path, bad: list[BadRecord]) -> Path:
    """The list beside OUT, where no reader takes it for data; none where there is nothing to list."""
    path = out.with_name(f"{out.name}.{BAD_RECORDS}")
    path.unlink(missing_ok=True)
    if bad:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{one.key}\t{one.reason}\n" for one in bad)
        path.write_text(lines, encoding="utf-8", errors="backslashreplace")
    return path
