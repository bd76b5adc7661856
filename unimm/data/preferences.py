"""Preferences as samples: a prompt with a chosen and a rejected answer, or with two drawings, for objectives that compare them.

    (PIXELS . TEXT(question) . TEXT(chosen),  PIXELS . TEXT(question) . TEXT(rejected))     both learned
    (TEXT(prompt) . CODES(chosen),            TEXT(prompt) . CODES(rejected))

Or an answer or a drawing by itself that is labelled good or bad, for objectives that do not compare two: then a sequence in
which nothing is learned stands in the other place. They lie in one micro-batch and never attend to each other
(`unimm.sequence.Sample`); which is the chosen one follows from its place. A pair in which both are equal, or one of which has
no room for its end, prefers nothing and is refused.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unimm.data.records import DEFAULT_CODES, Question, Record
from unimm.data.template import Template
from unimm.data.views import dialogue_of
from unimm.runtime.number_checks import check_probability
from unimm.sequence import Sample, Segment, Sequence

PREFERENCE = "preference"


@dataclass(frozen=True)
class Preference:
    """A record's preference. Of answers: the last of its questions has a `rejected` answer beside its right one, and earlier
    questions are the turns before. Of drawings: it has two images with codes, the better one first, and a prompt.

    Of one by itself: the record has a `label`, and its last answer, or its one image with codes, is that.

    drop: of drawings, how often a third sequence is the better one with the null prompt, which stands for the better one where
        objectives learn its likelihood: guidance needs that, as in `Drawing`. The pair itself keeps its prompt: without one,
        neither is better.
    mismatched: whether the last sequence is the prompt with the answer or drawing of the record's partner, of which the
        baseline of KTO is the mean; where there is no partner, or no room for it, there is none. A sequence of nothing stands
        in the place of the null prompt then, where there is none.
    """

    task: ClassVar[str] = PREFERENCE
    looks_at_images: ClassVar[bool] = True
    drop: float = 0.1
    mismatched: bool = False

    def __post_init__(self) -> None:
        check_probability(self, "drop")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sample:
        """Raises ValueError where the record holds no preference, both are equal, or there is no room for one of them."""
        questions: tuple[Question, ...] = record.questions
        if record.label is not None:
            both = self._one(record, questions, template)
        elif questions and questions[-1].rejected:
            both = self._answers(record, questions, template)
        elif len(record.images) == 2 and record.prompts:
            both = self._drawings(record, template)
        else:
            raise ValueError(
                f"Record {record.key} holds no preference: neither a rejected answer, nor two images with their codes and a "
                f"prompt, nor a label."
            )
        for sequence in both:
            most = template.max_positions
            if most is not None and sequence.length > most:
                raise ValueError(
                    f"Record {record.key} takes {sequence.length} positions, and there are {most} at most: "
                    f"what is cut off is no preference. Raise trainer.num_positions, or "
                    f"make a model for more (model.trunk.max_position_embeddings)."
                )
        is_dropped = record.image is not None and not questions and rng.random() < self.drop and record.label is not False
        instead = (both[0].unconditioned(template.tokenizer.special.pad),) if is_dropped else ()
        other = self._mismatched(record, template) if self.mismatched else None
        return Sample((*both, *instead) if other is None else (*both, *(instead or (nothing(template),)), other))

    def _one(self, record: Record, questions: tuple[Question, ...], template: Template) -> tuple[Sequence, Sequence]:
        """What is labelled, in its place, and nothing in the other one."""
        if not questions and (record.codes is None or not record.prompts):
            raise ValueError(
                f"Record {record.key} has a label, and neither an answer, nor a prompt with codes of its image: run `unimm "
                f"encode` on its data."
            )
        own = _sequence_of(record, record, template)
        return (own, nothing(template)) if record.label else (nothing(template), own)

    def _mismatched(self, record: Record, template: Template) -> Sequence | None:
        partner = None if record.partner is None else record.partner()
        if partner is None or (not partner.questions and partner.codes is None):
            return None
        sequence, most = _sequence_of(record, partner, template), template.max_positions
        return sequence if most is None or sequence.length <= most else None

    def _answers(self, record: Record, questions: tuple[Question, ...], template: Template) -> tuple[Sequence, Sequence]:
        last = questions[-1]
        if last.answer.strip() == last.rejected.strip():
            raise ValueError(f"Record {record.key} prefers nothing: both answers are '{last.answer.strip()[:60]}'.")
        worse = (*questions[:-1], replace(last, answer=last.rejected, answer_parts=()))
        chosen, rejected = (dialogue_of(record, template, turns) for turns in (questions, worse))
        return only_last_learned(chosen), only_last_learned(rejected)

    def _drawings(self, record: Record, template: Template) -> tuple[Sequence, Sequence]:
        codes = [image.codes.get(DEFAULT_CODES) for image in record.images]
        chosen, rejected = codes
        if chosen is None or rejected is None:
            raise ValueError(f"Record {record.key} has two images, and not the codes of both: run `unimm encode` on its data.")
        if np.array_equal(chosen, rejected):
            raise ValueError(f"Record {record.key} prefers nothing: both drawings are equal.")
        prompt = record.prompts[0].text
        return template.draw(prompt, chosen), template.draw(prompt, rejected)


def nothing(template: Template) -> Sequence:
    """A sequence in which nothing is learned, as short as it can be."""
    return Sequence((Segment.text([template.tokenizer.special.bos]),))


def _sequence_of(record: Record, answered: Record, template: Template) -> Sequence:
    """The prompt of one record with the last answer, or the first drawing, of another, or of the same one."""
    if record.questions:
        last = answered.questions[-1]
        turns = (*record.questions[:-1], replace(record.questions[-1], answer=last.answer, answer_parts=()))
        return only_last_learned(dialogue_of(record, template, turns))
    assert answered.codes is not None
    return template.draw(record.prompts[0].text, answered.codes)


def only_last_learned(sequence: Sequence) -> Sequence:
    """The sequence with nothing learned but its last answer: the turns before are the same in both of a pair."""
    segments = list(sequence.segments)
    last = max(place for place, segment in enumerate(segments) if segment.learn)
    first = last
    while first and segments[first - 1].learn:  # an answer of text and drawings
        first -= 1
    return Sequence(tuple(one if place >= first else replace(one, weight=0.0) for place, one in enumerate(segments)))
