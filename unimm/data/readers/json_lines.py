"""JSON lines as a data set: one object a line, with names for its fields and images as paths below a folder.

    {"image": "cats/1.jpg", "caption": "A cat.", "question": "Which animal?", "answer": "a cat"}

The objects are found by index, without the file in memory, either one a line or in one list of objects: the file is read
through once to note where each object begins and ends (16 bytes an object); after that an object costs one short read. A list
is checked whole while it is read through, lines are checked when they are read.
"""

import json
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from unimm.data.readers.fields import Fields
from unimm.data.readers.paths import Paths, check_index, find_files, image_at, locate, read_first, short_names, sound_files
from unimm.data.records import Record

_WINDOW = 1 << 24
_WHITE = re.compile(r"[ \t\r\n]*")
_BOM = b"\xef\xbb\xbf"


class JsonLines:
    """The entries of .jsonl files (of .json files, too, that hold one list), file after file.

    Args:
        paths: a file, a folder, a pattern, or a list of such.
        fields: which field is what.
        root: the folder that image paths start from; default: that of the file.

    Raises ValueError, at once where there is nothing or the first entries lack a field, else when the bad entry is read.
    """

    def __init__(self, paths: Paths, fields: Fields, root: str | Path | None = None) -> None:
        self.fields = fields
        self.files = self.open_files(paths)
        self.root = None if root is None else Path(root)
        read_first(self)  # a wrong name or root is an error now, not after the model is loaded

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        items, number, key = self.files.find(index)
        root = items.path.parent if self.root is None else self.root
        item, where = items[number], f"record {key}"
        try:
            return self.fields.record(self.entry(item, where), key, where, lambda value: image_at(root, value, where))
        except ValueError as error:
            raise ValueError(f"{items.where(number)}: {error}") from None  # the line is counted only now: that takes a while

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        return self.files.find(index)[2]

    def open_files(self, paths: Paths) -> "JsonFiles":
        """The entries, where a subclass reads files of another kind."""
        return JsonFiles(paths)

    def entry(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        """An entry by the names of `fields`, where a subclass reads entries of several forms. Raises ValueError for others."""
        return item


class Items(Protocol):
    """Index -> entry, of one file, and where it is."""

    path: Path

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def where(self, index: int) -> str: ...


class JsonItems:
    """Index -> dict. Raises ValueError for a file that cannot be read or holds nothing, and for an object that is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
            file.seek(start)
            self.is_list = file.read(1 << 16).lstrip().startswith(b"[")
            file.seek(start)
            starts, ends = _list_spans(file, path) if self.is_list else _line_spans(file)
        if not len(starts):
            raise ValueError(f"{path} holds no entries: give a file with a JSON object a line, or a list of them.")
        self._starts, self._ends = np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            content = file.read(int(self._ends[index] - self._starts[index]))
        try:
            item = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            told = f"{self.where(index)} is not JSON ({error})"
            raise ValueError(f"{told}: write one object a line, or a list of them, [{{...}}, {{...}}].") from None
        if not isinstance(item, dict):
            raise ValueError(f"{self.where(index)} is {type(item).__name__}, not an object: write {{...}} with named fields.")
        return item

    def where(self, index: int) -> str:
        """The file and the line of an entry, counted from 1, for a person."""
        with self.path.open("rb") as file:
            line = _count_lines(file, int(self._starts[index]))
        return f"{self.path}, line {line}"


class JsonFiles:
    """The entries of several files, one file after the other. open_one: makes entries of a file."""

    def __init__(
        self,
        paths: Paths,
        max_bad: float = 0.0,
        suffixes: tuple[str, ...] = (".jsonl", ".json"),
        open_one: Callable[[Path], Items] | None = None,
    ) -> None:
        files, self.files = sound_files(find_files(paths, suffixes), open_one or JsonItems, max_bad)
        self._names = short_names(files)
        self._ends = np.cumsum([len(items) for items in self.files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def find(self, index: int) -> tuple[Items, int, str]:
        """The file of an entry, its index in there, and its key."""
        file, place = locate(self._ends, index)
        return self.files[file], place, f"{self._names[file]}/{place}"


def _line_spans(file: IO[bytes]) -> tuple[array, array]:
    """Where lines begin and end; blank ones are none."""
    starts, ends, at = array("q"), array("q"), file.tell()
    for line in file:
        if not line.isspace():
            starts.append(at)
            ends.append(at + len(line))
        at += len(line)
    return starts, ends


def _list_spans(file: IO[bytes], path: Path) -> tuple[array, array]:
    """Where the objects of a list begin and end.

    The bytes are read as Latin-1: one character a byte, and JSON's own signs are ASCII, so places in the text are places in the
    file. Only the places are used.
    """
    starts, ends = array("q"), array("q")
    decode = json.JSONDecoder().raw_decode
    base, at, text = file.tell(), 0, ""
    expected = "["
    while True:
        at = _WHITE.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing, too
        problem, problem_at = f"expecting {' or '.join(expected)}", at
        if at < len(text):
            sign = text[at]
            if sign not in expected or expected == "":
                raise _not_json(path, base + at, "something behind its list" if not expected else problem)
            if sign == "{":
                try:
                    end = decode(text, at)[1]
                    starts.append(base + at)
                    ends.append(base + end)
                    at, expected = end, ",]"
                    continue
                except (ValueError, RecursionError) as error:
                    problem, problem_at = str(getattr(error, "msg", error)), getattr(error, "pos", at)
                    cut_short = problem.startswith("Unterminated string") or problem_at > len(text) - 16
                    if not cut_short:
                        raise _not_json(path, base + problem_at, problem) from None
            else:
                at += 1
                expected = {"[": "{]", ",": "{", "]": ""}[sign]
                continue
        more = file.read(_WINDOW)
        if not more and expected == "":
            return starts, ends
        if not more:
            raise _not_json(path, base + problem_at, f"{problem}; the file ends too early")
        base, at, text = base + at, 0, text[at:] + more.decode("latin-1")


def _not_json(path: Path, place: int, problem: str) -> ValueError:
    with path.open("rb") as file:
        line = _count_lines(file, place)
    return ValueError(f"{path}, line {line} is not JSON ({problem}): it should be a list of objects, [{{...}}, {{...}}].")


def _count_lines(file: IO[bytes], place: int) -> int:
    lines = 1
    while place > 0 and (chunk := file.read(min(place, _WINDOW))):
        lines += chunk.count(b"\n")
        place -= len(chunk)
    return lines
