"""On-disk format of a data set's image codes: manifest and rows; `unimm encode` writes it, training reads it instead of
running the image tokenizer.

    folder/codes.safetensors    "codes": (num_images, num_codes) uint16 or int32, row i of record i
                                "identities": (num_images, 32) uint8, which image that was (`unimm.data.stores.digests`)
                                "ends": (num_records,) int64, only where records have several images, or none: where the
                                rows of each record end
    folder/manifest.json        of what, with which tokenizer, how many, in which dtype they were made
    folder/reconstructions.png  some of the images, above what their codes show

Codes mean nothing without their tokenizer, so the manifest names it by its fingerprint, and reading refuses another. Nor
without their image: reading a record whose image is not the encoded one raises ValueError.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from unimm.data.bad_records import StaleStoreError
from unimm.data.records import DEFAULT_CODES, Dataset, DatasetContext, Record, key_at, unchecked
from unimm.data.stores.digests import ComparedDataset, first_image_hash, is_same
from unimm.data.stores.image_rows import ImagesOf, rows_of
from unimm.runtime.atomic_files import read_json, whole_folder, write_json
from unimm.runtime.format_version import check_format, stamped
from unimm.runtime.resumable_folder import ResumableFolder, same_content

CODES, MANIFEST = "codes.safetensors", "manifest.json"
FORMAT, FORMAT_WITH_ENDS = 1, 2
"""The versions of these folders that are read and written: the second one only where records have several images, or none."""
WHAT = "a folder of stored codes"
FREE = ("unimm_version", "num_bad", "psnr", "psnr_worst", "psnr_images")
"""What may differ between codes that are the same."""
OF = ("num_records", "num_images", "dataset", "first_key", "last_key", "first_image", "part_records")
"""What tells which images they are of; all else is how they were made."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodesManifest:
    """What stored codes are of and how they were made.

    dataset: what describes the data set, in words. first_key, last_key: of its records, first_image: a hash of the first one's
        image, to notice another one.
    tokenizer_hash: the image tokenizer's fingerprint. precision: the dtype that it ran in.
    num_images: of all records, where these have not one each. num_bad: images that could not be used, and have no codes.
    psnr, psnr_worst: in dB, how well it gives such images back: the mean, and the least, of a sample of `psnr_images`.
    """

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

    @property
    def num_rows(self) -> int:
        """Images that are stored."""
        return self.num_records if self.num_images is None else self.num_images

    def content(self) -> dict[str, Any]:
        """JSON-able; without what only records of several images, or bad ones, have."""
        return {name: value for name, value in asdict(self).items() if name not in ("num_images", "num_bad") or value}


def is_stored(folder: Path, manifest: CodesManifest) -> bool:
    """Whether such codes lie there, whole."""
    return same_content(read_json(folder / MANIFEST), manifest.content(), FREE)


def stored_files(folder: Path, manifest: CodesManifest) -> list[Path]:
    """The file of codes that lies there, if they were made with the same settings, of whatever images."""
    is_alike = same_content(read_json(folder / MANIFEST), manifest.content(), (*FREE, *OF))
    return [folder / CODES] if is_alike and (folder / CODES).is_file() else []


def unfinished_codes(folder: Path, manifest: CodesManifest, part_records: int) -> ResumableFolder:
    """Codes that are being written, in parts of so many records.

    Raises:
        ValueError: something else lies there, or others were begun, to be made with other settings.
    """
    content = {key: value for key, value in manifest.content().items() if key not in FREE}
    content["part_records"] = part_records
    return ResumableFolder(folder, MANIFEST, WHAT, content, lambda number: f"{number:05}.safetensors", OF)


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
    with whole_folder(folder, MANIFEST, WHAT) as temporary:
        save_file(tensors if identities is None else {**tensors, "identities": identities}, temporary / CODES)
        for picture in pictures:
            shutil.copyfile(picture, temporary / picture.name)
        write_json(temporary / MANIFEST, stamped(FORMAT if ends is None else FORMAT_WITH_ENDS, manifest.content()))


class StoredCodes:
    """Codes by row, (num_codes,) int64, read from the disk as they are asked for. Get one by `open`."""

    def __init__(self, folder: Path, manifest: CodesManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._slices: dict[str, Any] = {}
        self._ends: np.ndarray | None = None
        self._bad: frozenset[int] | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        expect_tokenizer_hash: str | None = None,
        expect_num_records: int | None = None,
        expect_image_size: int | None = None,
    ) -> "StoredCodes":
        """The codes of a folder.

        Raises:
            ValueError: there are none, they are damaged, or not what is expected of them; says both sides.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        stored = cls(folder, manifest)
        expectations = {
            "tokenizer_hash": expect_tokenizer_hash,
            "num_records": expect_num_records,
            "image_size": expect_image_size,
        }
        for name, expected in expectations.items():
            if expected is not None:
                stored.expect(name, expected)
        shape = tuple(stored._slice("codes").get_shape())
        if shape != (manifest.num_rows, manifest.num_codes):
            raise ValueError(f"The codes in {folder} are damaged: {shape} on disk, {manifest} in the manifest.")
        return stored

    def expect(self, name: str, expected: str | int) -> None:
        """Raises ValueError where the manifest says something else; says both sides."""
        found = getattr(self.manifest, name)
        if found != expected:
            raise ValueError(
                f"The codes in {self.folder} were made with {name} {found}, not {expected}: make them again with "
                f"`unimm encode`."
            )

    @property
    def ends(self) -> np.ndarray | None:
        """(num_records,), where the rows of each record end; None: each has one."""
        if self._ends is None and self.manifest.num_images is not None:
            with safe_open(self.folder / CODES, framework="numpy") as file:
                self._ends = file.get_tensor("ends")
        return self._ends

    def __len__(self) -> int:
        return self.manifest.num_rows

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        return self._slice("codes")[index].astype(np.int64)

    @property
    def has_identities(self) -> bool:
        """Whether it is known which images they are of; codes of an older unimm do not tell."""
        return self._slice("identities") is not None

    @property
    def bad_rows(self) -> frozenset[int]:
        """The rows of images that could not be used."""
        if self._bad is None:
            held = self._slice("identities") if self.manifest.num_bad else None
            self._bad = frozenset() if held is None else frozenset(np.flatnonzero(~held[:].any(axis=1)).tolist())
        return self._bad

    def identity(self, index: int) -> np.ndarray:
        """(32,) uint8, of the image that a row's codes are of."""
        return self._slice("identities")[index]

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the file for themselves.
        return {"folder": self.folder, "manifest": self.manifest, "_slices": {}, "_ends": None, "_bad": None}

    def _slice(self, name: str) -> Any:
        if not self._slices:
            file = safe_open(self.folder / CODES, framework="numpy")
            self._slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        return self._slices.get(name)


class CodedDataset(ComparedDataset):
    """A data set whose records carry the codes of their image.

    tokenizer: the name that the codes go by in records, and their image tokenizer in a bundle; views learn those of "default".
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
    ) -> None:
        super().__init__(dataset)
        self.tokenizer = tokenizer
        self.codes = StoredCodes.open(folder, expect_tokenizer_hash=tokenizer_hash, expect_num_records=len(dataset))
        manifest = self.codes.manifest
        ends = (key_at(dataset, 0), key_at(dataset, len(dataset) - 1)) if len(dataset) else ("", "")
        if ends != (manifest.first_key, manifest.last_key):
            raise ValueError(
                f"The codes in {folder} are of records {manifest.first_key} to {manifest.last_key}, "
                f"not {ends[0]} to {ends[1]}: make them again with `unimm encode`."
            )
        # Worlds of two seeds, or a folder whose files were exchanged, have the same keys.
        found = first_image_hash(dataset if self.codes.ends is None else ImagesOf(dataset, self.codes.ends))
        if found and found != manifest.first_image:
            raise ValueError(
                f"The codes in {folder} are of another image than record {manifest.first_key} has now: make them again with "
                f"`unimm encode`."
            )
        if not self.codes.has_identities:
            logger.warning(
                f"The codes in {folder} were made by an older unimm and do not tell of which images they are, so exchanged "
                f"pictures are not noticed: run `unimm encode` again, which makes them anew, to be sure."
            )
        self.corrupted = corrupted
        of_same = ("num_records", "first_key", "last_key", "tokenizer_hash")
        if corrupted and any(getattr(manifest, name) != getattr(corrupted.codes.manifest, name) for name in of_same):
            raise ValueError(
                f"The corrupted codes in {corrupted.codes.folder} are of other records than the codes in {folder}, or of "
                f"another image tokenizer: make them again with `unimm encode`."
            )
        self.check_some()

    def bind(self, context: DatasetContext) -> Self:
        """The same data set, if its codes are those of the image tokenizer that is used.

        Raises:
            ValueError: they are another one's.
        """
        if context.tokenizer_hash is not None and self.tokenizer == DEFAULT_CODES:
            self.codes.expect("tokenizer_hash", context.tokenizer_hash)
        return super().bind(context)

    def unchecked(self, index: int) -> Record:
        """A record, whose image was not compared with the one that its codes are of."""
        record = unchecked(self.dataset, index)
        rows = rows_of(self.codes.ends, index)
        if rows:
            record = record.with_codes(*self._rows(record, rows), name=self.tokenizer)
        return record.with_corrupted_codes(self.corrupted.codes[rows[0]]) if self.corrupted and rows else record

    def compare(self, index: int) -> None:
        """Raises ValueError where a record's codes, or its corrupted ones, are of another image than it has now."""
        record = unchecked(self.dataset, index)
        rows = rows_of(self.codes.ends, index)
        if self.codes.has_identities and (rows or record.num_images):
            images = record.images
            are_same = len(images) == len(rows) and all(
                row in self.codes.bad_rows or is_same(one.image, self.codes.identity(row))
                for one, row in zip(images, rows, strict=True)
            )
            if not are_same:
                raise self._is_other(record)
        if self.corrupted:
            self.corrupted.check(index)

    def _rows(self, record: Record, rows: range) -> list[np.ndarray]:
        """The codes of all images of a record."""
        if self.codes.ends is not None and record.num_images != len(rows):
            raise self._is_other(record)
        if self.codes.bad_rows and not self.codes.bad_rows.isdisjoint(rows):
            raise ValueError(f"record {record.key} has no codes: its image could not be used when they were made.")
        return [self.codes[row] for row in rows]

    def _is_other(self, record: Record) -> StaleStoreError:
        return StaleStoreError(
            f"The codes in {self.codes.folder} are of another image than record {record.key} has now: run `unimm encode` "
            f"again, which makes only those that have changed."
        )


def _read_manifest(folder: Path) -> CodesManifest:
    path = folder / MANIFEST
    if not path.is_file() or not (folder / CODES).is_file():
        raise ValueError(f"{folder} holds no stored codes ({CODES}, {MANIFEST}): make them with `unimm encode`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(CodesManifest)}
        manifest = CodesManifest(**{name: value for name, value in content.items() if name in known})
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"The manifest of the codes in {folder} cannot be read: {error}.") from error
    check_format(content, FORMAT_WITH_ENDS, path)
    return manifest
