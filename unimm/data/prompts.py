"""Prompts whose answers and drawings are not given: what a model is asked when it learns from its own (GRPO), or is to make
pairs of.

A view of a data set says what is asked of a record (`ask`); the mixture says which records come when, as for every training, so
the n-th prompt of a run is the same on any rank and after any interruption.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from unimm.data.mixture import Mixture, SampleId
from unimm.data.records import ImageLike, Record, Text
from unimm.data.template import Template, Turn
from unimm.data.views import DESCRIBE, DRAWING, UNDERSTANDING
from unimm.data.worlds.digits_language import drawing_prompt
from unimm.data.worlds.drawing import CATEGORIES, make_drawing_task
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Sequence


@dataclass(frozen=True)
class Asked:
    """What a model is asked.

    key: of the record. text: what is to be drawn, or the question. draws: whether a drawing is asked for.
    image: what the question is about. facts: what a judge needs to know.
    """

    key: str
    text: str
    draws: bool
    image: ImageLike | None = None
    facts: Any = None

    def open(self, template: Template, limit: int) -> Sequence:
        """The prompt as an open sequence, for `limit` codes, or at most so many tokens."""
        if self.draws:
            return template.draw(self.text, num_codes=limit)
        seen = () if self.image is None else (template.look(self.image),)
        return template.chat([Turn("user", (*seen, self.text))], limit)


class PromptView(Protocol):
    """A view that asks."""

    def ask(self, record: Record, rng: np.random.Generator) -> Asked: ...


@dataclass(frozen=True)
class DrawingPrompt:
    """A drawing of what one of a record's prompts says, or one of its captions where it has no prompts. The facts are the
    record's."""

    task: ClassVar[str] = DRAWING

    def ask(self, record: Record, rng: np.random.Generator) -> Asked:
        """One of the texts. ValueError: there is none."""
        texts: tuple[Text, ...] = record.prompts or record.captions
        if not texts:
            raise ValueError(f"Record {record.key} has neither prompts nor captions: nothing is to be drawn.")
        return Asked(record.key, texts[int(rng.random() * len(texts))].text, True, facts=record.facts)

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        """The prompt alone: nothing is learned of it."""
        return self.ask(record, rng).open(template, 1).given


@dataclass(frozen=True)
class QuestionPrompt:
    """One of a record's questions about its image; the facts are the expected answer. Where `captions` is true, a description
    is asked for, in one of the languages of the record's captions, and the facts are the record's."""

    task: ClassVar[str] = UNDERSTANDING
    captions: bool = False

    def ask(self, record: Record, rng: np.random.Generator) -> Asked:
        """One of the questions. ValueError: there is none."""
        if self.captions:
            spoken = {caption.language for caption in record.captions}
            words = [one for language, some in DESCRIBE.items() if language in spoken for one in some] or DESCRIBE["en"]
            return Asked(record.key, words[int(rng.random() * len(words))], False, record.image, record.facts)
        if not record.questions:
            raise ValueError(f"Record {record.key} has no questions: nothing is asked.")
        question = record.questions[int(rng.random() * len(record.questions))]
        return Asked(record.key, question.text, False, record.image, question.answer)

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        """The prompt alone: nothing is learned of it."""
        return self.ask(record, rng).open(template, 1).given


class ShapesPrompts:
    """What drawings of shapes are asked for, in the words of the six drawing categories, with what the checker requires. None
    names a pair of colour and form that is held out.

    seed: of the prompts; evaluation has those of 0.
    """

    def __init__(self, num_records: int = 60000, seed: int = 1) -> None:
        check_whole({"num_records": num_records}, 1)
        check_whole({"seed": seed}, 0)
        self.num_records, self.seed = num_records, seed

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        turn, place = divmod(index, len(CATEGORIES))
        task = make_drawing_task(CATEGORIES[place], turn, self.seed)
        key = f"shapes_prompts/{CATEGORIES[place]}/{turn}"
        return Record(key, prompts=(task.prompt,), facts=task.requirement)


class DigitsPrompts:
    """Digits to draw, in all wordings, with the digit for the judge."""

    def __init__(self, num_records: int = 400) -> None:
        check_whole({"num_records": num_records}, 1)
        self.num_records = num_records

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        wording, digit = divmod(index, 10)
        return Record(f"digits_prompts/{digit}/{wording}", prompts=(drawing_prompt(digit, wording),), facts=digit)


class Prompts(NamedTuple):
    """The prompts of one step. names: of their samples. numbers: counted over the whole run. asked: as many as names.
    unusable: why others are not there."""

    names: list[SampleId]
    numbers: list[int]
    asked: list[Asked]
    unusable: list[str]

    @property
    def bad(self) -> tuple[()]:
        """Bad records in whose place others stand: none do."""
        return ()

    @property
    def num_samples(self) -> int:
        """Prompts of the run before this step."""
        return 0

    @property
    def drawn(self) -> tuple[int, ...]:
        """Of each source, where its share changes: it does not."""
        return ()


class PromptSteps:
    """The prompts of one rank, by step: every `num_ranks`-th of the step's.

    num_prompts: a step, over all ranks.

    Raises ValueError where a source's view asks nothing, or a rank would get no prompt.
    """

    def __init__(self, mixture: Mixture, num_prompts: int, rank: int = 0, num_ranks: int = 1) -> None:
        for source in mixture.sources:
            if not hasattr(source.view, "ask"):
                raise ValueError(
                    f"The view {type(source.view).__name__} of the source '{source.name}' asks nothing: rollouts need prompts, "
                    f"such as data=prompts/shapes."
                )
        if num_prompts < num_ranks:
            raise ValueError(f"{num_prompts} prompts a step are too few for {num_ranks} processes: raise rollouts.num_prompts.")
        self.mixture, self.num_prompts, self.rank, self.num_ranks = mixture, num_prompts, rank, num_ranks

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, step: int) -> Prompts:
        first = step * self.num_prompts
        found = Prompts([], [], [], [])
        for place, name in enumerate(self.mixture.samples(first, self.num_prompts)):
            if place % self.num_ranks != self.rank:
                continue
            try:
                asked = self._ask(name)
            except (ValueError, OSError) as error:
                found.unusable.append(f"{self.mixture.name(name)}: {error}")
                continue
            found.names.append(name)
            found.numbers.append(first + place)
            found.asked.append(asked)
        return found

    def _ask(self, name: SampleId) -> Asked:
        view: Any = self.mixture.sources[name[0]].view
        return view.ask(*self.mixture.record(name))
