"""The view of edits: an image, what to change in it, and the codes of the changed image to learn."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from unimm.data.image import crop_uint8
from unimm.data.records import DEFAULT_CODES, ImageEdit, Record, RecordImage, SeenImage
from unimm.data.template import Template
from unimm.data.views import DRAWING
from unimm.runtime.number_checks import check_probability, check_whole
from unimm.sequence import Sequence


@dataclass(frozen=True)
class Edit:
    """PIXELS and CODES of the source and the instruction, then the codes of the target to learn; of a record with several
    edits, or several wordings of one, any as often as the others.

    drop_text, drop_image, drop_both: the probability that the instruction, the source, or both are dropped, so that guidance
        can ask without them (5 % each in InstructPix2Pix, arXiv 2211.09800, 3.2.1).
    changed_weight: how much a code counts in the loss that is another than that of the source in its place. Most of an edited
        image is as it was, and copying is learned long before what is to be changed.
    same_within: codes are the source's where no pixel of their patch and those around it differs by more than so many levels of
        256. An image tokenizer looks at the whole image, so its codes differ also where the image is the same, and that can
        only be learned by heart. None: they are learned as they are.
    """

    task: ClassVar[str] = DRAWING
    looks_at_images: ClassVar[bool] = True
    drop_text: float = 0.05
    drop_image: float = 0.05
    drop_both: float = 0.05
    changed_weight: float = 1.0
    same_within: int | None = None

    def __post_init__(self) -> None:
        check_probability(self, "drop_text", "drop_image", "drop_both")
        if self.drop_text + self.drop_image + self.drop_both > 1.0:
            raise ValueError("drop_text, drop_image and drop_both are shares of all samples: they add up to 1 at most.")
        if not 0.0 < self.changed_weight < float("inf"):
            raise ValueError(f"changed_weight is a number above 0, not {self.changed_weight}.")
        if self.same_within is not None:
            check_whole(self, 0, "same_within")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        if not record.edits:
            raise ValueError(f"Record {record.key} has no edits, which this view needs.")
        edit: ImageEdit = record.edits[int(rng.integers(len(record.edits)))]
        text = edit.instructions[int(rng.integers(len(edit.instructions)))].text
        images = record.images
        source, target = (_codes(record, images[number]) for number in (edit.source, edit.target))
        if self.same_within is not None:
            target = self._kept(record, images[edit.source].image, images[edit.target].image, source, target, template)
        sequence = template.edit(images[edit.source].image, source, text, target)
        if template.max_positions is not None and sequence.length > template.max_positions:
            raise ValueError(  # an instruction that is cut says something else
                f"The edit of record {record.key} takes {sequence.length} positions, and there are {template.max_positions} at "
                f"most: raise trainer.num_positions, or take the record out."
            )
        weight = np.where(target == source, 1.0, self.changed_weight)
        if self.changed_weight != 1.0:
            sequence = _with_last(sequence, weight=weight)
        return self._dropped(sequence, template.tokenizer.special.pad, rng.random())

    def _dropped(self, sequence: Sequence, pad_id: int, chance: float) -> Sequence:
        """The sequence, or without what chance in [0, 1) drops."""
        for share, drop in ((self.drop_text, {"text"}), (self.drop_image, {"image"}), (self.drop_both, {"text", "image"})):
            if chance < share:
                dropped = sequence.unconditioned(pad_id, drop)
                return _with_last(dropped, expected=None) if "image" in drop else dropped
            chance -= share
        return sequence

    def _kept(
        self, record: Record, before: Any, after: Any, source: np.ndarray, target: np.ndarray, template: Template
    ) -> np.ndarray:
        """The target's codes (num_codes,), the source's where both images are the same."""
        if isinstance(before, SeenImage) or isinstance(after, SeenImage):
            raise ValueError(
                f"The images of record {record.key} are stored as features, and same_within compares pixels: take it out."
            )
        side = math.isqrt(len(target))
        if side**2 != len(target):
            raise ValueError(f"same_within takes square grids of codes, and {len(target)} are none: take it out.")
        first, second = (crop_uint8(image, template.image_size).astype(np.int16) for image in (before, after))
        begins = np.arange(side) * template.image_size // side
        by_patch = np.maximum.reduceat(np.maximum.reduceat(np.abs(first - second).max(0), begins, 0), begins, 1)
        around = sliding_window_view(np.pad(by_patch, 1), (3, 3)).max((2, 3))
        return np.where(around.flatten() > self.same_within, target, source)


def _with_last(sequence: Sequence, **settings: Any) -> Sequence:
    """The sequence with other settings of its last segment."""
    return replace(sequence, segments=(*sequence.segments[:-1], replace(sequence.segments[-1], **settings)))


def _codes(record: Record, image: RecordImage) -> np.ndarray:
    codes = image.codes.get(DEFAULT_CODES)
    if codes is None:
        raise ValueError(f"Record {record.key} has no codes of its images, which this view needs: wrap it in CodedDataset.")
    return np.asarray(codes)
