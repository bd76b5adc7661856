"""Plain text as a data set: documents of .txt and .jsonl files, those that are too long cut into pieces at white space.

Nothing is lost: the pieces of a document, one after the other, are the document (without white space at its ends). A piece
begins with the white space at which it was cut, as the words of a byte-level BPE do. Where there is none (Chinese, a long
address) a piece ends behind a full stop or comma, else anywhere. The files are read through once; then a piece costs one short
read.
"""

import re
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from unimm.data.readers.json_lines import JsonItems
from unimm.data.readers.paths import Paths, check_index, find_files, short_names
from unimm.data.records import Record, Text

DOCUMENTS = ("blank_line", "line", "file")
JSON = (".jsonl", ".json")


class PlainTextFiles:
    """Pieces of text in the order of the files; the key of a piece is its file and its number in there.

    Args:
        paths: a file, a folder, a pattern, or a list of such.
        documents: of .txt files: "blank_line" ends one, each "line" is one, or the whole "file". In .jsonl files (and .json
            files that are named) an entry is one.
        field: of entries: where the text is.
        max_characters: longer documents are cut. Four English characters make a token or so, a Chinese one makes one to three.
        language: of all of it.

    Raises ValueError where there is no text, a file is no UTF-8 or an entry no JSON with such a field: file and line are named.
    """

    def __init__(
        self,
        paths: Paths,
        documents: str = "blank_line",
        field: str = "text",
        max_characters: int = 2000,
        language: str = "en",
    ) -> None:
        if documents not in DOCUMENTS:
            raise ValueError(f"Documents are separated by {', '.join(DOCUMENTS)}, not by '{documents}'.")
        if max_characters < 1:
            raise ValueError(f"A piece of text has at least 1 character, not {max_characters}: raise max_characters.")
        self.files = find_files(paths, (".txt", *JSON))
        self.field, self.language = field, language
        self._names = short_names(self.files)
        self._lines = {file: JsonItems(file) for file in self.files if file.suffix in JSON}
        # Of each piece: its file, then first and last byte of a text, or entry, first and last character of a JSON file.
        places = array("q")
        for number, file in enumerate(self.files):
            lines = self._lines.get(file)
            found = _pieces_of_text(file, documents, max_characters) if lines is None else self._of_lines(lines, max_characters)
            for place in found:
                places.extend((number, *place))
        if not places:
            raise ValueError(f"There is no text in {paths}: all of it is white space.")
        self._places = np.array(places, dtype=np.int64).reshape(-1, 4)
        self._first = np.searchsorted(self._places[:, 0], np.arange(len(self.files)))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        number, item, start, stop = (int(value) for value in self._places[index])
        file = self.files[number]
        if file in self._lines:
            text = self._text(self._lines[file], item)[start:stop]
        else:
            with file.open("rb") as opened:
                opened.seek(start)
                text = _decode(opened.read(stop - start), file, item).replace("\r\n", "\n")
        key = f"{self._names[number]}/{index - int(self._first[number])}"
        return Record(key, text=Text(text, self.language))

    def _of_lines(self, items: JsonItems, max_characters: int) -> Iterator[tuple[int, int, int]]:
        for index in range(len(items)):
            for start, stop in cut(self._text(items, index), max_characters):
                yield index, start, stop

    def _text(self, items: JsonItems, index: int) -> str:
        item = items[index]
        text = item.get(self.field)
        if not isinstance(text, str):
            raise ValueError(f"{items.where(index)} has no text in '{self.field}', there is {', '.join(sorted(item))}.")
        return text.replace("\r\n", "\n").strip()


def cut(text: str, max_characters: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of a text begin and end: at most so many characters each, together all of it."""
    # From the second character of a piece: as much as there may be, then back to the last place to cut.
    reach = re.compile(rf"(?s).{{0,{max_characters - 1}}}(?:(?=\s)|(?<=[。！？；，、]))")
    start = 0
    while len(text) - start > max_characters:
        found = reach.match(text, start + 1)
        stop = found.end() if found else start + max_characters
        yield start, stop
        start = stop
    if start < len(text):
        yield start, len(text)


def _pieces_of_text(file: Path, documents: str, max_characters: int) -> Iterator[tuple[int, int, int]]:
    """(first line, first byte, last byte) of each piece of a .txt file."""
    for line, at, content in _documents_of(file, documents):
        whole = _decode(content, file, line)
        text = whole.strip()
        at += len(whole[: len(whole) - len(whole.lstrip())].encode())
        wider = iter([end == "\r\n" for end in re.findall(r"\r?\n", text)])  # by a byte than in the text that is cut
        text = text.replace("\r\n", "\n")
        for start, stop in cut(text, max_characters):
            piece = text[start:stop]
            size = len(piece.encode()) + sum(islice(wider, piece.count("\n")))
            yield line, at, at + size
            at += size


def _documents_of(file: Path, documents: str) -> Iterator[tuple[int, int, bytes]]:
    """(number of its first line, place in the file, content) of each document that is not blank."""
    with file.open("rb") as opened:
        first, begin, at = 1, 0, 0
        lines: list[bytes] = []
        for number, line in enumerate(opened, 1):
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                begin, at, line = 3, 3, line[3:]
            if not line.isspace() or (documents == "file" and lines):
                if not lines:
                    first, begin = number, at
                lines.append(line)
            at += len(line)
            if lines and (documents == "line" or (documents == "blank_line" and line.isspace())):
                yield first, begin, b"".join(lines)
                lines = []
        if lines:
            yield first, begin, b"".join(lines)


def _decode(content: bytes, file: Path, line: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise ValueError(f"{file}, line {line} is not UTF-8 ({error.reason}): save it as UTF-8.") from None
