"""Images that were computed before: their rows in stored files, found by what the images are and not by their place.

A store that is made again takes from here what it needs: pictures that stayed, in whatever order and among whatever others.
"""

import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from unimm.data.records import ImageLike
from unimm.data.stores.digests import HALF, UNKNOWN, image_identity, image_stamp

OPEN_FILES = 8
ABSENT = -1

logger = logging.getLogger(__name__)


class KnownImages:
    """The rows of safetensors files, by image; files that do not tell which images they are of are left out, and those that are
    damaged.

    key: the tensor that is taken from, (n, ...) in each file.
    """

    def __init__(self, files: Iterable[Path], key: str) -> None:
        self.key = key
        self.files: list[Path] = []
        self.num_damaged = 0
        self._open: OrderedDict[Path, Any] = OrderedDict()
        identities = [np.empty((0, 2 * HALF), dtype=np.uint8)]
        for path in files:
            try:
                with safe_open(path, framework="numpy") as file:
                    own = file.get_tensor("identities") if "identities" in file.keys() else None  # noqa: SIM118 - it is no dict
            except (SafetensorError, OSError) as error:
                self.num_damaged += 1
                logger.warning(f"{path} is damaged or cut short ({error}): what was in it is made again.")
                continue
            if own is not None:
                self.files.append(path)
                identities.append(own)
        self._ends = np.cumsum([len(part) for part in identities[1:]], dtype=np.int64)
        self._identities = np.concatenate(identities)
        self._by_digest, self._by_stamp = _Places(self._identities[:, :HALF]), _Places(self._identities[:, HALF:])

    def __len__(self) -> int:
        return len(self._identities)

    def find(self, image: ImageLike) -> tuple[int, np.ndarray]:
        """The row of an image, ABSENT where there is none, and its identity (32,); reads its bytes only where its stamp is not
        known.

        Raises:
            ValueError: its file cannot be read.
        """
        stamp = image_stamp(image)
        row = ABSENT if stamp in (None, UNKNOWN) else self._by_stamp.find(stamp)
        if row != ABSENT:
            return row, self._identities[row]
        identity = image_identity(image)
        return self._by_digest.find(identity[:HALF].tobytes()), identity

    def read(self, row: int) -> torch.Tensor:
        """What is stored in a row."""
        number, place = self._locate(row)
        path = self.files[number]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt").get_slice(self.key)
        self._open.move_to_end(path)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return self._open[path][place]

    def whole_file(self, rows: np.ndarray) -> Path | None:
        """The file of which these are all rows, in order."""
        if not len(rows) or rows[0] == ABSENT or not np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return None
        number, place = self._locate(int(rows[0]))
        length = int(self._ends[number]) - (int(self._ends[number - 1]) if number else 0)
        return self.files[number] if place == 0 and length == len(rows) else None

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files for themselves.
        return {**vars(self), "_open": OrderedDict()}

    def _locate(self, row: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, row - (int(self._ends[number - 1]) if number else 0)


class _Places:
    """Where each of some keys (n, 16) uint8 stands."""

    def __init__(self, keys: np.ndarray) -> None:
        named = np.ascontiguousarray(keys).view(f"S{HALF}").ravel()
        self._order = np.argsort(named, kind="stable")
        self._sorted = named[self._order]

    def find(self, key: bytes | None) -> int:
        """The first place of a key, ABSENT where there is none."""
        found = np.array([key], dtype=f"S{HALF}")
        at = int(np.searchsorted(self._sorted, found)[0])
        return int(self._order[at]) if at < len(self._sorted) and self._sorted[at] == found[0] else ABSENT


def link_or_copy(source: Path, path: Path) -> None:
    """The same file under another name, without a second copy of its bytes where the file system can."""
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
