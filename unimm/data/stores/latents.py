"""On-disk format of a data set's latents: manifest and shards; `unimm encode` writes it with an image tokenizer that has
latents, and training reads it instead of running that.

    latents-00000.safetensors, ...   "latents": (n, C, h, w) float32, a row an image, n the same in all but the last: means,
    each
                                     channel of unit variance over images (`unimm.models.image_tokenizer.gaussian`)
                                     "identities": (n, 32) uint8, which image that was
    ends.safetensors                 "ends": (num_records,) int64, only where records have several images, or none: where the
                                     rows of each record end
    manifest.json                    of what, with which tokenizer, how many, in which dtype they were made

What it shares with other stores is in `unimm.data.stores.tensor_store`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from unimm.data.records import LATENTS, Dataset, DatasetContext, Record, unchecked
from unimm.data.stores.digests import first_image_hash
from unimm.data.stores.image_rows import ImagesOf, rows_of
from unimm.data.stores.tensor_store import MANIFEST, StoredDataset, StoreManifest, TensorStore
from unimm.runtime.atomic_files import read_json, write_json
from unimm.runtime.format_version import stamped
from unimm.runtime.resumable_folder import ResumableFolder

ENDS = "ends.safetensors"
FORMAT = 1
SHARD_BYTES = 2**28


@dataclass(frozen=True)
class LatentsManifest(StoreManifest):
    """What stored latents are of and how they were made; the names are those of stored codes.

    shape: (C, h, w) of an image. shard_rows: images of each file but the last.
    """

    NOUN: ClassVar[str] = "latents"
    COMMAND: ClassVar[str] = "unimm encode"
    NEWEST_FORMAT: ClassVar[int] = FORMAT
    FREE: ClassVar[tuple[str, ...]] = ("unimm_version", "num_bad", "psnr", "psnr_worst", "psnr_images")
    OF: ClassVar[tuple[str, ...]] = (
        "num_records", "num_images", "dataset", "first_key", "last_key", "first_image", "shard_rows",
    )  # fmt: skip

    num_records: int
    dataset: str
    first_key: str
    last_key: str
    first_image: str
    tokenizer_hash: str
    precision: str
    image_size: int
    shape: tuple[int, ...]
    num_images: int
    shard_rows: int
    unimm_version: str
    psnr: float | None = None
    psnr_worst: float | None = None
    psnr_images: int = 0
    num_bad: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def num_rows(self) -> int:
        """Images that are stored."""
        return self.num_images

    @property
    def num_files(self) -> int:
        """Files of rows."""
        return -(-self.num_images // self.shard_rows)

    def content(self) -> dict:
        """JSON-able."""
        return {**asdict(self), "shape": list(self.shape)}


def shard_rows(shape: tuple[int, ...], shard_bytes: int = SHARD_BYTES) -> int:
    """Images whose latents fit into one file of about `shard_bytes`, and no more than are worth losing."""
    return max(1, min(4096, shard_bytes // (4 * int(np.prod(shape)))))


def shard_name(number: int) -> str:
    """The name of a file of rows."""
    return f"latents-{number:05}.safetensors"


def stored_files(folder: Path, manifest: LatentsManifest) -> list[Path]:
    """The files of latents that lie there, if they were made with the same settings, of whatever images."""
    found = read_json(folder / MANIFEST)
    if found is None or not manifest.is_alike(found):
        return []
    return [folder / shard_name(number) for number in range(-(-found["num_images"] // found["shard_rows"]))]


def finish_latents(unfinished: ResumableFolder, manifest: LatentsManifest, ends: np.ndarray | None) -> None:
    """Give them their place; latents that were there are replaced."""
    if ends is not None:
        unfinished.put(ENDS, lambda path: save_file({"ends": ends}, path))
    unfinished.put(MANIFEST, lambda path: write_json(path, stamped(FORMAT, manifest.content())))
    unfinished.finish()


class StoredLatents(TensorStore[LatentsManifest]):
    """Latents by row, (C, h, w) float32. Get one by `open`."""

    KEY: ClassVar[str] = "latents"

    @classmethod
    def open(cls, folder: str | Path, **expected: str | int | None) -> "StoredLatents":
        """The latents of a folder.

        Args:
            expected: what its manifest must say: `tokenizer_hash`, `num_records`, `image_size`, ...

        Raises:
            ValueError: there are none, they are damaged, or not what is expected of them; says both sides.
        """
        folder = Path(folder)
        manifest = LatentsManifest.read(folder, shard_name(0))
        with manifest.reading(folder):
            ends = load_file(folder / ENDS)["ends"] if (folder / ENDS).is_file() else None
        files = [shard_name(number) for number in range(manifest.num_files)]
        stored = cls(folder, manifest, files, manifest.shard_rows, ends)
        stored.expect(**expected)
        stored.check_shape(*manifest.shape)
        return stored

    def __getitem__(self, index: int) -> np.ndarray:
        return self.row(index)

    def is_bad(self, index: int) -> bool:
        """Whether the image of a row could not be used, and nothing is stored of it."""
        return bool(self.manifest.num_bad) and not self.identity(index).any()


class LatentDataset(StoredDataset):
    """A data set whose records carry the latents of their images, (C, h, w) float32, among their codes.

    tokenizer: the name that they go by there, and their image tokenizer in a bundle.

    Raises ValueError where the folder holds the latents of another data set, or of another tokenizer than `tokenizer_hash`; and
    when a record is read whose image is another than the one that was encoded.
    """

    def __init__(
        self, dataset: Dataset, folder: str | Path, tokenizer_hash: str | None = None, tokenizer: str = LATENTS
    ) -> None:
        self.latents = StoredLatents.open(folder, tokenizer_hash=tokenizer_hash)
        super().__init__(dataset, self.latents)
        self.tokenizer = tokenizer
        images = dataset if self.latents.ends is None else ImagesOf(dataset, self.latents.ends)
        self.check_images(first_image_hash(images), self.latents.manifest.first_key)

    def bind(self, context: DatasetContext) -> Self:
        """The same data set, if its latents are those of the image tokenizer that is used.

        Raises:
            ValueError: they are another one's.
        """
        if self.tokenizer == LATENTS:
            self.latents.expect(tokenizer_hash=context.latents_hash)
        return super().bind(context)

    def unchecked(self, index: int) -> Record:
        """A record, whose image was not compared with the one that its latents are of."""
        record, rows = unchecked(self.dataset, index), rows_of(self.latents.ends, index)
        if not rows:
            return record
        if self.latents.ends is not None and record.num_images != len(rows):
            raise self.is_other(record)
        if any(self.latents.is_bad(row) for row in rows):
            raise ValueError(f"record {record.key} has no latents: its image could not be used when they were made.")
        return record.with_codes(*(self.latents[row] for row in rows), name=self.tokenizer)

    def compare(self, index: int) -> None:
        """Raises ValueError where a record's latents are of another image than it has now."""
        record, rows = unchecked(self.dataset, index), rows_of(self.latents.ends, index)
        images = record.images
        is_same = len(images) == len(rows) and all(
            self.latents.is_of(row, one.image) for one, row in zip(images, rows, strict=True)
        )
        if (rows or images) and not is_same:
            raise self.is_other(record)
