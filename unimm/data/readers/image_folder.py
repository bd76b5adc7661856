"""A folder of images with captions: `cat.txt` beside `cat.jpg`, or a table of captions in the folder.

The table is `metadata.jsonl` or `metadata.csv` with a column `file_name`, a path below its own folder, and one of captions: the
convention of Hugging Face's "imagefolder". Sub-folders are walked, and may have tables of their own.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimm.data.readers.fields import Fields, missing
from unimm.data.readers.json_lines import JsonItems
from unimm.data.readers.paths import IMAGE_SUFFIXES, check_index, short, walk
from unimm.data.records import ImageLike, Record, Text

TABLES = ("metadata.jsonl", "metadata.csv")
_FILE_NAME = "file_name"


class ImageFolder:
    """The images of a folder, sorted by their paths; a record's key is the path below the folder.

    Args:
        folder: where they are.
        caption_column: of the tables. The language, "en" or "zh", is that of all captions.
        captions: false for images alone, as an image tokenizer learns from; texts and tables are then not looked at.

    Raises ValueError where there are no images, an image has no caption or two, a table names an image that is not there or has
    no such column; all of this at once, and only an empty or unreadable text when it is read.
    """

    def __init__(self, folder: str | Path, caption_column: str = "text", language: str = "en", captions: bool = True) -> None:
        self.folder = Path(folder)
        self.language = language
        if not self.folder.is_dir():
            raise ValueError(f"There is no folder {folder}: name the folder that your images are in.")
        files = list(walk(self.folder))
        images = (file for file in files if file.name.lower().endswith(IMAGE_SUFFIXES))
        self._names = sorted(file.relative_to(self.folder).as_posix() for file in images)
        if not self._names:
            raise ValueError(f"There are no images in {folder} ({', '.join(IMAGE_SUFFIXES)}): name another folder.")
        self._captions: dict[str, tuple[Text, ...]] | None = self._find_captions(files, caption_column) if captions else None

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        name = self._names[index]
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"The image {path} is not there any more: put it back, or start again.")
        captions = () if self._captions is None else self._captions.get(name) or (self._text_beside(path),)
        return Record(name, image=path, captions=captions)

    def _find_captions(self, files: list[Path], column: str) -> dict[str, tuple[Text, ...]]:
        """The captions of the tables; for every other image there is a text beside it."""
        known = set(self._names)
        found: dict[str, tuple[Text, ...]] = {}
        for table in (file for file in files if file.name in TABLES):
            for name, captions, where in self._rows(table, column):
                if name not in known:
                    raise ValueError(
                        f"{where} names the image {short(self.folder / name)}, which is not there: mend the table."
                    )
                if name in found:
                    raise ValueError(f"{where} gives {name} a second caption: write a list of captions in metadata.jsonl.")
                found[name] = captions
        texts = {file.relative_to(self.folder).as_posix() for file in files if file.suffix == ".txt"}
        for name in self._names:
            if name not in found and Path(name).with_suffix(".txt").as_posix() not in texts:
                beside = Path(name).with_suffix(".txt").name
                raise ValueError(
                    f"{self.folder / name} has no caption: write {beside} beside it, name it in {TABLES[0]}, "
                    f"or say captions=false where images alone are learned from."
                )
        return found

    def _rows(self, table: Path, column: str) -> Iterator[tuple[str, tuple[Text, ...], str]]:
        """Name, captions and place of each row."""
        above = table.parent.relative_to(self.folder)
        fields = Fields(image=_FILE_NAME, caption=column, default_language=self.language)
        for row, where in _rows_of_csv(table) if table.suffix == ".csv" else _rows_of_lines(table):
            record = fields.record(row, "", where, _as_name(where))
            yield (above / str(record.image)).as_posix(), record.captions, where

    def _text_beside(self, image: Path) -> Text:
        path = image.with_suffix(".txt")
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"The caption {path} cannot be read ({error}): write it as UTF-8.") from None
        if not text:
            raise ValueError(f"The caption {path} is empty: describe {image.name} in it.")
        return Text(text, self.language)


def _as_name(where: str) -> Any:
    def check(name: Any) -> ImageLike:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: '{_FILE_NAME}' is a path below the table's folder, not {short(name)}.")
        return name.removeprefix("./")

    return check


def _rows_of_lines(table: Path) -> Iterator[tuple[dict[str, Any], str]]:
    items = JsonItems(table)
    for index in range(len(items)):
        yield items[index], f"{table}, entry {index + 1}"


def _rows_of_csv(table: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if _FILE_NAME not in (reader.fieldnames or []):
                raise missing(_FILE_NAME, list(reader.fieldnames or []), str(table))
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where} does not have one value a column: put quotes around texts with commas.")
                yield row, where
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{table}, line {reader.line_num + 1} cannot be read ({error}): write it as UTF-8 CSV.") from None
