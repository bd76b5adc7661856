"""Views: one record as one training sample of a task (caption, questions, text-to-image, plain text): sequences with what is
learned.

The random choices of a view (which wording, which questions, whether the prompt is dropped) come from the generator it is
given, which is keyed by (seed, sample): the same sample is the same sequence on any rank, in any worker, in any order.

What is longer than there is room for (`Template.max_positions`: of the model, and of a row) loses its end: a conversation its
last turns, then its last answer the rest of its words; a prompt its last words, a text what comes last. The plan counts and
says it. Where not even a piece has room, the record is named.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn, Protocol

import numpy as np

from unimm.data.records import DEFAULT_CODES, Parts, Question, Record, RecordImage, Text
from unimm.data.template import ImageSegments, Part, Template, Turn, smallest
from unimm.runtime.number_checks import check_probability, check_whole
from unimm.sequence import Sample, Segment, Sequence

DESCRIBE = {
    "en": ("Describe the image.", "What is in the picture?", "Write a caption."),
    "zh": ("描述这张图片。", "图片里有什么？", "写一句图片说明。"),
}
"""How a caption is asked for, by language. The first of a language is what `Engine.caption` asks."""


UNDERSTANDING, TEXT, DRAWING = "understanding", "text", "drawing"
TASKS = (UNDERSTANDING, TEXT, DRAWING)
"""What our views teach, as Janus counts its data."""


class View(Protocol):
    """One way to see a record.

    task: what it teaches: one of TASKS, or any other name, which a ratio of tasks then names too.

    A view may also say `looks_at_images` (a bool): see `looks_at_images`.
    """

    task: ClassVar[str]

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence | Sample: ...


def looks_at_images(view: View) -> bool:
    """Whether a view's sequences hold images for the vision tower, so that stored features can stand for them: as its own
    `looks_at_images` says; where it says nothing, whether it teaches UNDERSTANDING."""
    return getattr(view, "looks_at_images", view.task == UNDERSTANDING)


@dataclass(frozen=True)
class Conversation:
    """PIXELS, then a caption, or several questions with their answers that share one image.

    Never both: answers could be read off the caption, and a caption put together from the answers, without looking.

    num_turns: at most so many questions of those that stand by themselves, in any order; a record that is a dialogue keeps all
        its turns as they are, as in `Dialogue`. caption_share: the probability that the conversation is a caption.
    """

    task: ClassVar[str] = UNDERSTANDING
    num_turns: int = 1
    caption_share: float = 0.5

    def __post_init__(self) -> None:
        check_whole(self, 1, "num_turns")
        check_probability(self, "caption_share")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        pairs: list[Pair] = []
        is_caption = rng.random() < self.caption_share
        if (is_caption and record.captions) or not record.questions:
            caption = _choose(record.captions or _lacks(record, "captions and no questions"), rng)
            # A language without requests of its own is asked for in English.
            pairs.append(((_choose(DESCRIBE.get(caption.language, DESCRIBE["en"]), rng),), (caption.text,), ()))
        elif record.is_dialogue:
            return _talk(record, template, _pairs(record.questions))
        else:
            questions: tuple[Question, ...] = record.questions
            pairs = _pairs(tuple(questions[index] for index in rng.permutation(len(questions))[: self.num_turns]))
        _need(record, "image")
        return _talk(record, template, pairs)


@dataclass(frozen=True)
class Dialogue:
    """PIXELS where the record has an image, then all its questions and answers in their order: conversations of users' own.

    Later turns lean on earlier ones, so nothing is shuffled; without an image it is a chat in text, learned all the same.
    Images in answers are drawn: their codes are learned.

    max_positions: of the sequence, which the model and the row limit, too.
    drop: the probability that all words are dropped where an answer draws, so that guidance has something to lead away from;
        of these the codes alone are learned.
    """

    task: ClassVar[str] = UNDERSTANDING
    max_positions: int | None = None
    drop: float = 0.0

    def __post_init__(self) -> None:
        check_probability(self, "drop")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        questions: tuple[Question, ...] = record.questions or _lacks(record, "questions")
        sequence = _talk(record, template, _pairs(questions), self.max_positions)
        if self.drop and sequence.num_learned_codes and rng.random() < self.drop:
            return sequence.unconditioned(template.tokenizer.special.pad)
        return sequence


@dataclass(frozen=True)
class Description:
    """PIXELS, then all that is known of the image: all captions, and its codes where the record has them.

    What a vision tower learns from alone (`objective=vision_pretraining`); nothing reads it in order.
    """

    task: ClassVar[str] = UNDERSTANDING

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        image = template.pixels(_need(record, "image"))
        ids = template.tokenizer.encode(" ".join(caption.text for caption in record.captions))
        codes = () if record.codes is None else (Segment.codes(record.codes, learn=True),)
        return _shortened(Sequence((image, Segment.text(ids, learn=True), *codes)), 1, record, template, template.max_positions)


@dataclass(frozen=True)
class Drawing:
    """TEXT(prompt), then the image's codes to learn; of a record with several images one of them, any as often as the others.

    drop: the probability that the prompt is the null prompt.
    prompt_share: the probability that it is one of the record's looser prompts and none of its captions, where it has both;
        None: each text is as likely as any other.
    corrupted: the probability that, where the prompt is neither dropped nor vague, the codes so far are read as those of a
        wrong image, the record's `corrupted_codes`. Else they agree with the prompt in all that is learned, so a model may go
        on from them and never read the prompt again; where they do not, colours (or in what else they differ) have to be taken
        from the prompt. A vague prompt leaves these to what was drawn: it cannot say that it is wrong.
    """

    task: ClassVar[str] = DRAWING
    drop: float = 0.1
    prompt_share: float | None = None
    corrupted: float = 0.0

    def __post_init__(self) -> None:
        check_probability(self, "drop", "corrupted", *(["prompt_share"] if self.prompt_share is not None else []))

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        codes = _drawn(record, rng)
        prompt = self.choose_prompt(record, rng)
        sequence = prompted(prompt.text, lambda text: template.draw(text, codes, grid=record.grid), record, template)
        if rng.random() < self.drop:
            return sequence.unconditioned(template.tokenizer.special.pad)
        if self.corrupted and not prompt.vague and rng.random() < self.corrupted:
            return sequence.with_corrupted(_need(record, "corrupted_codes"))
        return sequence

    def choose_prompt(self, record: Record, rng: np.random.Generator) -> Text:
        """One of the texts that the image may be drawn from."""
        texts = record.captions + record.prompts
        if self.prompt_share is not None and record.captions and record.prompts:
            texts = record.prompts if rng.random() < self.prompt_share else record.captions
        return _choose(texts or _lacks(record, "captions and no prompts"), rng)


@dataclass(frozen=True)
class PlainText:
    """The record's text, or a caption where it has none, learned as a whole."""

    task: ClassVar[str] = TEXT

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        text = record.text or _choose(record.captions or _lacks(record, "text and no captions"), rng)
        return _shortened(template.plain(text.text), -1, record, template, template.max_positions)


@dataclass(frozen=True)
class Document:
    """An interleaved document: its texts, learned, with its images among them. Where there is no room for all of it, its end is
    left out.

    draw: the probability that the images are not looked at but drawn: their codes are learned.
    """

    task: ClassVar[str] = UNDERSTANDING
    draw: float = 0.0

    def __post_init__(self) -> None:
        check_probability(self, "draw")

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        parts: Parts = record.document or _lacks(record, "document")
        is_drawn = bool(self.draw) and rng.random() < self.draw
        images = record.images
        shown = [_draw(record, number, template) if is_drawn else _look(template, one) for number, one in enumerate(images)]

        def write(parts: Parts) -> Sequence:
            return template.document(tuple(part if isinstance(part, str) else shown[part] for part in parts))

        return _fitting(parts, write, record, template)


Pair = tuple[Parts, Parts, tuple[int, ...]]
"""A question and its answer, with images where they stand; and which of the answer's are not learned."""


def _talk(record: Record, template: Template, pairs: list[Pair], max_positions: int | None = None) -> Sequence:
    """Questions and answers in this order, about the record's images where it has some, as many as there is room for."""
    most = smallest(max_positions, template.max_positions)
    system = record.system or None
    turns = _turns(record, template, pairs)
    sequence = whole = template.chat(turns, system_prompt=system)
    while most is not None and sequence.length > most and len(turns) > 2:
        turns = turns[:-2]
        sequence = template.chat(turns, system_prompt=system)
    sequence = _shortened(sequence, -1, record, template, most)
    return replace(sequence, full_length=whole.length) if sequence.length < whole.length else sequence


def dialogue_of(record: Record, template: Template, questions: tuple[Question, ...]) -> Sequence:
    """These questions and answers in their order, about the record's images, nothing of them cut."""
    return template.chat(_turns(record, template, _pairs(questions)), system_prompt=record.system or None)


def _shortened(sequence: Sequence, place: int, record: Record, template: Template, most: int | None) -> Sequence:
    """A sequence of which the text at a place keeps as much as there is room for."""
    if most is None or sequence.length <= most:
        return sequence
    segments = list(sequence.segments)
    text = segments[place]
    room = text.length - (sequence.length - most)
    if room < 1:
        raise _too_long(record, sequence.length - text.length, most)
    segments[place] = Segment.text(text.content_ids[:room], learn=text.learn)
    return Sequence(tuple(segments), full_length=sequence.length)


def prompted(prompt: str, write: Callable[[str], Sequence], record: Record, template: Template) -> Sequence:
    """What `write` makes of as much of a prompt as there is room for."""
    sequence, most = write(prompt), template.max_positions
    if most is None or sequence.length <= most:
        return sequence
    full_length, ids = sequence.length, template.tokenizer.encode(prompt)
    around = full_length - len(ids)
    while sequence.length > most:
        ids = ids[: len(ids) - (sequence.length - most)]
        cut = template.tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER} ")  # half a character
        if not cut:
            raise _too_long(record, around, most)
        sequence = write(cut)
    return replace(sequence, full_length=full_length)


def _fitting(parts: Parts, write: Callable[[Parts], Sequence], record: Record, template: Template) -> Sequence:
    """What `write` makes of as much of a document as there is room for: whole parts, and the beginning of a text."""
    sequence, most = write(parts), template.max_positions
    if most is None or sequence.length <= most:
        return sequence
    full_length, count = sequence.length, len(parts)
    while count and sequence.length > most:
        count -= 1
        sequence = write(parts[:count])
    kept, cut = parts[:count], parts[count]
    if isinstance(cut, str):
        ids = template.tokenizer.encode(cut)[: max(0, most - sequence.length)]
        while ids:
            words = template.tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER} ")
            longer = write((*kept, words)) if words else sequence
            if longer.length <= most:
                kept, sequence = (*kept, words) if words else kept, longer
                break
            ids = ids[: len(ids) - (longer.length - most)]
    if sequence.length > most or not any(isinstance(part, str) for part in kept):
        raise _too_long(record, sequence.length, most)
    return replace(sequence, full_length=full_length)


def _too_long(record: Record, length: int, most: int) -> ValueError:
    return ValueError(
        f"Record {record.key} takes {length} positions and the text that can be cut, and there are {most} at most: raise "
        f"trainer.num_positions (and max_positions of its view, where that is less), make a model for more "
        f"(model.trunk.max_position_embeddings), or take the record out."
    )


def _pairs(questions: tuple[Question, ...]) -> list[Pair]:
    return [(one.parts or (one.text,), one.answer_parts or (one.answer,), one.given_images) for one in questions]


def _turns(record: Record, template: Template, pairs: list[Pair]) -> list[Turn]:
    """Questions and answers as turns; where no question says where images stand, they come first."""
    images = record.images
    seen: dict[int, Part] = {}

    def look(parts: Parts) -> tuple[Part, ...]:
        for part in parts:
            if isinstance(part, int) and part not in seen:
                seen[part] = _look(template, images[part])
        return tuple(part if isinstance(part, str) else seen[part] for part in parts)

    if images and not any(isinstance(part, int) for pair in pairs for part in (*pair[0], *pair[1])):
        pairs = [((*range(len(images)), *pairs[0][0]), *pairs[0][1:]), *pairs[1:]]
    turns: list[Turn] = []
    for question, answer, given in pairs:
        drawn = tuple(one if isinstance(one, str) else _draw(record, one, template, one not in given) for one in answer)
        turns += [Turn("user", look(question)), Turn("assistant", drawn)]
    return turns


def _look(template: Template, image: RecordImage) -> Part:
    return template.show(image.image, image.codes.get(DEFAULT_CODES))


def _draw(record: Record, number: int, template: Template, learn: bool = True) -> ImageSegments:
    """An image that is drawn among words."""
    image = record.images[number]
    codes = image.codes.get(DEFAULT_CODES)
    codes = _lacks(record, "codes of an image that is drawn") if codes is None else codes
    return template.drawn(codes, image.image, learn=learn)


def _drawn(record: Record, rng: np.random.Generator) -> np.ndarray:
    """The codes of the image that is drawn: of one of several."""
    if not record.others:
        return _need(record, "codes")
    codes = [one.codes.get(DEFAULT_CODES) for one in record.images]
    chosen = codes[int(rng.integers(len(codes)))]
    return _lacks(record, "codes of one of its images") if chosen is None else chosen


def _choose(options: tuple, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def _need(record: Record, name: str):
    value = getattr(record, name)
    return _lacks(record, name) if value is None else value


def _lacks(record: Record, what: str) -> NoReturn:
    raise ValueError(f"Record {record.key} has no {what}, which this view needs.")
