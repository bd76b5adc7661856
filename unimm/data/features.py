"""A data set's images as the features of a frozen vision tower, on disk: what `unimm encode-features` writes, and what training
with `features=FOLDER` reads instead of running the tower.

    features-00000.safetensors, ...   "features": (n, P, C) bfloat16 or float32, a row an image, n the same in all but the last
    rows.safetensors                  "rows": (num_records,) int64, the row of each record's image, -1 where it has none
    manifest.json                     of what, by which tower, from images prepared how, in which dtype

Records that name the same file share a row. Features mean nothing without their tower, so the manifest names it by its
fingerprint; how images are prepared is named by what it makes of a picture that is always the same. Reading refuses what does
not agree.

Shapes: P patches, C width of the tower.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unimm.data.image import look, pixels_to_array
from unimm.data.records import Dataset, ImageLike, Record, SeenImage
from unimm.files import check_replaceable, whole_folder, write_json

ROWS, MANIFEST = "rows.safetensors", "manifest.json"
WHAT = "a folder of stored features"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHARD_BYTES = 2**28
OPEN_SHARDS = 64
"""Files that a process keeps open at a time."""


@dataclass(frozen=True)
class FeaturesManifest:
    """What stored features are of and how they were made.

    source: what the data configuration calls the data. first_key, last_key: of its records, to notice another one.
    first_image: of the first image, as it is prepared, to notice changed files and images that are never the same twice.
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


def preparation_fingerprint(image_size: int) -> str:
    """sha256 over what becomes of a fixed picture on its way to the vision tower: another one where that way has changed."""
    picture = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (50, 83, 3), dtype=np.uint8)
    return image_fingerprint(picture, image_size)


def image_fingerprint(image: ImageLike, image_size: int) -> str:
    """sha256 over an image as the vision tower would look at it."""
    return hashlib.sha256(pixels_to_array(look(image, image_size)).tobytes()).hexdigest()


def shard_rows(num_patches: int, width: int, dtype: str, shard_bytes: int = SHARD_BYTES) -> int:
    """Images whose features fit into one file of about `shard_bytes`."""
    return max(1, shard_bytes // (num_patches * width * DTYPES[dtype].itemsize))


def check_folder(folder: Path) -> None:
    """Raises ValueError where features cannot be written because something else is there."""
    check_replaceable(folder, MANIFEST, WHAT)


def save_features(folder: Path, shards: Iterable[torch.Tensor], rows: np.ndarray, manifest: FeaturesManifest) -> None:
    """Write features shard by shard as they come, whole or not at all; features that were there are replaced.

    Args:
        shards: (n, P, C) each, n being the manifest's `shard_rows` in all but the last.
        rows: (num_records,), known when all shards have come.
        manifest: its `num_images` is counted here.

    Raises:
        ValueError: they do not agree with the manifest, or the folder holds something else.
    """
    with whole_folder(folder, MANIFEST, WHAT) as temporary:
        num_images = 0
        for number, shard_nPC in enumerate(shards):
            if shard_nPC.shape[1:] != (manifest.num_patches, manifest.width) or num_images != number * manifest.shard_rows:
                raise ValueError(f"Features of shape {tuple(shard_nPC.shape)} do not follow {num_images} rows of {manifest}.")
            save_file({"features": shard_nPC.to(DTYPES[manifest.dtype]).contiguous()}, temporary / _shard_name(number))
            num_images += len(shard_nPC)
        if (len(rows), int(rows.max(initial=-1)) + 1) != (manifest.num_records, num_images):
            raise ValueError(
                f"{len(rows)} records that name {rows.max(initial=-1) + 1} rows do not fit {num_images} of {manifest}."
            )
        save_file({"rows": torch.from_numpy(rows.astype(np.int64))}, temporary / ROWS)
        write_json(temporary / MANIFEST, asdict(replace(manifest, num_images=num_images)))


class StoredFeatures:
    """Features by row, (P, C) float32, read from the disk as they are asked for. Get one by `open`."""

    def __init__(self, folder: Path, manifest: FeaturesManifest, rows: np.ndarray) -> None:
        self.folder = folder
        self.manifest = manifest
        self.rows = rows
        self._open: OrderedDict[int, Any] = OrderedDict()

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
        for name, wanted in expected.items():
            found = getattr(manifest, name)
            if found != wanted:
                raise ValueError(
                    f"The features in {folder} were made with {name} {found}, not {wanted}: make them again with "
                    f"`unimm encode-features`."
                )
        stored = cls(folder, manifest, load_file(folder / ROWS)["rows"].numpy())
        num_shards = -(-manifest.num_images // manifest.shard_rows)
        lengths = [tuple(stored._shard(number).get_shape()) for number in range(num_shards)]
        whole = (sum(shape[0] for shape in lengths), {shape[1:] for shape in lengths})
        if whole != (manifest.num_images, {(manifest.num_patches, manifest.width)}) or len(stored.rows) != manifest.num_records:
            raise ValueError(f"The features in {folder} are damaged: {whole} on disk, {manifest} in the manifest.")
        return stored

    def __len__(self) -> int:
        return self.manifest.num_images

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside 0..{len(self) - 1}")
        number, place = divmod(row, self.manifest.shard_rows)
        return self._shard(number)[place].float().numpy()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files for themselves.
        return {**vars(self), "_open": OrderedDict()}

    def _shard(self, number: int) -> Any:
        path = self.folder / _shard_name(number)
        if number not in self._open:
            if not path.is_file():
                raise ValueError(f"The features in {self.folder} are damaged: {path.name} is missing.")
            self._open[number] = safe_open(path, framework="pt").get_slice("features")
        self._open.move_to_end(number)
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[number]


@dataclass(frozen=True)
class StoredImage(SeenImage):
    """The image of a record whose features are stored."""

    stored: StoredFeatures
    row: int
    dataset: Dataset
    index: int

    def features(self) -> np.ndarray:
        return self.stored[self.row]

    def original(self) -> ImageLike:
        image = self.dataset[self.index].image
        assert image is not None, "it had an image when its features were stored"
        return image


class FeaturedDataset:
    """A data set whose records carry the features of their image; no image is read, but the first one once.

    tower_hash: of the vision tower that is to read on from them.

    Raises ValueError where the folder holds the features of other images, of another tower, or of images prepared otherwise.
    """

    def __init__(self, dataset: Dataset, folder: str | Path, tower_hash: str, image_size: int) -> None:
        self.dataset = dataset
        self.features = StoredFeatures.open(
            folder,
            tower_hash=tower_hash,
            image_size=image_size,
            preparation=preparation_fingerprint(image_size),
            num_records=len(dataset),
        )
        manifest = self.features.manifest
        ends = (dataset[0].key, dataset[len(dataset) - 1].key) if len(dataset) else ("", "")
        if ends != (manifest.first_key, manifest.last_key):
            raise ValueError(
                f"The features in {folder} are of records {manifest.first_key} to {manifest.last_key}, "
                f"not {ends[0]} to {ends[1]}: make them again with `unimm encode-features`."
            )
        first = dataset[int(np.argmax(self.features.rows >= 0))]
        if first.image is None or image_fingerprint(first.image, image_size) != manifest.first_image:
            raise ValueError(
                f"The features in {folder} are of another image than record {first.key} has now: make them again with "
                f"`unimm encode-features`; images that change from reading to reading have to be looked at each time."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        record, row = self.dataset[index], int(self.features.rows[index])
        return record if row < 0 else record.with_image(StoredImage(self.features, row, self.dataset, index))


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
        return FeaturesManifest(**{field.name: content[field.name] for field in fields(FeaturesManifest)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The manifest of the features in {folder} cannot be read: {error}.") from error
