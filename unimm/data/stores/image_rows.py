"""Rows of images: which rows of a store are those of a record's images, where records have several, or none.

Most data has one image a record, and row i is that of record i. Else a store keeps where each record's rows end, and what fills
it sees the images one by one: `ImagesOf` is a data set of them.
"""

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from unimm.data.records import Dataset, Record, unchecked


def rows_of_images(dataset: Dataset, advance: Callable[[int], object] = lambda _: None) -> np.ndarray | None:
    """Where the rows of each record's images end, (num_records,) int64; None where each has one image, or cannot be read.

    A record that shows nothing because it is text has no row; any other has at least one, to say that it lacks its image.
    advance: called with 1 after each record.
    """
    counts = np.ones(len(dataset), dtype=np.int64)
    for index in range(len(dataset)):
        with suppress(ValueError, OSError):  # reported with all others of the kind, when its image is looked at
            counts[index] = _count(unchecked(dataset, index))
        advance(1)
    return None if (counts == 1).all() else np.cumsum(counts)


def _count(record: Record) -> int:
    if record.num_images:
        return record.num_images
    return 0 if record.is_dialogue or record.document or record.text is not None else 1


class ImagesOf:
    """The images of a data set's records, one after another, each as a record of its own; none is compared.

    ends: (num_records,), as `rows_of_images` gives them.
    """

    def __init__(self, dataset: Dataset, ends: np.ndarray) -> None:
        self.dataset, self.ends = dataset, ends

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Record:
        number = int(np.searchsorted(self.ends, index, side="right"))
        record = unchecked(self.dataset, number)
        place = index - first_row(self.ends, number)
        images = record.images
        if len(images) < 2:
            return record
        return Record(f"{record.key}#{place}", images[place].image if place < len(images) else None)


def first_row(ends: np.ndarray | None, index: int) -> int:
    """The row of a record's first image."""
    if ends is None:
        return index
    return int(ends[index - 1]) if index else 0


def rows_of(ends: np.ndarray | None, index: int) -> range:
    """The rows of a record's images."""
    return range(index, index + 1) if ends is None else range(first_row(ends, index), int(ends[index]))
