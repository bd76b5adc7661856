"""MagicBrush (arXiv 2306.10012) as sessions: edits by people that follow one another, each with a mask of what it may change.

    tables   img_id, turn_index, source_img, mask_img, instruction, target_img; the rows of a session one after the other

The source of a turn is what the turn before it made, so a record has the first source and then every target, and its edits lead
from one to the next. A mask is the source with its free part transparent, or painted over. Source: osunlp/MagicBrush.
"""

from itertools import groupby
from pathlib import Path

import numpy as np

from unimm.data.image import decode_image, transparent_part
from unimm.data.readers.fields import Fields
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.paths import Paths, check_index, read_first
from unimm.data.records import ImageEdit, ImageLike, Record, RecordImage

PAINTED_OVER = 24
"""Levels of 255 by which a pixel of a mask without transparency differs from the source where it is free."""


class MagicBrush:
    """The sessions of .parquet and .arrow files.

    Args:
        paths: a file, a folder, a pattern, or a list of such; or hf://datasets/osunlp/MagicBrush/dev.
        root: the folder that image paths start from; default: that of the file.
        language: of the instructions.

    Raises ValueError, at once where there is nothing or a column is not there, else when the bad row is read.
    """

    def __init__(self, paths: Paths, root: str | Path | None = None, language: str = "en") -> None:
        asked = Fields(image="source_img", caption="instruction", default_language=language)
        self._sources = Parquet(paths, asked, root)
        self._targets, self._masks = (Parquet(paths, Fields(image=name), root) for name in ("target_img", "mask_img"))
        sessions = Parquet(paths, Fields(text="img_id"), root)
        names = (sessions[row].text for row in range(len(sessions)))
        rows = groupby(enumerate(names), lambda one: None if one[1] is None else one[1].text)
        self._rows = [[row for row, _ in group] for _, group in rows]
        read_first(self)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        turns = [(self._sources[row], self._targets[row].image, self._masks[row].image) for row in self._rows[index]]
        edits = tuple(
            ImageEdit(source.captions, number, number + 1, mask=mask) for number, (source, _, mask) in enumerate(turns)
        )
        targets = [target for _, target, _ in turns if target is not None]
        if turns[0][0].image is None or len(targets) != len(turns):
            raise ValueError(f"record {self.key_at(index)} lacks an image: leave its rows out.")
        return Record(self.key_at(index), turns[0][0].image, others=tuple(map(RecordImage, targets)), edits=edits)

    def key_at(self, index: int) -> str:
        """The key of a session, that of its first row."""
        return self._sources.key_at(self._rows[index][0])


def free_part(mask: ImageLike, source: ImageLike) -> np.ndarray:
    """(H, W) bool: what an edit may change, by a mask as MagicBrush has it: transparent, or else of another colour than the
    source.

    Raises ValueError where they differ in size, or the mask frees nothing.
    """
    free_HW = transparent_part(mask)
    if not free_HW.any():
        pair = [np.asarray(decode_image(one)).astype(np.int64) for one in (mask, source)]
        if pair[0].shape != pair[1].shape:
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in pair]
            raise ValueError(f"The mask is {sizes[0]}, but the image {sizes[1]}: give a mask of its size.")
        free_HW = np.abs(pair[0] - pair[1]).max(-1) >= PAINTED_OVER
    if not free_HW.any():
        raise ValueError("The mask frees nothing: make what may change transparent in it.")
    return free_HW
