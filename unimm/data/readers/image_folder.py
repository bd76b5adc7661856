"""A folder of images with captions: `cat.txt` beside `cat.jpg`, or a table of captions in the folder.

The table is `metadata.jsonl` or `metadata.csv` with a column `file_name`, a path below its own folder, and one of captions: the
convention of Hugging Face's "imagefolder". Sub-folders are walked, and may have tables of their own.
"""

import logging
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unimm.data.readers.csv_table import CsvItems
from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonItems
from unimm.data.readers.paths import IMAGE_SUFFIXES, check_index, short, walk
from unimm.data.records import ImageLike, Record, Text

TABLES = ("metadata.jsonl", "metadata.csv")
_FILE_NAME = "file_name"

OTHER_IMAGES = (
    *(".svg", ".psd", ".ico", ".ppm", ".pgm", ".pbm", ".tga", ".jp2", ".jxl", ".exr", ".hdr", ".dng", ".cr2", ".nef"),
    *(".mp4", ".mov", ".webm", ".pdf"),
)
OTHER_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx", ".caption")
"""Files that may be data and are none here: a warning names them."""

logger = logging.getLogger(__name__)


class ImageFolder:
    """The images of a folder, sorted by their paths; a record's key is the path below the folder.

    Args:
        folder: where they are.
        caption_column: of the tables. The language, "en" or "zh", is that of all captions.
        captions: false for images alone, as an image tokenizer learns from; texts and tables are then not looked at.
        templates: the images lie in a folder for each class, whose name stands for {} in each of these: "A photo of a {}.".
            Texts and tables are then not looked at.
        max_bad: so many, as a share of all images, may lack a caption, and so many rows may be wrong: the images are bad when
            they are read, and the rows are warned of. A row that misspells its image's name is not counted twice.

    Raises ValueError where there are no images, an image has no caption or two, a table names an image that is not there or has
    no such column; all of this at once, and only an empty or unreadable text when it is read.
    """

    def __init__(
        self,
        folder: str | Path,
        caption_column: str = "text",
        language: str = "en",
        captions: bool = True,
        templates: list[str] | None = None,
        max_bad: float = 0.0,
    ) -> None:
        self.folder = Path(folder)
        self.language = language
        if not self.folder.is_dir():
            raise ValueError(f"There is no folder {folder}: name the folder that your images are in.")
        files = list(walk(self.folder))
        images = (file for file in files if file.name.lower().endswith(IMAGE_SUFFIXES))
        self._names = sorted(file.relative_to(self.folder).as_posix() for file in images)
        if not self._names:
            raise ValueError(f"There are no images in {folder} ({', '.join(IMAGE_SUFFIXES)}): name another folder.")
        self._captions: dict[str, tuple[Text, ...]] | None = None
        self._texts: dict[str, Path] = {}
        self._lacking: dict[str, str] = {}
        if captions and templates:
            self._captions = self._of_classes(list(templates), max_bad * len(self._names))
        elif captions:
            self._captions = self._find_captions(files, caption_column, max_bad * len(self._names))
        warn_of_unread(files, self._texts.values() if captions and not templates else None)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        name = self._names[index]
        path = self.folder / name
        if name in self._lacking:
            raise ValueError(self._lacking[name])
        if not path.is_file():
            raise ValueError(f"The image {path} is not there any more: put it back, or start again.")
        captions = () if self._captions is None else self._captions.get(name) or (self._text_beside(path, name),)
        return Record(name, image=path, captions=captions)

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        return self._names[index]

    def _of_classes(self, templates: list[str], most_wrong: float) -> dict[str, tuple[Text, ...]]:
        """The captions of images that lie in folders of classes."""
        if any(template.count("{}") != 1 for template in templates):
            raise ValueError(f"A template has one {{}}, where the name of the class stands, not {templates}.")
        found: dict[str, tuple[Text, ...]] = {}
        for name in self._names:
            above, _, _ = name.partition("/")
            words = re.sub(r"[_\s]+", " ", above).strip()
            if above != name and words:
                found[name] = tuple(Text(template.replace("{}", words), self.language) for template in templates)
            else:
                self._lacking[name] = (
                    f"{self.folder / name} lies in no folder of a class: put it into one, or leave templates out."
                )
        if len(self._lacking) > most_wrong:
            raise ValueError(next(iter(self._lacking.values())))
        return found

    def _find_captions(self, files: list[Path], column: str, most_wrong: float) -> dict[str, tuple[Text, ...]]:
        """The captions of the tables; for every other image there is a text beside it."""
        known = {_plain(name): name for name in self._names}
        found: dict[str, tuple[Text, ...]] = {}
        num_wrong = 0

        def note(problem: str) -> None:
            nonlocal num_wrong
            num_wrong += 1
            if num_wrong > most_wrong:
                raise ValueError(problem)
            logger.warning(problem)

        for table in (file for file in files if file.name in TABLES):
            items = CsvItems(table, {_FILE_NAME}) if table.suffix == ".csv" else JsonItems(table)
            for index in range(len(items)):
                where = items.where(index) if isinstance(items, CsvItems) else f"{table}, entry {index + 1}"
                try:
                    given, captions = self._read_row(table, items[index], where, column)
                except ValueError as error:
                    note(str(error))
                    continue
                name = known.get(_plain(given))
                if name is None:
                    note(f"{where} names the image {short(self.folder / given)}, which is not there: mend the table.")
                elif name in found:
                    note(f"{where} gives {name} a second caption: write a list of captions in metadata.jsonl.")
                else:
                    found[name] = captions
        texts = {_plain(file.relative_to(self.folder).as_posix())[:-4]: file for file in files if file.suffix.lower() == ".txt"}
        for name in self._names:
            text = texts.get(_plain(Path(name).with_suffix("").as_posix()))
            if text is not None:
                self._texts[name] = text
            elif name not in found:
                beside = Path(name).with_suffix(".txt").name
                self._lacking[name] = (
                    f"{self.folder / name} has no caption: write {beside} beside it, name it in {TABLES[0]}, "
                    f"or say captions=false where images alone are learned from."
                )
        if len(self._lacking) > most_wrong:
            raise ValueError(next(iter(self._lacking.values())))
        return found

    def _read_row(self, table: Path, row: dict[str, Any], where: str, column: str) -> tuple[str, tuple[Text, ...]]:
        """Name and captions of a row."""
        above = table.parent.relative_to(self.folder)
        fields = Fields(image=_FILE_NAME, caption=column, default_language=self.language)
        record = fields.record(row, "", where, _as_name(where))
        return (above / str(record.image)).as_posix(), record.captions

    def _text_beside(self, image: Path, name: str) -> Text:
        path = self._texts[name]
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"The caption {path} cannot be read ({error}): write it as UTF-8.") from None
        if not text:
            raise ValueError(f"The caption {path} is empty: describe {image.name} in it.")
        return Text(text, self.language)


def warn_of_unread(files: list[Path], texts: Iterable[Path] | None) -> None:
    """Say which files of a folder look like data and are not read: images of other formats, and texts that have no image.

    texts: those that are read; None: texts are not looked at.
    """
    unread = [file for file in files if file.suffix.lower() in OTHER_IMAGES]
    if texts is not None:
        own = set(texts)
        unread += [file for file in files if file.suffix.lower() in OTHER_TABLES and file.name not in TABLES]
        unread += [file for file in files if file.suffix.lower() == ".txt" and file not in own]
    kinds = sorted({file.suffix.lower() for file in unread})
    if unread:
        few = ", ".join(str(file) for file in unread[:3]) + (", ..." if len(unread) > 3 else "")
        logger.warning(f"{len(unread):,} files that may be data are not read ({', '.join(kinds)}): {few}")


def _plain(name: str) -> str:
    """A name as it is compared: accents composed, and slashes as they are everywhere but on Windows."""
    return unicodedata.normalize("NFC", name if "/" in name else name.replace("\\", "/"))


def _as_name(where: str) -> Any:
    def check(name: Any) -> ImageLike:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: '{_FILE_NAME}' is a path below the table's folder, not {short(name)}.")
        return name.removeprefix("./")

    return check
