"""On-disk format of a data set's vision features: manifest and shards; `unimm encode-features` writes it, and training with
`features=FOLDER` reads it instead of running the tower.

    features-00000.safetensors, ...   "features": (n, P, C) bfloat16 or float32, a row an image, n the same in all but the last
                                      "identities": (n, 32) uint8, which image that was
    rows.safetensors                  "rows": (num_records,) int64, the row of each record's image, -1 where it has none
                                      "ends": (num_records,) int64, only where records have several images: where those of
                                      each end in "rows", which then has a place for each image
    manifest.json                     of what, by which tower, from images prepared how, in which dtype

What it shares with other stores is in `unimm.data.stores.tensor_store`. Records that name the same file share a row. The tower
is named by its fingerprint, and how images are prepared by what becomes of a picture that is always the same.

P patches, C width of the tower.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from unimm.data.image import image_hash
from unimm.data.records import Dataset, DatasetContext, ImageLike, Record, SeenImage, unchecked
from unimm.data.stores.digests import preparation_fingerprint
from unimm.data.stores.image_rows import ImagesOf, rows_of
from unimm.data.stores.tensor_store import MANIFEST, StoredDataset, StoreManifest, TensorStore
from unimm.runtime.atomic_files import read_json, write_json
from unimm.runtime.format_version import stamped
from unimm.runtime.resumable_folder import ResumableFolder

ROWS = "rows.safetensors"
FORMAT = 1
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHARD_BYTES = 2**28


@dataclass(frozen=True)
class FeaturesManifest(StoreManifest):
    """What stored features are of and how they were made.

    source: what the data configuration calls the data. first_key, last_key, first_image: see `StoreManifest`; the first image
    is also looked at to notice images that are never the same twice.
    tower_hash: the vision tower's fingerprint. preparation: that of how images are prepared for it.
    precision: the dtype that the tower ran in. dtype: the one that features are stored in.
    num_images: rows. shard_rows: of each file but the last.
    """

    NOUN: ClassVar[str] = "features"
    COMMAND: ClassVar[str] = "unimm encode-features"
    NEWEST_FORMAT: ClassVar[int] = FORMAT
    FREE: ClassVar[tuple[str, ...]] = ("num_images", "unimm_version")
    """What is known in the end, or may differ between features that are the same."""
    OF: ClassVar[tuple[str, ...]] = ("num_records", "source", "first_key", "last_key", "first_image", "shard_rows")

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

    @property
    def num_rows(self) -> int:
        """Images that are stored."""
        return self.num_images


def shard_rows(num_patches: int, width: int, dtype: str, shard_bytes: int = SHARD_BYTES) -> int:
    """Images whose features fit into one file of about `shard_bytes`."""
    return max(1, shard_bytes // (num_patches * width * DTYPES[dtype].itemsize))


def unfinished_features(folder: Path, manifest: FeaturesManifest) -> ResumableFolder:
    """Features that are being written, file by file: "features" (n, P, C), n being the manifest's `shard_rows` in all but the
    last.

    Raises:
        ValueError: something else lies there, or others were begun, to be made with other settings.
    """
    return manifest.unfinished(folder, _shard_name)


def stored_files(folder: Path, manifest: FeaturesManifest) -> list[Path]:
    """The files of features that lie there, if they were made with the same settings, of whatever images."""
    found = read_json(folder / MANIFEST)
    if found is None or not manifest.is_alike(found):
        return []
    return [folder / name for name in _shard_names(found["num_images"], found["shard_rows"])]


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


class StoredFeatures(TensorStore[FeaturesManifest]):
    """Features by row, (P, C) float32. Get one by `open`.

    rows: (num_records,), the row of each record's image, -1 where it has none; with `ends`, of all images of all records.
    """

    KEY: ClassVar[str] = "features"
    FRAMEWORK: ClassVar[str] = "pt"

    def __init__(self, folder: Path, manifest: FeaturesManifest, rows: np.ndarray, ends: np.ndarray | None = None) -> None:
        files = _shard_names(manifest.num_images, manifest.shard_rows)
        super().__init__(folder, manifest, files, manifest.shard_rows, ends)
        self.rows = rows

    @classmethod
    def open(cls, folder: str | Path, **expected: str | int | None) -> "StoredFeatures":
        """The features of a folder.

        Args:
            expected: what its manifest must say: `tower_hash`, `num_records`, `preparation`, ...

        Raises:
            ValueError: there are none, they are damaged, or not what is expected of them; says both sides.
        """
        folder = Path(folder)
        manifest = FeaturesManifest.read(folder, ROWS)
        with manifest.reading(folder):
            rows, ends = _read_rows(folder)
        stored = cls(folder, manifest, rows, ends)
        stored.expect(**expected)
        stored.check_shape(manifest.num_patches, manifest.width)
        num_records = len(stored.rows if stored.ends is None else stored.ends)
        if num_records != manifest.num_records:
            raise ValueError(f"The features in {folder} are damaged: {num_records} records on disk, {manifest}.")
        return stored

    def __getitem__(self, row: int) -> np.ndarray:
        return self.row(row).float().numpy()


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


class FeaturedDataset(StoredDataset):
    """A data set whose records carry the features of their image. Images are not decoded, but the first one once; they are only
    compared with those that were looked at.

    tower_hash, image_size: of the vision tower that is to read on from them; None: known later, by `bind`.

    Raises ValueError where the folder holds the features of other images, of another tower, or of images prepared otherwise;
    and when a record is read whose image is another than the one that was looked at.
    """

    def __init__(
        self, dataset: Dataset, folder: str | Path, tower_hash: str | None = None, image_size: int | None = None
    ) -> None:
        self.features = StoredFeatures.open(folder, tower_hash=tower_hash, image_size=image_size)
        self.features.expect(preparation=preparation_fingerprint(self.features.manifest.image_size))
        super().__init__(dataset, self.features)
        images = dataset if self.features.ends is None else ImagesOf(dataset, self.features.ends)
        first = images[int(np.argmax(self.features.rows >= 0))]
        self.check_images(
            "none" if first.image is None else image_hash(first.image),
            first.key,
            "; images that change from reading to reading have to be looked at each time",
        )

    def bind(self, context: DatasetContext) -> Self:
        """The same data set, if its features are those of the vision tower that is used.

        Raises:
            ValueError: they are another one's, or that tower has no use for any.
        """
        if context.tower is not None:
            tower_hash, image_size = context.tower()
            self.features.expect(tower_hash=tower_hash, image_size=image_size)
        return super().bind(context)

    def unchecked(self, index: int) -> Record:
        """A record, whose image was not compared with the one that its features are of."""
        record, rows = unchecked(self.dataset, index), self._rows(index)
        if not (rows >= 0).any():
            return record
        if len(rows) != max(1, record.num_images):
            raise self.is_other(record)
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
            raise self.is_other(record)

    def _rows(self, index: int) -> np.ndarray:
        """The rows of a record's images, -1 of those that it has none of."""
        places = rows_of(self.features.ends, index)
        return self.features.rows[places.start : places.stop]


def _shard_name(number: int) -> str:
    return f"features-{number:05}.safetensors"


def _shard_names(num_images: int, rows: int) -> list[str]:
    return [_shard_name(number) for number in range(-(-num_images // rows))]
