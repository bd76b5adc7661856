"""The view of edits: an image, what to change in it, and the codes of the changed image to learn."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unimm.data.records import DEFAULT_CODES, ImageEdit, Record, RecordImage
from unimm.data.template import Template
from unimm.data.views import DRAWING
from unimm.runtime.number_checks import check_probability
from unimm.sequence import Segment, Sequence


@dataclass(frozen=True)
class Edit:
    """PIXELS and CODES of the source and the instruction, then the codes of the target to learn; of a record with several
    edits, or several wordings of one, any as often as the others.

    drop_text, drop_image, drop_both: the probability that the instruction, the source, or both are dropped, so that guidance
        can ask without them (5 % each in InstructPix2Pix, arXiv 2211.09800, 3.2.1).
    changed_weight: how much a code counts in the loss that is another than that of the source in its place. Most of an edited
        image is as it was, and copying is learned long before what is to be changed.
    """

    task: ClassVar[str] = DRAWING
    looks_at_images: ClassVar[bool] = True
    drop_text: float = 0.05
    drop_image: float = 0.05
    drop_both: float = 0.05
    changed_weight: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self, "drop_text", "drop_image", "drop_both")
        if self.drop_text + self.drop_image + self.drop_both > 1.0:
            raise ValueError("drop_text, drop_image and drop_both are shares of all samples: they add up to 1 at most.")
        if not 0.0 < self.changed_weight < float("inf"):
            raise ValueError(f"changed_weight is a number above 0, not {self.changed_weight}.")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        if not record.edits:
            raise ValueError(f"Record {record.key} has no edits, which this view needs.")
        edit: ImageEdit = record.edits[int(rng.integers(len(record.edits)))]
        text = edit.instructions[int(rng.integers(len(edit.instructions)))].text
        images = record.images
        source, target = (_codes(record, images[number]) for number in (edit.source, edit.target))
        sequence = template.edit(images[edit.source].image, source, text, target)
        if template.max_positions is not None and sequence.length > template.max_positions:
            raise ValueError(  # an instruction that is cut says something else
                f"The edit of record {record.key} takes {sequence.length} positions, and there are {template.max_positions} at "
                f"most: raise trainer.num_positions, or take the record out."
            )
        weight = np.where(target == source, 1.0, self.changed_weight)
        learned = Segment.codes(target, learn=True, weight=None if self.changed_weight == 1.0 else weight)
        sequence = replace(sequence, segments=(*sequence.segments[:-1], learned))
        return self._dropped(sequence, template.tokenizer.special.pad, rng.random())

    def _dropped(self, sequence: Sequence, pad_id: int, chance: float) -> Sequence:
        """The sequence, or without what chance in [0, 1) drops."""
        for share, drop in ((self.drop_text, {"text"}), (self.drop_image, {"image"}), (self.drop_both, {"text", "image"})):
            if chance < share:
                return sequence.unconditioned(pad_id, drop)
            chance -= share
        return sequence


def _codes(record: Record, image: RecordImage) -> np.ndarray:
    codes = image.codes.get(DEFAULT_CODES)
    if codes is None:
        raise ValueError(f"Record {record.key} has no codes of its images, which this view needs: wrap it in CodedDataset.")
    return np.asarray(codes)
