"""What a frozen network has made of a data set's images, on disk, a row an image: what stored codes and stored features share.

    manifest.json           of which images, by which network, how (`StoreManifest`)
    files of rows           the store's tensor: (n, ...), a row an image, n the same in all files but the last
                            "identities": (n, 32) uint8, which image that was (`unimm.data.stores.digests`); zeros where it
                            could not be used, and nothing is stored of it

What is stored means nothing without the network that made it, so a manifest names that by its fingerprint, and reading refuses
another. Nor without its image: reading a record whose image is another one raises ValueError.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from unimm.data.bad_records import StaleStoreError
from unimm.data.records import Dataset, ImageLike, Record, key_at
from unimm.data.stores.digests import ComparedDataset, is_same
from unimm.runtime.atomic_files import read_json
from unimm.runtime.format_version import check_format
from unimm.runtime.resumable_folder import ResumableFolder, same_content

MANIFEST = "manifest.json"
OPEN_FILES = 64
"""Files that a process keeps open at a time."""

logger = logging.getLogger(__name__)


class StoreManifest:
    """What is stored, of which images, and how it was made. Subclasses are frozen dataclasses, with these fields at least.

    first_key, last_key: of the data set's records, to notice another one. first_image: a hash of the first image, to notice
    changed files.
    """

    NOUN: ClassVar[str]
    """What is stored, in words: "codes"."""
    COMMAND: ClassVar[str]
    """What makes it."""
    NEWEST_FORMAT: ClassVar[int] = 1
    """The newest version of these folders that is read."""
    FREE: ClassVar[tuple[str, ...]]
    """What may differ between stores that are the same."""
    OF: ClassVar[tuple[str, ...]]
    """What tells which images it is of; all else is how it was made."""

    num_records: int
    first_key: str
    last_key: str
    first_image: str

    @property
    def num_rows(self) -> int:
        """Images that are stored."""
        raise NotImplementedError

    def content(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses

    def is_stored(self, folder: Path) -> bool:
        """Whether such a store lies there, whole."""
        return same_content(read_json(folder / MANIFEST), self.content(), self.FREE)

    def is_alike(self, found: dict[str, Any] | None) -> bool:
        """Whether the content of another manifest says the same but for the images: made with the same settings."""
        return same_content(found, self.content(), (*self.FREE, *self.OF))

    @classmethod
    def what(cls) -> str:
        """How messages name such a folder."""
        return f"a folder of stored {cls.NOUN}"

    @classmethod
    def read(cls, folder: Path, needed: str) -> Self:
        """The manifest of a folder that holds a file `needed` beside it.

        Raises:
            ValueError: there is none, it cannot be read, or a newer unimm wrote it.
        """
        path = folder / MANIFEST
        if not path.is_file() or not (folder / needed).is_file():
            raise ValueError(
                f"{folder} holds no stored {cls.NOUN} ({needed}, {MANIFEST}): make them with `{cls.COMMAND}` for the same "
                f"data, and name the folder that was its `out`."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # subclasses are dataclasses
            manifest = cls(**{name: value for name, value in content.items() if name in known})
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"The manifest of the {cls.NOUN} in {folder} cannot be read: {error}.") from error
        check_format(content, cls.NEWEST_FORMAT, path)
        return manifest

    @classmethod
    @contextmanager
    def reading(cls, folder: Path) -> Iterator[None]:
        """In here the files of a store are opened. Raises ValueError where one is damaged, or cut short."""
        try:
            yield
        except (SafetensorError, OSError, KeyError) as error:
            raise ValueError(
                f"The {cls.NOUN} in {folder} are damaged ({error}): copy them again, or make them again with `{cls.COMMAND}`."
            ) from error

    def unfinished(self, folder: Path, name: Any, **more: Any) -> ResumableFolder:
        """Such a store in the making, file by file.

        Args:
            name: of file number n. more: what else says how it is cut into files.

        Raises:
            ValueError: something else lies there, or others were begun, to be made with other settings.
        """
        content = {key: value for key, value in self.content().items() if key not in self.FREE} | more
        return ResumableFolder(folder, MANIFEST, self.what(), content, name, self.OF)


Manifest = TypeVar("Manifest", bound=StoreManifest)


class TensorStore(Generic[Manifest]):
    """Rows of a tensor, an image each, read from the disk as they are asked for.

    Args:
        files: names of the files of rows in order; each but the last holds `rows_of_file`.
        ends: (num_records,), where the rows of each record's images end; None: each record has one image.
    """

    KEY: ClassVar[str]
    """The name of the tensor in its files."""
    FRAMEWORK: ClassVar[str] = "numpy"
    """What safetensors reads them as; NumPy has no bfloat16."""

    def __init__(
        self, folder: Path, manifest: Manifest, files: list[str], rows_of_file: int, ends: np.ndarray | None = None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.ends = ends
        self._files, self._rows_of_file = files, rows_of_file
        self._open: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def expect(self, **expected: str | int | None) -> None:
        """Raises ValueError where the manifest says something else; says both sides. None: anything will do."""
        for name, value in expected.items():
            found = getattr(self.manifest, name)
            if value is not None and found != value:
                raise ValueError(
                    f"The {self.manifest.NOUN} in {self.folder} were made with {name} {found}, not {value}: make them again "
                    f"with `{self.manifest.COMMAND}`."
                )

    def check_shape(self, *row: int) -> None:
        """Raises ValueError where the files do not hold as many rows of this shape as the manifest speaks of."""
        shapes = [tuple(self._file(number)[self.KEY].get_shape()) for number in range(len(self._files))]
        if (sum(shape[0] for shape in shapes), {shape[1:] for shape in shapes}) != (len(self), {row}):
            raise ValueError(f"The {self.manifest.NOUN} in {self.folder} are damaged: {shapes} on disk, {self.manifest}.")

    def __len__(self) -> int:
        return self.manifest.num_rows

    def row(self, index: int) -> Any:
        """What is stored of an image, as its framework reads it. Raises IndexError outside the rows."""
        held, place = self._find(index)
        return held[self.KEY][place]

    @property
    def has_identities(self) -> bool:
        """Whether it is known which images the rows are of; stores of an older unimm do not tell."""
        return "identities" in self._file(0)

    def identity(self, index: int) -> np.ndarray:
        """(32,) uint8, of the image of a row."""
        held, place = self._find(index)
        return np.asarray(held["identities"][place])

    def is_of(self, index: int, image: ImageLike) -> bool:
        """Whether an image is that of a row; true where it could not be used, and nothing is stored of it.

        Raises:
            ValueError: its file cannot be read.
        """
        identity = self.identity(index)
        return not identity.any() or is_same(image, identity)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files for themselves.
        return {**vars(self), "_open": OrderedDict()}

    def _find(self, index: int) -> tuple[dict[str, Any], int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        number, place = divmod(index, self._rows_of_file)
        return self._file(number), place

    def _file(self, number: int) -> dict[str, Any]:
        path = self.folder / self._files[number]
        if number not in self._open:
            if not path.is_file():
                raise ValueError(f"The {self.manifest.NOUN} in {self.folder} are damaged: {path.name} is missing.")
            with self.manifest.reading(self.folder):
                file = safe_open(path, framework=self.FRAMEWORK)
                self._open[number] = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        self._open.move_to_end(number)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return self._open[number]


class StoredDataset(ComparedDataset):
    """A data set whose records carry what is stored of their images.

    Raises ValueError where the store is of another data set; and when a record is read whose image is another than the one that
    something was stored of.
    """

    def __init__(self, dataset: Dataset, store: TensorStore[Any]) -> None:
        super().__init__(dataset)
        self._store = store
        manifest, first, last = store.manifest, "", ""
        store.expect(num_records=len(dataset))
        if len(dataset):
            first, last = key_at(dataset, 0), key_at(dataset, len(dataset) - 1)
        if (first, last) != (manifest.first_key, manifest.last_key):
            raise ValueError(
                f"The {manifest.NOUN} in {store.folder} are of records {manifest.first_key} to {manifest.last_key}, "
                f"not {first} to {last}: make them again with `{manifest.COMMAND}`."
            )

    def check_images(self, first_image: str, first_key: str, note: str = "") -> None:
        """Raises ValueError where images are others than those that are stored of: the first one, by its hash ("" where it
        cannot be read), and a few from all over.

        Args:
            note: what else the sentence says.
        """
        store, manifest = self._store, self._store.manifest
        if first_image and first_image != manifest.first_image:
            raise ValueError(
                f"The {manifest.NOUN} in {store.folder} are of another image than record {first_key} has now: make them again "
                f"with `{manifest.COMMAND}`{note}."
            )
        if not store.has_identities:
            logger.warning(
                f"The {manifest.NOUN} in {store.folder} were made by an older unimm and do not tell of which images they are, "
                f"so exchanged pictures are not noticed: run `{manifest.COMMAND}` again, which makes them anew, to be sure."
            )
        self.check_some()

    def is_other(self, record: Record) -> StaleStoreError:
        """What is raised for a record whose image is another than the one that something is stored of."""
        manifest = self._store.manifest
        return StaleStoreError(
            f"The {manifest.NOUN} in {self._store.folder} are of another image than record {record.key} has now: run "
            f"`{manifest.COMMAND}` again, which makes only those that have changed."
        )
