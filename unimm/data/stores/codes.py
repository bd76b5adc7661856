"""On-disk format of a data set's image codes: manifest and rows; `unimm encode` writes it, training reads it instead of
running the image tokenizer.

    folder/codes.safetensors    "codes": (num_images, num_codes) uint16 or int32, row i of record i
                                "identities": (num_images, 32) uint8, which image that was
                                "ends": (num_records,) int64, only where records have several images, or none: where the
                                rows of each record end
    folder/manifest.json        of what, with which tokenizer, how many, in which dtype they were made
    folder/reconstructions.png  some of the images, above what their codes show

What it shares with other stores is in `unimm.data.stores.tensor_store`: this is a store of one file.
"""

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from unimm.data.grids import Grid
from unimm.data.records import DEFAULT_CODES, Dataset, DatasetContext, Record, unchecked
from unimm.data.stores.digests import first_image_hash
from unimm.data.stores.image_rows import ImagesOf, rows_of
from unimm.data.stores.tensor_store import MANIFEST, StoredDataset, StoreManifest, TensorStore
from unimm.runtime.atomic_files import read_json, whole_folder, write_json
from unimm.runtime.format_version import stamped
from unimm.runtime.resumable_folder import ResumableFolder

CODES = "codes.safetensors"
FORMAT, FORMAT_WITH_ENDS = 1, 2
"""The versions of these folders that are written: the second one only where records have several images, or none."""


@dataclass(frozen=True)
class CodesManifest(StoreManifest):
    """What stored codes are of and how they were made.

    dataset: what describes the data set, in words. first_key, last_key, first_image: see `StoreManifest`.
    tokenizer_hash: the image tokenizer's fingerprint. precision: the dtype that it ran in.
    grid: rows and columns of the codes by name, where they are not the tokenizer's own.
    num_images: of all records, where these have not one each. num_bad: images that could not be used, and have no codes.
    psnr, psnr_worst: in dB, how well it gives such images back: the mean, and the least, of a sample of `psnr_images`.
    """

    NOUN: ClassVar[str] = "codes"
    COMMAND: ClassVar[str] = "unimm encode"
    NEWEST_FORMAT: ClassVar[int] = FORMAT_WITH_ENDS
    FREE: ClassVar[tuple[str, ...]] = ("unimm_version", "num_bad", "psnr", "psnr_worst", "psnr_images")
    OF: ClassVar[tuple[str, ...]] = (
        "num_records", "num_images", "dataset", "first_key", "last_key", "first_image", "part_records",
    )  # fmt: skip

    num_records: int
    dataset: str
    first_key: str
    last_key: str
    first_image: str
    tokenizer_hash: str
    precision: str
    image_size: int
    num_codes: int
    codebook_size: int
    unimm_version: str
    psnr: float | None = None
    psnr_worst: float | None = None
    psnr_images: int = 0
    num_images: int | None = None
    num_bad: int = 0
    grid: str = ""

    @property
    def num_rows(self) -> int:
        """Images that are stored."""
        return self.num_records if self.num_images is None else self.num_images

    def content(self) -> dict[str, Any]:
        """JSON-able; without what only records of several images, or bad ones, or other grids have."""
        few = ("num_images", "num_bad", "grid")
        return {name: value for name, value in asdict(self).items() if name not in few or value}


def stored_files(folder: Path, manifest: CodesManifest) -> list[Path]:
    """The file of codes that lies there, if they were made with the same settings, of whatever images."""
    is_alike = manifest.is_alike(read_json(folder / MANIFEST))
    return [folder / CODES] if is_alike and (folder / CODES).is_file() else []


def unfinished_codes(folder: Path, manifest: CodesManifest, part_records: int) -> ResumableFolder:
    """Codes that are being written, in parts of so many records.

    Raises:
        ValueError: something else lies there, or others were begun, to be made with other settings.
    """
    return manifest.unfinished(folder, lambda number: f"{number:05}.safetensors", part_records=part_records)


def load_part(unfinished: ResumableFolder, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, num_codes) int32 of a part that is there, and the identities (n, 32) of their images."""
    part = load_file(unfinished.path(number))
    return part["codes"], part["identities"]


def save_codes(
    folder: Path,
    codes_NT: np.ndarray,
    manifest: CodesManifest,
    identities: np.ndarray | None = None,
    pictures: Iterable[Path] = (),
    ends: np.ndarray | None = None,
) -> None:
    """Write codes (num_images, num_codes), whole or not at all; codes that were there are replaced.

    identities: (num_images, 32), of their images; None: codes of other images will not be noticed.
    pictures: files that are put beside the codes.
    ends: (num_records,), where the rows of each record end; None: each has one.

    Raises:
        ValueError: the codes do not agree with the manifest, or the folder holds something else.
    """
    expected = (manifest.num_rows, manifest.num_codes)
    if codes_NT.shape != expected:
        raise ValueError(f"Codes of shape {codes_NT.shape} are not the {expected} that the manifest speaks of.")
    if codes_NT.size and not 0 <= int(codes_NT.min()) <= int(codes_NT.max()) < manifest.codebook_size:
        raise ValueError(f"Codes lie in [0, {manifest.codebook_size}), not {codes_NT.min()} to {codes_NT.max()}.")
    dtype = np.uint16 if manifest.codebook_size <= 2**16 else np.int32
    tensors = {"codes": np.ascontiguousarray(codes_NT, dtype=dtype)}
    if ends is not None:
        tensors["ends"] = ends
    with whole_folder(folder, MANIFEST, manifest.what()) as temporary:
        save_file(tensors if identities is None else {**tensors, "identities": identities}, temporary / CODES)
        for picture in pictures:
            shutil.copyfile(picture, temporary / picture.name)
        write_json(temporary / MANIFEST, stamped(FORMAT if ends is None else FORMAT_WITH_ENDS, manifest.content()))


class StoredCodes(TensorStore[CodesManifest]):
    """Codes by row, (num_codes,) int64. Get one by `open`."""

    KEY: ClassVar[str] = "codes"

    def __init__(self, folder: Path, manifest: CodesManifest, ends: np.ndarray | None = None) -> None:
        super().__init__(folder, manifest, [CODES], max(1, manifest.num_rows), ends)
        self._bad: frozenset[int] | None = None

    @classmethod
    def open(cls, folder: str | Path, **expected: str | int | None) -> "StoredCodes":
        """The codes of a folder.

        Args:
            expected: what its manifest must say: `tokenizer_hash`, `num_records`, `image_size`, ...

        Raises:
            ValueError: there are none, they are damaged, or not what is expected of them; says both sides.
        """
        folder = Path(folder)
        manifest, ends = CodesManifest.read(folder, CODES), None
        if manifest.num_images is not None:
            with manifest.reading(folder), safe_open(folder / CODES, framework="numpy") as file:
                ends = file.get_tensor("ends")
        stored = cls(folder, manifest, ends)
        stored.expect(**expected)
        stored.check_shape(manifest.num_codes)
        return stored

    def __getitem__(self, index: int) -> np.ndarray:
        return self.row(index).astype(np.int64)

    @property
    def bad_rows(self) -> frozenset[int]:
        """The rows of images that could not be used."""
        if self._bad is None:
            held = self._file(0)["identities"][:] if self.manifest.num_bad and self.has_identities else np.ones((0, 1))
            self._bad = frozenset(np.flatnonzero(~held.any(axis=1)).tolist())
        return self._bad


class CodedDataset(StoredDataset):
    """A data set whose records carry the codes of their image.

    tokenizer: the name that the codes go by in records, and their image tokenizer in a bundle; views learn those of "default".
    grid: rows and columns of the codes, as "ROWSxCOLUMNS", where they are not the tokenizer's own: `unimm encode` makes them
        so, and drawings name them (`PromptFormat.sizes`).
    corrupted: a coded data set of the same records with images that are like theirs and wrong; records carry those codes, too,
        as `corrupted_codes`.

    Raises ValueError where the folder holds the codes of another data set, or of another tokenizer than `tokenizer_hash`; and
    when a record is read whose image is another than the one that was encoded.
    """

    def __init__(
        self,
        dataset: Dataset,
        folder: str | Path,
        tokenizer_hash: str | None = None,
        corrupted: "CodedDataset | None" = None,
        tokenizer: str = DEFAULT_CODES,
        grid: str | None = None,
    ) -> None:
        self.codes = StoredCodes.open(folder, tokenizer_hash=tokenizer_hash)
        super().__init__(dataset, self.codes)
        self.tokenizer = tokenizer
        manifest = self.codes.manifest
        self.grid = None if grid is None else Grid.read(grid)
        if manifest.grid != ("" if self.grid is None else self.grid.name):
            own, asked = manifest.grid or "the tokenizer's own", grid or "the tokenizer's own"
            raise ValueError(f"The codes in {folder} have the grid {own}, not {asked}: make them again with `unimm encode`.")
        # Worlds of two seeds, or a folder whose files were exchanged, have the same keys.
        images = dataset if self.codes.ends is None else ImagesOf(dataset, self.codes.ends)
        self.corrupted = corrupted
        of_same = ("num_records", "first_key", "last_key", "tokenizer_hash")
        if corrupted and any(getattr(manifest, name) != getattr(corrupted.codes.manifest, name) for name in of_same):
            raise ValueError(
                f"The corrupted codes in {corrupted.codes.folder} are of other records than the codes in {folder}, or of "
                f"another image tokenizer: make them again with `unimm encode`."
            )
        self.check_images(first_image_hash(images), manifest.first_key)

    def bind(self, context: DatasetContext) -> Self:
        """The same data set, if its codes are those of the image tokenizer that is used.

        Raises:
            ValueError: they are another one's.
        """
        if self.tokenizer == DEFAULT_CODES:
            self.codes.expect(tokenizer_hash=context.tokenizer_hash)
        return super().bind(context)

    def unchecked(self, index: int) -> Record:
        """A record, whose image was not compared with the one that its codes are of."""
        record = unchecked(self.dataset, index)
        rows = rows_of(self.codes.ends, index)
        if rows:
            record = record.with_codes(*self._rows(record, rows), name=self.tokenizer)
            record = record if self.grid is None else record.with_grid(self.grid)
        return record.with_corrupted_codes(self.corrupted.codes[rows[0]]) if self.corrupted and rows else record

    def compare(self, index: int) -> None:
        """Raises ValueError where a record's codes, or its corrupted ones, are of another image than it has now."""
        record = unchecked(self.dataset, index)
        rows = rows_of(self.codes.ends, index)
        if self.codes.has_identities and (rows or record.num_images):
            images = record.images
            are_same = len(images) == len(rows) and all(
                self.codes.is_of(row, one.image) for one, row in zip(images, rows, strict=True)
            )
            if not are_same:
                raise self.is_other(record)
        if self.corrupted:
            self.corrupted.check(index)

    def _rows(self, record: Record, rows: range) -> list[np.ndarray]:
        """The codes of all images of a record."""
        if self.codes.ends is not None and record.num_images != len(rows):
            raise self.is_other(record)
        if self.codes.bad_rows and not self.codes.bad_rows.isdisjoint(rows):
            raise ValueError(f"record {record.key} has no codes: its image could not be used when they were made.")
        return [self.codes[row] for row in rows]
