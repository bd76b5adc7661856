"""Digests of images: stored codes and features keep one of each image, so that those of another image are noticed.

    identity  (32,) uint8   a digest and a stamp, 16 bytes each
        digest  the first half of sha256 over the image as it is held: a file's bytes, an array's shape and values
        stamp   where the image is a file, or a piece of one: of what the file system says of it; zeros where it is not known

To compare a digest, all bytes have to be read; a stamp that has not changed stands for it. A stamp names the file's inode, its
size, and when it was last written and last changed. Whatever writes to a file, replaces or renames it changes one of these,
also where times of writing are set back (`cp -p`, tar), and a stamp is kept only where the file had been at rest before it was
read. A file that was copied has another stamp: its bytes are read, and may well be the same.
"""

import copy
import hashlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from unimm.data.bad_records import StaleStoreError
from unimm.data.binding import bind
from unimm.data.image import image_hash, look, pixels_to_array
from unimm.data.image_forms import plain_form
from unimm.data.records import (
    Dataset,
    DatasetContext,
    ImageLike,
    Record,
    SeenImage,
    UnreadImage,
    check,
    key_at,
    unchecked,
)

HALF = 16
"""Bytes of a digest, and of a stamp."""

REST_NS = 3_000_000_000
"""So long a file was not touched before it was read, or its stamp may not be relied on: clocks of file systems are coarse."""

UNKNOWN = bytes(HALF)

NUM_CHECKED_AT_ONCE = 16

logger = logging.getLogger(__name__)


def image_digest(image: ImageLike) -> bytes:
    """The digest of an image as it is held; it need not be an image that can be read.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(image, SeenImage):
        return image_digest(image.original())
    if isinstance(image, UnreadImage):
        return _sha(image.read())
    if isinstance(image, bytes | bytearray | memoryview):
        return _sha(image)
    if isinstance(image, np.ndarray):
        return _sha(f"{image.shape} {image.dtype}".encode(), np.ascontiguousarray(image).tobytes())
    if isinstance(image, Image.Image):
        return _sha(f"{image.size} {image.mode} {image.getpalette()}".encode(), image.tobytes())
    plain = plain_form(image)
    if plain is not image:  # what a file object, a tensor, a data: URI or a part of a message holds
        return image_digest(plain)
    try:
        with Path(plain).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()[:HALF]
    except OSError as error:
        raise ValueError(f"Cannot read the file '{image}': {(error.strerror or str(error)).lower()}.") from None


def image_stamp(image: ImageLike) -> bytes | None:
    """The stamp of the file that an image lies in as it is now, and where in there; None where there is none."""
    home = _home(image)
    if home is None or os.name != "posix":  # elsewhere the time of the last change is that of the creation
        return None
    try:
        status = home[0].stat()
    except OSError:
        return None
    identity = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, home[1]
    return _sha(repr(identity).encode())


def image_identity(image: ImageLike) -> np.ndarray:
    """(32,) uint8, as it is stored; without a stamp where that may not be relied on.

    Raises:
        ValueError: its file cannot be read.
    """
    stamp = image_stamp(image)
    digest = image_digest(image)
    is_sound = stamp is not None and _may_rely_on(image) and stamp == image_stamp(image)
    return np.frombuffer(digest + (stamp if is_sound and stamp is not None else UNKNOWN), dtype=np.uint8)


def is_same(image: ImageLike, identity: np.ndarray) -> bool:
    """Whether an image is the one that has this identity (32,).

    Raises:
        ValueError: its file cannot be read.
    """
    digest, stamp = identity[:HALF].tobytes(), identity[HALF:].tobytes()
    return (stamp != UNKNOWN and image_stamp(image) == stamp) or image_digest(image) == digest


class ComparedDataset(ABC):
    """A data set whose records carry what was stored of their images. A record that is read is compared with the image it has
    now, once a process; who reads records far ahead to plan with them reads them by `unchecked`, and calls `check` for those
    that are learned from.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._compared = bytearray(-(-len(dataset) // 8))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        record = self.unchecked(index)
        self.check(index)
        return record

    def bind(self, context: DatasetContext) -> Self:
        """The same data set, for the networks of a context (`unimm.data.binding.bind`).

        Raises:
            ValueError: what is stored was made by another network.
        """
        inner = bind(self.dataset, context)
        if inner is self.dataset:
            return self
        other = copy.copy(self)
        other.dataset = inner
        return other

    @abstractmethod
    def unchecked(self, index: int) -> Record:
        """A record, not compared."""

    @abstractmethod
    def compare(self, index: int) -> None:
        """Raises ValueError where a record has another image than the one that was stored of."""

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        return key_at(self.dataset, index)

    def check_some(self) -> None:
        """`check` for a few records from all over the data set: what is wrong everywhere is noticed at once."""
        for index in np.unique(np.linspace(0, max(0, len(self) - 1), NUM_CHECKED_AT_ONCE).astype(int))[: len(self)]:
            with suppress_bad():
                self.check(int(index))

    def check(self, index: int) -> None:
        """`compare`, where this process has not done it before."""
        byte, bit = index >> 3, 1 << (index & 7)
        if not self._compared[byte] & bit:
            check(self.dataset, index)
            self.compare(index)
            self._compared[byte] |= bit


@contextmanager
def suppress_bad() -> Iterator[None]:
    """In here a record that cannot be read is none: it is reported where it is used. Stale stores are."""
    try:
        yield
    except StaleStoreError:
        raise
    except (ValueError, OSError) as error:
        logger.debug("passed over until it is used: %s", error)


def first_image_hash(dataset: Dataset) -> str:
    """The hash of the first record's image; empty where it cannot be read."""
    try:
        image = unchecked(dataset, 0).image
        return "" if image is None else image_hash(image)
    except (ValueError, OSError):
        return ""


def preparation_fingerprint(image_size: int) -> str:
    """sha256 over what becomes of a fixed picture on its way to the vision tower: another one where preparation has changed."""
    picture = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (50, 83, 3), dtype=np.uint8)
    return hashlib.sha256(pixels_to_array(look(picture, image_size)).tobytes()).hexdigest()


def _home(image: ImageLike) -> tuple[Path, str] | None:
    """The file that an image lies in, and where in there."""
    if isinstance(image, SeenImage):
        return _home(image.original())
    if isinstance(image, UnreadImage):
        return image.home()
    return (Path(image), "") if isinstance(image, str | Path) else None


def _may_rely_on(image: ImageLike) -> bool:
    """Whether the file of an image was at rest, and holds all of it."""
    home = _home(image)
    if home is None or (isinstance(image, UnreadImage) and not image.is_at_home()):
        return False
    status = home[0].stat()
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > REST_NS


def _sha(*parts: bytes | bytearray | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()[:HALF]
