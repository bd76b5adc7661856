"""Views that teach a model to locate: phrases and boxes of a record as questions and answers, written by `unimm.data.boxes`.

    Locate the red circle.    12 07 33 28                 every box that the phrase fits, from left to right
    Locate the blue cross.    none                        it is not there
    Point to the red circle.  22 17                       the centre of each box
    What is at 12 07 33 28?   large red circle            a box, or a point of it (region captioning)

`Engine.locate`, `point` and `describe_at` ask in the first words of each list.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unimm.data.boxes import FOREIGN, OUTSIDE, BoxText, check_box, has_boxes, rewrite
from unimm.data.fit import Fit, is_resized
from unimm.data.image import decode_image, image_size
from unimm.data.records import Parts, Phrase, Question, Record, UnreadImage
from unimm.data.template import Template
from unimm.data.views import UNDERSTANDING, Dialogue
from unimm.runtime.number_checks import check_probability, check_whole
from unimm.sequence import Sequence

LOCATE = {"en": ("Locate {}.", "Draw a box around {}."), "zh": ("定位{}。", "框出{}。")}
POINT = {"en": ("Point to {}.",), "zh": ("点出{}。",)}
REGION = {"en": ("What is at {}?",), "zh": ("{}处是什么？",)}
"""How it is asked, by language; a language that is not there is asked for in English."""


def ask(wordings: dict[str, tuple[str, ...]], language: str, what: str, rng: np.random.Generator | None = None) -> str:
    """A question in these words; always the first of them without a generator."""
    options = wordings.get(language, wordings["en"])
    return options[0 if rng is None else int(rng.integers(len(options)))].replace("{}", what)


@dataclass(frozen=True)
class Grounding:
    """PIXELS, then questions about where the phrases of a record are (`unimm.data.records.Phrase`), which share the image.

    Phrases with a box that a model which sees codes does not see, because the sides of the picture are cut off, are left out.

    num_turns: questions at most. points, regions: how often a phrase is pointed to, and how often it is asked what is in its
        box, instead of being located. max_boxes: phrases with more boxes are left out: nobody would write them all.

    ValueError when it is used: the prompt format writes no boxes, or the record has no phrases that can be asked for.
    """

    task: ClassVar[str] = UNDERSTANDING
    num_turns: int = 6
    points: float = 0.1
    regions: float = 0.15
    max_boxes: int = 20

    def __post_init__(self) -> None:
        check_whole(self, 1, "num_turns", "max_boxes")
        check_probability(self, "points", "regions")
        if self.points + self.regions > 1:
            raise ValueError(f"points and regions are shares of all questions, and {self.points} and {self.regions} exceed 1.")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        boxes, fit = template.prompt_format.boxes, fit_of(record, template)
        phrases = [one for one in record.phrases if len(one.boxes) <= self.max_boxes and all(map(fit.shows, one.boxes))]
        if not phrases:
            raise ValueError(f"Record {record.key} has no phrases to locate, which this view needs.")
        chosen = [phrases[index] for index in rng.permutation(len(phrases))[: self.num_turns]]
        questions = tuple(self._question(one, boxes, fit, rng) for one in inside(record.key, chosen, fit.picture))
        return Dialogue()(_asked(record, questions), template, rng)

    def _question(self, phrase: Phrase, boxes: BoxText, fit: Fit, rng: np.random.Generator) -> Question:
        chance, language = rng.random(), phrase.language
        if phrase.region and len(phrase.boxes) == 1 and chance < self.regions:
            box = phrase.boxes[0]
            at = boxes.write_points([_centre(box)], fit) if rng.random() < 0.3 else boxes.write([box], fit)
            return Question(ask(REGION, language, at, rng), phrase.region, "region", language)
        if self.regions <= chance < self.regions + self.points:
            answer = boxes.write_points(map(_centre, phrase.boxes), fit)
            return Question(ask(POINT, language, phrase.text, rng), answer, "point", language)
        return Question(ask(LOCATE, language, phrase.text, rng), boxes.write(phrase.boxes, fit), "locate", language)


@dataclass(frozen=True)
class GroundedDialogue:
    """As `Dialogue`, of conversations whose texts hold boxes as another tool writes them: they are written as this model does.

    boxes: whose form it is: "qwen", "internvl" or "llava" (`unimm.data.boxes`). It needs the image's size, so an image is
        opened while a run is planned (the head of its file alone is read).

    ValueError when it is used: the prompt format writes no boxes, or a text marks something as boxes that are none.
    """

    task: ClassVar[str] = UNDERSTANDING
    boxes: str = "qwen"
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if self.boxes not in FOREIGN:
            raise ValueError(f"Boxes in texts are read in the forms {', '.join(FOREIGN)}, not '{self.boxes}'.")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        boxes, texts = template.prompt_format.boxes, [one.text + one.answer for one in record.questions]
        if any(has_boxes(text, self.boxes) for text in texts):
            if record.image is None or record.others:
                raise ValueError(f"Record {record.key} has boxes in its texts: it needs one image that they are of.")
            fit = fit_of(record, template)
            try:
                record = _asked(record, tuple(self._written(one, boxes, fit) for one in record.questions))
            except ValueError as error:
                raise ValueError(f"Record {record.key}: {error}") from None
        return Dialogue(self.max_positions)(record, template, rng)

    def _written(self, question: Question, boxes: BoxText, fit: Fit) -> Question:
        def write(text: str) -> str:
            return rewrite(text, self.boxes, boxes, fit)

        def parts(given: Parts) -> Parts:
            return tuple(part if isinstance(part, int) else write(part) for part in given)

        texts = {"text": write(question.text), "answer": write(question.answer)}
        return replace(question, **texts, parts=parts(question.parts), answer_parts=parts(question.answer_parts))


def fit_of(record: Record, template: Template) -> Fit:
    """How the image of a record lies in the square that the model looks at, by the size that its boxes are of.

    Raises:
        ValueError: as `size_of_boxes`.
    """
    return template.fit(size_of_boxes(record))


def size_of_boxes(record: Record) -> tuple[int, int]:
    """Width and height in pixels that the boxes of a record are of. The image may be a resized copy.

    An image that is made when it is asked for is trusted to be as large as its record says, and is not made.

    Raises:
        ValueError: the record has no image, or one of another shape than it says: its boxes would lie elsewhere.
    """
    stated = record.image_size
    if stated is not None and record.makes_image:
        return stated
    if record.image is None:
        raise ValueError(f"Record {record.key} has no image to locate something in.")
    own = image_size(record.image)
    if stated is not None and not is_resized(stated, own):
        raise ValueError(
            f"The boxes of record {record.key} are of an image of {stated[0]}x{stated[1]} px, and its image is upright "
            f"{own[0]}x{own[1]} px, which is another shape: mend the size or the boxes."
        )
    return stated or own


def inside(key: str, phrases: Iterable[Phrase], size: tuple[int, int]) -> tuple[Phrase, ...]:
    """Phrases of a record with their boxes cut at the edges of its image of `size`.

    Raises:
        ValueError: a box has no area, or lies outside.
    """
    found = []
    for phrase in phrases:
        try:
            found.append(replace(phrase, boxes=tuple(check_box(box, size, OUTSIDE) for box in phrase.boxes)))
        except ValueError as error:
            raise ValueError(f"record {key}, '{phrase.text}': {error}") from None
    return tuple(found)


def _asked(record: Record, questions: tuple[Question, ...]) -> Record:
    """The image of a record with these questions, in their order. A record may be of a class that makes its own."""
    image = _MadeImage(record, record.image_size) if record.makes_image else record.image
    return Record(record.key, image, codes=record.codes, questions=questions, is_dialogue=True, system=record.system)


@dataclass(frozen=True)
class _MadeImage(UnreadImage):
    """The image that a record makes when it is asked for it: planning a run does not make it."""

    record: Record
    size: tuple[int, int] | None

    def read(self) -> bytes:
        """As a file without loss that is quickly written and read. Raises ValueError where it cannot be made."""
        file = io.BytesIO()
        decode_image(self.record.image).save(file, "BMP")  # pyright: ignore[reportArgumentType] - it makes one
        return file.getvalue()

    def known_size(self) -> tuple[int, int] | None:
        return self.size


def _centre(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
