"""Parquet tables as a data set, as Hugging Face keeps them: a row is a record, its image bytes, a path, or a struct of both.

Read by pyarrow, the reference library of the format: it reads one group of rows and the named columns alone, where the files
lie. (`datasets` would first copy everything into a cache of its own and decode the images.) Parquet has no access to single
rows: a row costs its group, and the last few groups are kept. So groups are best small: `datasets` writes images by 100. Images
that are bytes are read when they are opened.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unimm.data.readers.fields import Fields, missing
from unimm.data.readers.lru_cache import ProcessLocalLRU
from unimm.data.readers.paths import Paths, find_files, image_at, locate, short_names
from unimm.data.records import Record, UnreadImage

MAX_GROUP_BYTES = 256 << 20
"""Larger groups of rows make shuffled reading slow; the log says so once."""

TEXT_GROUPS = 64
"""So many groups of rows are kept without their images."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Parquet:
    """The rows of .parquet files, file after file.

    Args:
        paths: a file, a folder, a pattern, or a list of such.
        fields: which column is what.
        root: the folder that image paths start from; default: that of the file.
        num_groups: the images of so many groups of rows are kept in memory, in each process.

    Raises ValueError, at once where there is nothing, a file is damaged or lacks a column, else when the bad row is read.
    """

    def __init__(self, paths: Paths, fields: Fields, root: str | Path | None = None, num_groups: int = 4) -> None:
        self.files = find_files(paths, (".parquet",))
        self.fields = fields
        self.root = None if root is None else Path(root)
        self._names = short_names(self.files)
        self._with_bytes: set[Path] = set()
        self._groups = [self._check(file) for file in self.files]  # of each file: where its groups of rows end
        self._ends = np.cumsum([int(ends[-1]) if len(ends) else 0 for ends in self._groups])
        self._texts: ProcessLocalLRU[Any] = ProcessLocalLRU(TEXT_GROUPS)
        self._images: ProcessLocalLRU[Any] = ProcessLocalLRU(num_groups)
        if not self._ends[-1]:
            raise ValueError(f"The tables at {paths} have no rows: name others.")
        _ = self[0]

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
        if is_later and image is not None:
            item[image] = ParquetImage(self, number, group, row, where)
        root = file.parent if self.root is None else self.root
        return self.fields.record(item, key, where, lambda value: self._image(value, root, where))

    def open_image(self, number: int, group: int, row: int, where: str) -> bytes | Path:
        """The encoded image of a row, or its path, out of the column that was left unread.

        Raises:
            ValueError: there is none, or the file is damaged.
        """
        file, name = self.files[number], self.fields.image
        assert name is not None
        table = self._images.get((number, group), lambda: self._read(file, group, {name}))
        value = table.column(name)[row].as_py()
        if value is None:
            raise ValueError(f"{where}: the field '{name}' is null: fill it, or list it in fields.optional.")
        return self._image(value, file.parent if self.root is None else self.root, where)

    def _is_later(self, file: Path) -> bool:
        """Whether images are read when they are looked at: where they are bytes, and are known to be there."""
        return file in self._with_bytes and self.fields.image not in self.fields.optional

    def _check(self, file: Path) -> np.ndarray:
        """The cumulative lengths of a file's groups, after a look at its columns."""
        metadata = _plainly(file, lambda: _parquet().read_metadata(file))
        columns = metadata.schema.to_arrow_schema().names
        for name in sorted(self.fields.names - set(self.fields.optional)):
            if name not in columns:
                raise missing(name, columns, str(file))
        if self.fields.image in columns:
            kind = metadata.schema.to_arrow_schema().field(self.fields.image).type
            if _is_list(kind):
                raise ValueError(
                    f"{file}: the column '{self.fields.image}' holds lists, and a record has one image: "
                    f"write a row for each image."
                )
            if not _is_text(kind):
                self._with_bytes.add(file)
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > MAX_GROUP_BYTES:
            logger.warning(
                f"{file} has groups of rows of {largest >> 20:,} MiB, and every shuffled row reads one: write it again with "
                f"pyarrow.parquet.write_table(table, path, row_group_size=100)."
            )
        return np.cumsum([group.num_rows for group in groups])

    def _read(self, file: Path, group: int, names: set[str]) -> Any:
        def read() -> Any:
            with _parquet().ParquetFile(file) as opened:
                columns = [name for name in opened.schema_arrow.names if name in names]
                return opened.read_row_group(group, columns=columns, use_threads=False)  # the workers are the threads

        return _plainly(file, read)

    def _image(self, value: Any, root: Path, where: str) -> Any:
        if isinstance(value, UnreadImage):
            return value
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        return image_at(root, value, where)


@dataclass(frozen=True)
class ParquetImage(UnreadImage):
    """An image in a table, read when it is opened."""

    table: Parquet = field(compare=False)
    number: int
    group: int
    row: int
    where: str = field(compare=False)

    def __str__(self) -> str:
        return self.where

    def home(self) -> tuple[Path, str]:
        """The table, and the place in it."""
        return self.table.files[self.number], f"{self.table.fields.image} {self.group} {self.row}"

    def is_at_home(self) -> bool:
        """Whether the table holds its bytes, not a path."""
        return isinstance(self._open(), bytes)

    def read(self) -> bytes:
        """Its bytes. Raises ValueError where there are none, or the file is damaged."""
        image = self._open()
        return image if isinstance(image, bytes) else image.read_bytes()

    def _open(self) -> bytes | Path:
        return self.table.open_image(self.number, self.group, self.row, self.where)


def _is_text(column: Any) -> bool:
    from pyarrow import types

    return types.is_string(column) or types.is_large_string(column)


def _is_list(column: Any) -> bool:
    from pyarrow import types

    return types.is_list(column) or types.is_large_list(column) or types.is_fixed_size_list(column)


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
