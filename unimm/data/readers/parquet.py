"""Parquet and Arrow tables as a data set, as Hugging Face keeps them: a row is a record, its image bytes, a path, or a struct
of both; or a list of such, for records with several images.

Read by pyarrow, the reference library of the format: it reads one group of rows and the named columns alone, where the files
lie. (`datasets` would first copy everything into a cache of its own and decode the images.) Parquet has no access to single
rows: a row costs those before it in its group, and a second one of the same group all of it, which is then kept: so rows in
order are read once, and rows in any order cost half a group. Groups are best small: `datasets` writes images by 100. Images
that are bytes are read when they are opened. The .arrow files that `save_to_disk` writes are read as well, batch by batch.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unimm.data.readers.arrow_columns import class_names, held_images, image_kind, is_text
from unimm.data.readers.fields import Fields, missing
from unimm.data.readers.hub import hub_files, is_on_hub
from unimm.data.readers.lru_cache import ProcessLocalLRU
from unimm.data.readers.paths import Paths, find_files, image_at, locate, read_first, short_names, sound_files
from unimm.data.records import ImageLike, Record, UnreadImage
from unimm.runtime.atomic_files import read_json

MAX_GROUP_BYTES = 256 << 20
"""Larger groups of rows make shuffled reading slow; the log says so once."""

TEXT_GROUPS = 64
"""So many groups of rows are kept without their images."""

COUNTED_GROUPS = 4096
"""Of so many groups of rows it is kept how many images each row has."""

OPEN_FILES = 64
"""So many .arrow files are mapped at a time, and of so many tables it is kept where their groups are."""

FEW = 8
"""So many rows are unpacked at a time on the way to one."""

BUFFER = 1 << 20
"""Bytes that are read from the disk at a time."""

WHOLE = -1
"""In place of an image's place in a list: the column holds no lists."""

SUFFIXES = (".parquet", ".arrow")

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Parquet:
    """The rows of .parquet and .arrow files, file after file.

    Args:
        paths: a file, a folder, a pattern, or a list of such; or a data set of the hub, hf://datasets/USER/NAME/SPLIT.
        fields: which column is what.
        root: the folder that image paths start from; default: that of the file.
        num_groups: the images of so many groups of rows are kept in memory, in each process.
        max_bad: the share of files that may be damaged or lack a column: they are left out, with a warning.

    Raises ValueError, at once where there is nothing, a file is damaged or lacks a column, else when the bad row is read.
    """

    def __init__(
        self, paths: Paths, fields: Fields, root: str | Path | None = None, num_groups: int = 4, max_bad: float = 0.0
    ) -> None:
        if is_on_hub(paths):
            paths = hub_files(str(paths))
        files = find_files(paths, SUFFIXES)
        _check_splits(paths)
        self.fields = fields
        self.root = None if root is None else Path(root)
        self._with_bytes: set[Path] = set()
        self._with_lists: set[Path] = set()
        self._classes: dict[Path, dict[str, list[str]]] = {}
        self.files, self._groups = sound_files(files, self._check, max_bad)  # and where the groups of rows of each end
        self._names = short_names(self.files)
        self._ends = np.cumsum([int(ends[-1]) if len(ends) else 0 for ends in self._groups])
        self._texts: ProcessLocalLRU[Any] = ProcessLocalLRU(TEXT_GROUPS)
        self._images: ProcessLocalLRU[Any] = ProcessLocalLRU(num_groups)
        self._asked: ProcessLocalLRU[None] = ProcessLocalLRU(num_groups)
        self._arrows: ProcessLocalLRU[Any] = ProcessLocalLRU(OPEN_FILES)
        self._metadata: ProcessLocalLRU[Any] = ProcessLocalLRU(OPEN_FILES)
        self._counts: ProcessLocalLRU[list[list[bool] | None]] = ProcessLocalLRU(COUNTED_GROUPS)
        if not self._ends[-1]:
            raise ValueError(f"The tables at {paths} have no rows: name others.")
        read_first(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        number, place = locate(self._ends, index)
        group, row = locate(self._groups[number], place)
        file, key = self.files[number], f"{self._names[number]}/{place}"
        where, image = f"{file}: record {key}", self.fields.image
        is_later = self._is_later(file)
        names = self.fields.names - {image} if is_later else self.fields.names
        table = self._texts.get((number, group), lambda: self._read(file, group, names))
        item = {name: table.column(name)[row].as_py() for name in table.column_names}
        for name, classes in self._classes.get(file, {}).items():  # a ClassLabel is its name; -1 says that there is none
            label = item.get(name)
            item[name] = classes[label] if isinstance(label, int) and 0 <= label < len(classes) else None
        if is_later and image is not None:
            item[image] = self._unread(number, group, row, where)
        root = file.parent if self.root is None else self.root
        return self.fields.record(item, key, where, lambda value: self._image(value, root, where))

    def _unread(self, number: int, group: int, row: int, where: str) -> Any:
        """What stands for the images of a row until they are opened; in a list None where there is no image."""
        if self.files[number] not in self._with_lists:
            return ParquetImage(self, number, group, row, where)
        held = self._counts.get((number, group), lambda: held_images(self._column(number, group)))[row]
        if held is None:
            return None
        return [ParquetImage(self, number, group, row, where, place) if is_one else None for place, is_one in enumerate(held)]

    def _column(self, number: int, group: int) -> Any:
        """The column of images of a group of rows."""
        name = self.fields.image
        assert name is not None
        return self._images.get((number, group), lambda: self._read(self.files[number], group, {name})).column(name)

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        number, place = locate(self._ends, index)
        return f"{self._names[number]}/{place}"

    def open_image(self, number: int, group: int, row: int, where: str, place: int = WHOLE) -> ImageLike:
        """The encoded image of a row, or its path, out of the column that was left unread. place: in a list of images.

        Raises:
            ValueError: there is none, or the file is damaged.
        """
        file, name = self.files[number], self.fields.image
        value = self._value(number, group, row)
        if value is None:
            raise ValueError(f"{where}: the field '{name}' is null: fill it, or list it in fields.optional.")
        own = value if place == WHOLE else value[place]
        return self._image(own, file.parent if self.root is None else self.root, where)

    def _value(self, number: int, group: int, row: int) -> Any:
        """What the column of images holds in a row; of a group that was not asked for of late, this row is read alone."""
        file, key, name = self.files[number], (number, group), self.fields.image
        if _is_arrow(file) or key in self._images or key in self._asked:
            return self._column(number, group)[row].as_py()
        self._asked.get(key, lambda: None)

        def read() -> Any:
            first = 0
            with self._open_table(file) as opened:
                for some in opened.iter_batches(FEW, row_groups=[group], columns=[name], use_threads=False):
                    if row < first + len(some):
                        return some.column(0)[row - first].as_py()
                    first += len(some)
            raise OSError(f"it ends before row {row}")

        return _plainly(file, read)

    def _open_table(self, file: Path) -> Any:
        """A .parquet file, to be closed; where its groups are is read once."""
        parquet = _parquet()
        metadata = self._metadata.get(file, lambda: parquet.read_metadata(file))
        return parquet.ParquetFile(file, metadata=metadata, pre_buffer=False, buffer_size=BUFFER)

    def _is_later(self, file: Path) -> bool:
        """Whether images are read when they are looked at: where they are bytes, and are known to be there."""
        return file in self._with_bytes and self.fields.image not in self.fields.optional

    def _check(self, file: Path) -> np.ndarray:
        """The cumulative lengths of a file's groups, after a look at its columns."""
        schema, lengths, largest = _plainly(file, lambda: _arrow(file).layout() if _is_arrow(file) else _layout(file))
        for name in sorted(self.fields.names - set(self.fields.optional)):
            if name not in schema.names:
                raise missing(name, schema.names, str(file))
        if self.fields.image in schema.names:
            kind, has_lists = image_kind(schema.field(self.fields.image).type, f"{file}: the column '{self.fields.image}'")
            if has_lists:
                self._with_lists.add(file)
            if not is_text(kind):
                self._with_bytes.add(file)
        classes = {name: names for name, names in class_names(schema).items() if name in self.fields.names}
        if classes:
            self._classes[file] = classes
        if largest > MAX_GROUP_BYTES:
            logger.warning(
                f"{file} has groups of rows of {largest >> 20:,} MiB, and every shuffled row reads one: write it again with "
                f"pyarrow.parquet.write_table(table, path, row_group_size=100)."
            )
        return np.cumsum(lengths)

    def _read(self, file: Path, group: int, names: set[str]) -> Any:
        def read() -> Any:
            if _is_arrow(file):
                return self._arrows.get(file, lambda: _arrow(file)).group(group, names)
            with self._open_table(file) as opened:
                columns = [name for name in opened.schema_arrow.names if name in names]
                return opened.read_row_group(group, columns=columns, use_threads=False)  # the workers are the threads

        return _plainly(file, read)

    def _image(self, value: Any, root: Path, where: str) -> Any:
        if isinstance(value, list) and value and all(isinstance(one, int) and 0 <= one < 256 for one in value):
            return bytes(value)
        return value if isinstance(value, UnreadImage) else image_at(root, value, where)


@dataclass(frozen=True)
class ParquetImage(UnreadImage):
    """An image in a table, read when it is opened."""

    table: Parquet = field(compare=False)
    number: int
    group: int
    row: int
    where: str = field(compare=False)
    place: int = WHOLE

    def __str__(self) -> str:
        return self.where if self.place == WHOLE else f"{self.place + 1} of {self.where}"

    def home(self) -> tuple[Path, str]:
        """The table, and the place in it."""
        place = "" if self.place == WHOLE else f" {self.place}"
        return self.table.files[self.number], f"{self.table.fields.image} {self.group} {self.row}{place}"

    def is_at_home(self) -> bool:
        """Whether the table holds its bytes, not a path."""
        return isinstance(self._open(), bytes)

    def read(self) -> bytes:
        """Its bytes. Raises ValueError where there are none, or the file is damaged."""
        image = self._open()
        if isinstance(image, UnreadImage):
            return image.read()
        return image.read_bytes() if isinstance(image, Path) else bytes(image)  # pyright: ignore - bytes, else

    def _open(self) -> ImageLike:
        return self.table.open_image(self.number, self.group, self.row, self.where, self.place)


class _Arrow:
    """An .arrow file, mapped into memory: of either of Arrow's two formats, a stream as `datasets` writes it or a file."""

    def __init__(self, file: Path) -> None:
        import pyarrow

        mapped = pyarrow.memory_map(str(file))
        try:
            opened = pyarrow.ipc.open_stream(mapped)
            self._batches = list(opened)
        except pyarrow.ArrowInvalid:
            opened = pyarrow.ipc.open_file(mapped)
            self._batches = [opened.get_batch(number) for number in range(opened.num_record_batches)]
        self._schema = opened.schema

    def layout(self) -> tuple[Any, list[int], int]:
        """As `_layout`; a batch costs nothing until it is read, however large."""
        return self._schema, [batch.num_rows for batch in self._batches], 0

    def group(self, number: int, names: set[str]) -> Any:
        """A batch, of the named columns."""
        import pyarrow

        columns = [name for name in self._schema.names if name in names]
        return pyarrow.Table.from_batches([self._batches[number].select(columns)])


def _arrow(file: Path) -> _Arrow:
    _parquet()
    return _Arrow(file)


def _is_arrow(file: Path) -> bool:
    return file.name.lower().endswith(".arrow")


def _layout(file: Path) -> tuple[Any, list[int], int]:
    """A table's schema, the rows of each of its groups, and the bytes of the largest."""
    metadata = _parquet().read_metadata(file)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    return metadata.schema.to_arrow_schema().with_metadata(metadata.metadata), [group.num_rows for group in groups], largest


def _check_splits(paths: Paths) -> None:
    """ValueError where a folder holds several splits, as `DatasetDict.save_to_disk` writes them."""
    for path in paths if isinstance(paths, list) else [paths]:
        listed = read_json(Path(path) / "dataset_dict.json")
        if listed is not None:
            splits = ", ".join(f"{Path(path) / name}" for name in listed.get("splits", []))
            raise ValueError(f"{path} holds a data set in splits: name one of them, {splits}.")


def _parquet() -> Any:
    """pyarrow's reader; ValueError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet is read by pyarrow, which is not installed: pip install 'unimm[data]'.") from None
    return pyarrow.parquet


def _plainly(file: Path, read: Callable[[], T]) -> T:
    """What pyarrow raises for damaged files, of several kinds, in one sentence."""
    parquet = _parquet()
    from pyarrow import ArrowException

    assert parquet is not None
    try:
        return read()
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(f"{file} cannot be read as Parquet ({reason}): copy or download it again.") from None
