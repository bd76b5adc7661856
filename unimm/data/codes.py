"""A data set's images as codes on disk: what `unimm encode` writes and training reads instead of the image tokenizer.

    folder/codes.safetensors    "codes": (num_records, num_codes) uint16 or int32, row i of record i
    folder/manifest.json        of what, with which tokenizer, how many, in which dtype they were made

Codes mean nothing without their tokenizer, so the manifest names it by its fingerprint, and reading refuses another.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from unimm.data.image import image_hash
from unimm.data.records import Dataset, Record
from unimm.files import read_json, whole_folder, write_json
from unimm.unfinished import Unfinished, same_content

CODES, MANIFEST = "codes.safetensors", "manifest.json"
WHAT = "a folder of stored codes"
FREE = ("unimm_version",)
"""What may differ between codes that are the same."""


@dataclass(frozen=True)
class CodesManifest:
    """What stored codes are of and how they were made.

    dataset: what describes the data set, in words. first_key, last_key: of its records, first_image: a hash of the first one's
        image, to notice another one.
    tokenizer_hash: the image tokenizer's fingerprint. precision: the dtype that it ran in.
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


def is_stored(folder: Path, manifest: CodesManifest) -> bool:
    """Whether such codes lie there, whole."""
    return same_content(read_json(folder / MANIFEST), asdict(manifest), FREE)


def unfinished_codes(folder: Path, manifest: CodesManifest, part_records: int) -> Unfinished:
    """Codes in the making, in parts of so many records.

    Raises:
        ValueError: something else lies there, or others were begun.
    """
    content = {key: value for key, value in asdict(manifest).items() if key not in FREE}
    return Unfinished(
        folder, MANIFEST, WHAT, {**content, "part_records": part_records}, lambda number: f"{number:05}.safetensors"
    )


def load_part(unfinished: Unfinished, number: int) -> np.ndarray:
    """Codes (n, num_codes) int32 of a part that is there."""
    return load_file(unfinished.path(number))["codes"]


def save_codes(folder: Path, codes_NT: np.ndarray, manifest: CodesManifest) -> None:
    """Write codes (num_records, num_codes), whole or not at all; codes that were there are replaced.

    Raises:
        ValueError: the codes do not agree with the manifest, or the folder holds something else.
    """
    expected = (manifest.num_records, manifest.num_codes)
    if codes_NT.shape != expected:
        raise ValueError(f"Codes of shape {codes_NT.shape} are not the {expected} that the manifest speaks of.")
    if codes_NT.size and not 0 <= int(codes_NT.min()) <= int(codes_NT.max()) < manifest.codebook_size:
        raise ValueError(f"Codes lie in [0, {manifest.codebook_size}), not {codes_NT.min()} to {codes_NT.max()}.")
    dtype = np.uint16 if manifest.codebook_size <= 2**16 else np.int32
    with whole_folder(folder, MANIFEST, WHAT) as temporary:
        save_file({"codes": np.ascontiguousarray(codes_NT, dtype=dtype)}, temporary / CODES)
        write_json(temporary / MANIFEST, asdict(manifest))


class StoredCodes:
    """Codes by index, (num_codes,) int64, read from the disk as they are asked for. Get one by `open`."""

    def __init__(self, folder: Path, manifest: CodesManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._rows: Any = None

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
        expectations = {
            "tokenizer_hash": expect_tokenizer_hash,
            "num_records": expect_num_records,
            "image_size": expect_image_size,
        }
        for name, expected in expectations.items():
            found = getattr(manifest, name)
            if expected is not None and found != expected:
                raise ValueError(
                    f"The codes in {folder} were made with {name} {found}, not {expected}: make them again with `unimm encode`."
                )
        stored = cls(folder, manifest)
        shape = tuple(stored._slice().get_shape())
        if shape != (manifest.num_records, manifest.num_codes):
            raise ValueError(f"The codes in {folder} are damaged: {shape} on disk, {manifest} in the manifest.")
        return stored

    def __len__(self) -> int:
        return self.manifest.num_records

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        return self._slice()[index].astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the file for themselves.
        return {"folder": self.folder, "manifest": self.manifest, "_rows": None}

    def _slice(self) -> Any:
        if self._rows is None:
            self._rows = safe_open(self.folder / CODES, framework="numpy").get_slice("codes")
        return self._rows


class CodedDataset:
    """A data set whose records carry the codes of their image.

    decoys: a coded data set of the same records with images that are like theirs and wrong; records carry those codes, too.

    Raises ValueError where the folder holds the codes of another data set, or of another tokenizer than `tokenizer_hash`.
    """

    def __init__(
        self,
        dataset: Dataset,
        folder: str | Path,
        tokenizer_hash: str | None = None,
        decoys: "CodedDataset | None" = None,
    ) -> None:
        self.dataset = dataset
        self.codes = StoredCodes.open(folder, expect_tokenizer_hash=tokenizer_hash, expect_num_records=len(dataset))
        manifest = self.codes.manifest
        ends = (dataset[0].key, dataset[len(dataset) - 1].key) if len(dataset) else ("", "")
        if ends != (manifest.first_key, manifest.last_key):
            raise ValueError(
                f"The codes in {folder} are of records {manifest.first_key} to {manifest.last_key}, "
                f"not {ends[0]} to {ends[1]}: make them again with `unimm encode`."
            )
        # Worlds of two seeds, or a folder whose files were exchanged, have the same keys.
        image = dataset[0].image if len(dataset) else None
        if image is not None and image_hash(image) != manifest.first_image:
            raise ValueError(
                f"The codes in {folder} are of another image than record {manifest.first_key} has now: make them again with "
                f"`unimm encode`."
            )
        self.decoys = None if decoys is None else decoys.codes
        of_same = ("num_records", "first_key", "last_key", "tokenizer_hash")
        if self.decoys and any(getattr(manifest, name) != getattr(self.decoys.manifest, name) for name in of_same):
            raise ValueError(
                f"The decoys in {self.decoys.folder} are of other records than the codes in {folder}, or of another image "
                f"tokenizer: make them again with `unimm encode`."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        record = self.dataset[index].with_codes(self.codes[index])
        return record.with_decoys(self.decoys[index]) if self.decoys else record


def _read_manifest(folder: Path) -> CodesManifest:
    path = folder / MANIFEST
    if not path.is_file() or not (folder / CODES).is_file():
        raise ValueError(f"{folder} holds no stored codes ({CODES}, {MANIFEST}): make them with `unimm encode`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return CodesManifest(**{field.name: content[field.name] for field in fields(CodesManifest)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The manifest of the codes in {folder} cannot be read: {error}.") from error
