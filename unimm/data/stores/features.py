"""On-disk format of a data set's vision features: manifest and shards; `unimm encode-features` writes it, and training with
`features=FOLDER` reads it instead of running the tower.

    features-00000.safetensors, ...   "features": (n, P, C) bfloat16 or float32, a row an image, n the same in all but the last
                                      "identities": (n, 32) uint8, which image that was (`unimm.data.stores.digests`)
    rows.safetensors                  "rows": (num_records,) int64, the row of each record's image, -1 where it has none
                                      "ends": (num_records,) int64, only where records have several images: where those of
                                      each end in "rows", which then has a place for each image
    manifest.json                     of what, by which tower, from images prepared how, in which dtype

Records that name the same file share a row. Features mean nothing without their tower, so the manifest names it by its
fingerprint; how images are prepared is named by what it makes of a picture that is always the same. Reading refuses what does
not agree.

P patches, C width of the tower.
"""

import json
import logging
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unimm.data.bad_records import StaleStoreError
from unimm.data.image import image_hash
from unimm.data.records import Dataset, DatasetContext, ImageLike, Record, SeenImage, key_at, unchecked
from unimm.data.stores.digests import ComparedDataset, is_same, preparation_fingerprint
from unimm.data.stores.image_rows import ImagesOf, rows_of
from unimm.runtime.atomic_files import read_json, write_json
from unimm.runtime.format_version import check_format, stamped
from unimm.runtime.resumable_folder import ResumableFolder, same_content

ROWS, MANIFEST = "rows.safetensors", "manifest.json"
WHAT = "a folder of stored features"
FORMAT = 1
"""The newest version of these folders that is read, and the one that is written."""
FREE = ("num_images", "unimm_version")
"""What is known in the end, or may differ between features that are the same."""
OF = ("num_records", "source", "first_key", "last_key", "first_image", "shard_rows")
"""What tells which images they are of; all else is how they were made."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHARD_BYTES = 2**28
OPEN_SHARDS = 64
"""Files that a process keeps open at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeaturesManifest:
    """What stored features are of and how they were made.

    source: what the data configuration calls the data. first_key, last_key: of its records, to notice another one.
    first_image: a hash of the first image, to notice changed files and images that are never the same twice.
    tower_hash: the vision tower's fingerprint. preparation: that of how images are prepared for it.
    precision: the dtype that the tower ran in. dtype: the one that features are stored in.
    num_images: rows. shard_rows: of each file but the last.
    """

    num_records: int
    source: str
    first_key: str
    last_key: str
    first_image: str
    tower_hash: str
    preparation: str
    precision: str
    dtype: str
    image_size: int
    num_patches: int
    width: int
    num_images: int
    shard_rows: int
    unimm_version: str


def shard_rows(num_patches: int, width: int, dtype: str, shard_bytes: int = SHARD_BYTES) -> int:
    """Images whose features fit into one file of about `shard_bytes`."""
    return max(1, shard_bytes // (num_patches * width * DTYPES[dtype].itemsize))


def is_stored(folder: Path, manifest: FeaturesManifest) -> bool:
    """Whether such features lie there, whole."""
    return same_content(read_json(folder / MANIFEST), asdict(manifest), FREE)


def unfinished_features(folder: Path, manifest: FeaturesManifest) -> ResumableFolder:
    """Features that are being written, file by file: "features" (n, P, C), n being the manifest's `shard_rows` in all but the
    last.

    Raises:
        ValueError: something else lies there, or others were begun, to be made with other settings.
    """
    content = {key: value for key, value in asdict(manifest).items() if key not in FREE}
    return ResumableFolder(folder, MANIFEST, WHAT, content, _shard_name, OF)


def stored_files(folder: Path, manifest: FeaturesManifest) -> list[Path]:
    """The files of features that lie there, if they were made with the same settings, of whatever images."""
    found = read_json(folder / MANIFEST)
    if found is None or not same_content(found, asdict(manifest), (*FREE, *OF)):
        return []
    return [folder / _shard_name(number) for number in range(-(-found["num_images"] // found["shard_rows"]))]


def has_rows(unfinished: ResumableFolder) -> bool:
    """Whether the rows of the records were found."""
    return (unfinished.whole / ROWS).is_file()


def put_rows(unfinished: ResumableFolder, rows: np.ndarray, ends: np.ndarray | None = None) -> None:
    """Store the rows (num_records,) int64 that were found; or, with the ends (num_records,) of each record, of all images."""
    tensors = {"rows": rows} if ends is None else {"rows": rows, "ends": ends}
    unfinished.put(ROWS, lambda path: save_file({name: torch.from_numpy(array) for name, array in tensors.items()}, path))


def load_rows(unfinished: ResumableFolder) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows that were found, and where those of each record end; None: each has one."""
    return _read_rows(unfinished.whole)


def _read_rows(folder: Path) -> tuple[np.ndarray, np.ndarray | None]:
    held = load_file(folder / ROWS)
    return held["rows"].numpy(), held["ends"].numpy() if "ends" in held else None


def finish_features(unfinished: ResumableFolder, manifest: FeaturesManifest) -> None:
    """Give them their place; features that were there are replaced. manifest: with the number of images."""
    unfinished.put(MANIFEST, lambda path: write_json(path, stamped(FORMAT, asdict(manifest))))
    unfinished.finish()


class StoredFeatures:
    """Features by row, (P, C) float32, read from the disk as they are asked for. Get one by `open`."""

    def __init__(self, folder: Path, manifest: FeaturesManifest, rows: np.ndarray, ends: np.ndarray | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.rows, self.ends = rows, ends
        self._open: OrderedDict[int, dict[str, Any]] = OrderedDict()

    @classmethod
    def open(cls, folder: str | Path, **expected: str | int) -> "StoredFeatures":
        """The features of a folder.

        Args:
            expected: what its manifest must say: `tower_hash`, `num_records`, `preparation`, ...

        Raises:
            ValueError: there are none, they are damaged, or not what is expected of them; says both sides.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        stored = cls(folder, manifest, *_read_rows(folder))
        for name, value in expected.items():
            stored.expect(name, value)
        num_shards = -(-manifest.num_images // manifest.shard_rows)
        lengths = [tuple(stored._shard(number)["features"].get_shape()) for number in range(num_shards)]
        whole = (sum(shape[0] for shape in lengths), {shape[1:] for shape in lengths})
        num_records = len(stored.rows if stored.ends is None else stored.ends)
        if whole != (manifest.num_images, {(manifest.num_patches, manifest.width)}) or num_records != manifest.num_records:
            raise ValueError(f"The features in {folder} are damaged: {whole} on disk, {manifest} in the manifest.")
        return stored

    def expect(self, name: str, expected: str | int) -> None:
        """Raises ValueError where the manifest says something else; says both sides."""
        found = getattr(self.manifest, name)
        if found != expected:
            raise ValueError(
                f"The features in {self.folder} were made with {name} {found}, not {expected}: make them again with "
                f"`unimm encode-features`."
            )

    def __len__(self) -> int:
        return self.manifest.num_images

    def __getitem__(self, row: int) -> np.ndarray:
        shard, place = self._find(row)
        return shard["features"][place].float().numpy()

    @property
    def has_identities(self) -> bool:
        """Whether it is known which images they are of; features of an older unimm do not tell."""
        return "identities" in self._shard(0)

    def identity(self, row: int) -> np.ndarray:
        """(32,) uint8, of the image of a row."""
        shard, place = self._find(row)
        return shard["identities"][place].numpy()

    def is_of(self, row: int, image: ImageLike) -> bool:
        """Whether an image is that of a row; true where it could not be used, and nothing is stored of it."""
        identity = self.identity(row)
        return not identity.any() or is_same(image, identity)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files for themselves.
        return {**vars(self), "_open": OrderedDict()}

    def _find(self, row: int) -> tuple[dict[str, Any], int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside 0..{len(self) - 1}")
        number, place = divmod(row, self.manifest.shard_rows)
        return self._shard(number), place

    def _shard(self, number: int) -> dict[str, Any]:
        path = self.folder / _shard_name(number)
        if number not in self._open:
            if not path.is_file():
                raise ValueError(f"The features in {self.folder} are damaged: {path.name} is missing.")
            file = safe_open(path, framework="pt")
            self._open[number] = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        self._open.move_to_end(number)
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[number]


@dataclass(frozen=True)
class StoredImage(SeenImage):
    """An image of a record whose features are stored. place: among the record's images."""

    stored: StoredFeatures
    row: int
    dataset: Dataset
    index: int
    place: int = 0

    def features(self) -> np.ndarray:
        if self.stored.has_identities and not self.stored.identity(self.row).any():
            raise ValueError("its image could not be used when features were stored")
        return self.stored[self.row]

    def original(self) -> ImageLike:
        return unchecked(self.dataset, self.index).images[self.place].image


class FeaturedDataset(ComparedDataset):
    """A data set whose records carry the features of their image. Images are not decoded, but the first one once; they are only
    compared with those that were looked at.

    tower_hash, image_size: of the vision tower that is to read on from them; None: known later, by `bind`.

    Raises ValueError where the folder holds the features of other images, of another tower, or of images prepared otherwise;
    and when a record is read whose image is another than the one that was looked at.
    """

    def __init__(
        self, dataset: Dataset, folder: str | Path, tower_hash: str | None = None, image_size: int | None = None
    ) -> None:
        super().__init__(dataset)
        given = {"tower_hash": tower_hash, "image_size": image_size}
        self.features = StoredFeatures.open(folder, **{name: value for name, value in given.items() if value is not None})
        manifest = self.features.manifest
        self.features.expect("preparation", preparation_fingerprint(manifest.image_size))
        self.features.expect("num_records", len(dataset))
        ends = (key_at(dataset, 0), key_at(dataset, len(dataset) - 1)) if len(dataset) else ("", "")
        if ends != (manifest.first_key, manifest.last_key):
            raise ValueError(
                f"The features in {folder} are of records {manifest.first_key} to {manifest.last_key}, "
                f"not {ends[0]} to {ends[1]}: make them again with `unimm encode-features`."
            )
        images = dataset if self.features.ends is None else ImagesOf(dataset, self.features.ends)
        first = images[int(np.argmax(self.features.rows >= 0))]
        if first.image is None or image_hash(first.image) != manifest.first_image:
            raise ValueError(
                f"The features in {folder} are of another image than record {first.key} has now: make them again with "
                f"`unimm encode-features`; images that change from reading to reading have to be looked at each time."
            )
        if not self.features.has_identities:
            logger.warning(
                f"The features in {folder} were made by an older unimm and do not tell of which images they are, so exchanged "
                f"pictures are not noticed: run `unimm encode-features` again, which makes them anew, to be sure."
            )
        self.check_some()

    def bind(self, context: DatasetContext) -> Self:
        """The same data set, if its features are those of the vision tower that is used.

        Raises:
            ValueError: they are another one's, or that tower has no use for any.
        """
        if context.tower is not None:
            tower_hash, image_size = context.tower()
            self.features.expect("tower_hash", tower_hash)
            self.features.expect("image_size", image_size)
        return super().bind(context)

    def unchecked(self, index: int) -> Record:
        """A record, whose image was not compared with the one that its features are of."""
        record, rows = unchecked(self.dataset, index), self._rows(index)
        if not (rows >= 0).any():
            return record
        if len(rows) != max(1, record.num_images):
            raise self._is_other(record)
        images: list[ImageLike] = [
            StoredImage(self.features, int(row), self.dataset, index, place) if row >= 0 else record.images[place].image
            for place, row in enumerate(rows)
        ]
        return record.with_image(*images)

    def compare(self, index: int) -> None:
        """Raises ValueError where a record's features are of another image than it has now."""
        record, rows = unchecked(self.dataset, index), self._rows(index)
        if not self.features.has_identities or not ((rows >= 0).any() or record.num_images):
            return
        images = record.images
        are_same = len(images) == len(rows) and all(
            row >= 0 and self.features.is_of(int(row), one.image) for one, row in zip(images, rows, strict=True)
        )
        if not are_same:
            raise self._is_other(record)

    def _rows(self, index: int) -> np.ndarray:
        """The rows of a record's images, -1 of those that it has none of."""
        places = rows_of(self.features.ends, index)
        return self.features.rows[places.start : places.stop]

    def _is_other(self, record: Record) -> StaleStoreError:
        return StaleStoreError(
            f"The features in {self.features.folder} are of another image than record {record.key} has now: run "
            f"`unimm encode-features` again, which makes only those that have changed."
        )


def _shard_name(number: int) -> str:
    return f"features-{number:05}.safetensors"


def _read_manifest(folder: Path) -> FeaturesManifest:
    path = folder / MANIFEST
    if not path.is_file() or not (folder / ROWS).is_file():
        raise ValueError(
            f"{folder} holds no stored features ({ROWS}, {MANIFEST}): make them with `unimm encode-features` for the "
            f"same data, and name the folder that was its `out`."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = FeaturesManifest(**{field.name: content[field.name] for field in fields(FeaturesManifest)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The manifest of the features in {folder} cannot be read: {error}.") from error
    check_format(content, FORMAT, path)
    return manifest
