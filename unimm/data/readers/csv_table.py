"""CSV and TSV tables as a data set, as pandas, Excel and open_clip write them: a header, then a record a row.

    image,caption                   filepath<tab>title               sep=;
    1.png,"A cat, asleep."          1.png<tab>A cat.                 1.png;"A cat;
    2.png,A dog.                    2.png<tab>A dog.                 asleep."

Separators are commas, semicolons, tabs or bars, whichever the header is made of; a byte-order mark, Windows' line ends and line
breaks inside of quotes are read. A cell that holds a list, as JSON or as Python writes it, is a list of images or texts. Rows
are found by index, as those of JSON lines: the file is read through once to note where they begin and end.
"""

import ast
import csv
import io
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unimm.data.readers.fields import Fields, missing
from unimm.data.readers.json_lines import JsonFiles, JsonLines
from unimm.data.readers.paths import Paths, check_index

SUFFIXES = (".csv", ".tsv")
SEPARATORS = (",", ";", "\t", "|")
ASIDE = "UTF-8 CSV (in Excel: Save as, CSV UTF-8)"

_BOM = b"\xef\xbb\xbf"
_OTHERS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\x03\x04": "an Excel workbook, or another zip"}

csv.field_size_limit(1 << 30)  # of the process: an image in base64 is larger than the module's 128 KiB


class CsvTable(JsonLines):
    """The rows of .csv and .tsv files, file after file.

    Args:
        paths: a file, a folder, a pattern, or a list of such.
        fields: which column is what. An empty cell of an optional column is none.
        root: the folder that image paths start from; default: that of the file.

    Raises ValueError, at once where there is nothing, a column is not there or a quote is out of place (nothing says where the
    rows behind it begin), else when the bad row is read.
    """

    def __init__(self, paths: Paths, fields: Fields, root: str | Path | None = None) -> None:
        super().__init__(paths, fields, root)

    def open_files(self, paths: Paths) -> JsonFiles:
        """Tables in place of JSON."""
        needed = self.fields.names - set(self.fields.optional)
        return JsonFiles(paths, suffixes=SUFFIXES, open_one=lambda path: CsvItems(path, needed))

    def entry(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        """A row, its lists as lists."""
        row = {name: _with_lists(value) for name, value in item.items()}
        return {name: value for name, value in row.items() if value or name not in self.fields.optional}


class CsvItems:
    """Index -> row, as a dict of texts by the header's names.

    needed: columns that have to be there; they also tell which separator the header is written with.

    Raises ValueError for a file that is no table, lacks a column or has no rows, and for a row of another length.
    """

    def __init__(self, path: Path, needed: set[str]) -> None:
        self.path = path
        with path.open("rb") as file:
            start = file.read(4)
        for begin, kind in _OTHERS.items():
            if start.startswith(begin):
                raise ValueError(f"{path} is {kind}, which is not read: save it as {ASIDE}.")
        starts, ends, numbers = array("q"), array("q"), array("q")
        self.names, self.separator = [], ""
        lines = _Lines(path)
        try:
            self.separator, first = _separator(lines, needed)
            reader = csv.reader(lines.read(first), delimiter=self.separator, strict=True)
            self.names = [_decoded(name, path) for name in next(reader, [])]
            before, number = lines.given, lines.number
            for cells in reader:
                if any(cells):
                    starts.append(before)
                    ends.append(lines.given)
                    numbers.append(number + 1)
                before, number = lines.given, lines.number
        except csv.Error as error:
            raise ValueError(f"{path}, line {lines.number} cannot be read ({error}): write it as {ASIDE}.") from None
        self._check(needed)
        if not len(starts):
            raise ValueError(f"{path} has a header and no rows: give another file.")
        self._starts, self._ends, self._numbers = (np.array(one, dtype=np.int64) for one in (starts, ends, numbers))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            content = file.read(int(self._ends[index] - self._starts[index]))
        try:
            lines = io.StringIO(content.decode("utf-8"), newline="\n")
            cells = next(csv.reader(lines, delimiter=self.separator, strict=True))
        except (UnicodeDecodeError, csv.Error, StopIteration) as error:
            raise ValueError(f"{self.where(index)} cannot be read ({error}): write it as {ASIDE}.") from None
        if len(cells) != len(self.names):
            raise ValueError(
                f"{self.where(index)} does not have one value a column, but {len(cells)} for {len(self.names)}: put quotes "
                f"around texts with {'tabs' if self.separator == chr(9) else repr(self.separator)}."
            )
        return dict(zip(self.names, cells, strict=True))

    def where(self, index: int) -> str:
        """The file and the line where a row begins, counted from 1, for a person."""
        return f"{self.path}, line {self._numbers[index]}"

    def _check(self, needed: set[str]) -> None:
        for name in sorted(needed - set(self.names)):
            raise missing(name, self.names, str(self.path))
        twice = [name for name in self.names if name and self.names.count(name) > 1]
        if twice:
            raise ValueError(f"{self.path} has two columns '{twice[0]}': give one of them another name.")


class _Lines:
    """The lines of a file for the csv module, and how far it has been given. Read as Latin-1, a character is a byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.given, self.number = 0, 0

    def read(self, start: int) -> Iterator[str]:
        """Lines from a byte on, with their ends."""
        with self.path.open("rb") as file:
            file.seek(start)
            self.given = start
            for line in file:
                self.given += len(line)
                self.number += 1
                yield line.decode("latin-1")


def _separator(lines: _Lines, needed: set[str]) -> tuple[str, int]:
    """What the header's names are separated by, and where it begins."""
    with lines.path.open("rb") as file:
        first = file.readline(1 << 20)
        start = len(_BOM) if first.startswith(_BOM) else 0
        line = first[start:].decode("latin-1").rstrip("\r\n")
        if line.lower().startswith("sep=") and len(line) == 5:  # Excel's own
            lines.number = 1
            return line[4], len(first)
    found = {sign: len(needed & {_decoded(name, lines.path) for name in next(csv.reader([line], delimiter=sign), [])})
             for sign in SEPARATORS}  # fmt: skip
    most = max(found, key=lambda sign: (found[sign], line.count(sign)))
    return most, start


def _decoded(name: str, path: Path) -> str:
    try:
        return name.encode("latin-1").decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line 1 is not UTF-8 ({error.reason}): write it as {ASIDE}.") from None


def _with_lists(cell: str) -> Any:
    """A cell, or the list of texts, or of turns, that is written in it."""
    if not (cell.startswith("[") and cell.rstrip().endswith("]")):
        return cell
    for read in (json.loads, ast.literal_eval):  # of literals alone; it runs nothing
        try:
            found = read(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and found and all(isinstance(one, str | dict) for one in found):
            return found
    return cell
