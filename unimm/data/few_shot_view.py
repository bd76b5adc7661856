"""The view of few-shot learning: a random number of examples, each an image with its question and answer, then one more.

PIXELS TEXT PIXELS TEXT ..., as a conversation: what an engine is asked with `examples` is the same sequence, left open. It
takes any records whose questions each show an image of their own: built-in episodes, or users' conversations about several
images. Where no question says where images stand, all of them come first, and examples are other questions about them.
"""

from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import numpy as np

from unimm.data.records import DEFAULT_CODES, Record
from unimm.data.template import Part, Template, Turn
from unimm.data.views import UNDERSTANDING
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Sequence


@dataclass(frozen=True)
class FewShot:
    """Some questions of a record in random order; the last one is asked, and those before it are its examples.

    min_examples, max_examples: any number of examples from one to the other, each as often as the others; where a record has
        fewer, or there is room for fewer, at most these. The same number twice: always so many.
    learn_examples: whether the answers of the examples are learned, too: each has the examples before it. Else the last alone.
    """

    task: ClassVar[str] = UNDERSTANDING
    min_examples: int = 0
    max_examples: int = 8
    learn_examples: bool = True

    def __post_init__(self) -> None:
        check_whole(self, 0, "min_examples", "max_examples")
        if self.min_examples > self.max_examples:
            raise ValueError(f"min_examples is at most max_examples, not {self.min_examples} and {self.max_examples}.")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        questions = record.questions
        if not questions:
            raise ValueError(f"Record {record.key} has no questions, which this view needs.")
        most = min(self.max_examples, len(questions) - 1)
        count = int(rng.integers(min(self.min_examples, most), most + 1))
        order = [int(number) for number in rng.permutation(len(questions))[: count + 1]]
        shown, first = _shown(record, template)
        pairs = [self._turns(record, shown, number, number == order[-1]) for number in order]

        def write(pairs: list[tuple[Turn, Turn]]) -> Sequence:
            (question, answer), *others = pairs
            opened = replace(question, content=(*first, *question.content))
            return template.chat([opened, answer, *chain(*others)], system_prompt=record.system or None)

        sequence = whole = write(pairs)
        limit = template.max_positions
        while limit is not None and sequence.length > limit and len(pairs) > 1:
            pairs = pairs[1:]
            sequence = write(pairs)
        if limit is not None and sequence.length > limit:
            raise ValueError(
                f"Record {record.key} takes {sequence.length} positions without an example, and there are {limit} at most: "
                f"raise trainer.num_positions, or make a model for more (model.trunk.max_position_embeddings)."
            )
        return replace(sequence, full_length=whole.length) if sequence.length < whole.length else sequence

    def _turns(self, record: Record, shown: list[Part], number: int, is_last: bool) -> tuple[Turn, Turn]:
        question = record.questions[number]
        content = tuple(part if isinstance(part, str) else shown[part] for part in question.parts or (question.text,))
        return Turn("user", content), Turn("assistant", (question.answer,), learn=is_last or self.learn_examples)


def _shown(record: Record, template: Template) -> tuple[list[Part], tuple[Part, ...]]:
    """All images of a record, and those that stand before its first question: all where no question has one of its own, else
    none.

    Raises:
        ValueError: some questions show an image and others none.
    """
    images: list[Part] = [template.show(one.image, one.codes.get(DEFAULT_CODES)) for one in record.images]
    showing = [any(isinstance(part, int) for part in question.parts) for question in record.questions]
    if any(showing) and not all(showing):
        raise ValueError(
            f"Record {record.key} has questions with an image of their own and others without, which cannot stand in any "
            f"order, as this view has them: see it as a Dialogue, or take it out."
        )
    return images, () if any(showing) else tuple(images)
