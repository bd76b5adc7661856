"""What tests of samples with several sequences share: a view that gives a conversation and a text, learned together."""

from typing import ClassVar

import numpy as np

from unimm.data.mixture import Mixture, Source
from unimm.data.records import Record
from unimm.data.template import Template
from unimm.data.views import Conversation, Drawing, PlainText
from unimm.sequence import Sample, Sequence

from toys import Squares, make_template  # isort: skip


class PairView:
    """A conversation about an image, and a text of it or another conversation; as many of both as `num_pairs`."""

    task: ClassVar[str] = "pairing"
    looks_at_images: ClassVar[bool] = True

    def __init__(self, num_pairs: int = 1, second: str = "text") -> None:
        self.num_pairs, self.second = num_pairs, second

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sample:
        talk, text = Conversation(num_turns=1), PlainText()
        views = [talk, text if self.second == "text" else talk] * self.num_pairs
        sequences: list[Sequence] = [view(record, template, rng) for view in views]
        return Sample(tuple(sequences))


def make_pairs(seed: int = 0, second: str = "text") -> Mixture:
    """Pairs and drawings, in rows of 40 some pairs fit into one and others do not."""
    sources = [Source("pairs", Squares(), PairView(second=second), 3.0), Source("draw", Squares(), Drawing(0.0), 1.0)]
    return Mixture(sources, make_template(), seed)
