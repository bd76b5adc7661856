"""An image and its text as two sequences that are learned together, for objectives that compare them (contrastive alignment).

    PIXELS(image)    and    TEXT(<bos>caption<eos>)

They lie in one micro-batch and never attend to each other (`unimm.sequence.Sample`); nothing in them is predicted.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unimm.data.records import Record, Text
from unimm.data.template import Template
from unimm.data.views import UNDERSTANDING
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Sample, Segment, Sequence


@dataclass(frozen=True)
class ImageText:
    """A record's image, and one of its captions, any as often as the others.

    max_positions: of a text, with its begin and its end: what the text tower was made for. A longer one loses its last words.
    language: of the captions that are used; None: of any.
    """

    task: ClassVar[str] = UNDERSTANDING
    max_positions: int = 64
    language: str | None = None

    def __post_init__(self) -> None:
        check_whole(self, 3, "max_positions")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sample:
        """Raises ValueError where the record lacks an image, or a caption in this language."""
        captions: list[Text] = [one for one in record.captions if self.language in (None, one.language)]
        if record.image is None or not captions:
            what = f"caption in the language '{self.language}'" if self.language and record.captions else "caption"
            raise ValueError(f"Record {record.key} has no {'image' if record.image is None else what}, which this view needs.")
        text = captions[int(rng.integers(len(captions)))].text
        ids, whole = (template.tokenizer.sentence(text, most) for most in (self.max_positions, None))
        cut = len(whole) if len(whole) > len(ids) else None
        return Sample((Sequence((template.pixels(record.image),)), Sequence((Segment.text(ids),), full_length=cut)))
