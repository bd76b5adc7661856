"""Views: one record as a task, chosen by the generator alone."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from toys import Squares, make_mixture, make_template

from unimm.data.records import Question, Record, RecordImage, Text
from unimm.data.views import DESCRIBE, Conversation, Description, Dialogue, Document, Drawing, PlainText, View
from unimm.sequence import Kind, Sequence

TEMPLATE = make_template()
RECORD = Squares()[6]


def see(view: View, seed: int = 0, record: Record = RECORD) -> Sequence:
    return view(record, TEMPLATE, np.random.default_rng(seed))


def text_of(sequence: Sequence, learn: bool | None = None) -> str:
    ids = [i for s in sequence.segments if s.kind == Kind.TEXT and learn in (None, s.learn) for i in s.ids]
    return TEMPLATE.tokenizer.decode(ids)


@pytest.mark.parametrize("view", [Conversation(2), Dialogue(), Drawing(0.5), PlainText(), Description()])
def test_a_view_is_a_function_of_record_and_generator(view: View) -> None:
    assert all(see(view, seed) == see(view, seed) for seed in range(20))
    assert all(not see(view, seed).is_open and any(s.learn for s in see(view, seed).segments) for seed in range(20))


def test_a_conversation_is_a_caption_or_questions_never_both() -> None:
    captions = {caption.text for caption in RECORD.captions}
    asked: dict[int, int] = {0: 0, 1: 0, 2: 0}
    for seed in range(200):
        sequence = see(Conversation(num_turns=2, caption_share=0.5), seed)
        answers = text_of(sequence, learn=True)
        kinds = [segment.kind for segment in sequence.segments]
        assert kinds.count(Kind.PIXELS) == 1, "one look at the image"
        said = [q for q in RECORD.questions if q.text in text_of(sequence, learn=False)]
        if any(caption in answers for caption in captions):
            assert not said and any(d in text_of(sequence) for lines in DESCRIBE.values() for d in lines)
        assert all(question.answer in answers for question in said)
        asked[len(said)] += 1
    assert asked[1] == 0 and 70 < asked[0] < 130


def test_captions_are_asked_for_in_their_language() -> None:
    chinese = replace(RECORD, captions=RECORD.captions[1:], questions=())
    assert any(words in text_of(see(Conversation(), record=chinese)) for words in DESCRIBE["zh"])


def test_num_turns_bounds_the_questions() -> None:
    learned = [s for s in see(Conversation(num_turns=1, caption_share=0.0)).segments if s.learn]
    assert len(learned) == 1


def test_a_language_without_requests_is_asked_in_english() -> None:
    german = replace(RECORD, captions=(Text("Ein Quadrat.", "de"),), questions=())
    assert any(words in text_of(see(Conversation(), record=german)) for words in DESCRIBE["en"])


QUESTIONS = tuple(Question(f"Question {number}?", f"Answer {number}.") for number in range(6))


@pytest.mark.parametrize("image", [RECORD.image, None])
def test_a_dialogue_keeps_its_order_and_learns_every_answer(image: np.ndarray | None) -> None:
    sequence = see(Dialogue(), record=replace(RECORD, image=image, questions=QUESTIONS))
    text = text_of(sequence)
    places = [text.index(words) for question in QUESTIONS for words in (question.text, question.answer)]
    assert places == sorted(places)
    assert [s.kind for s in sequence.segments].count(Kind.PIXELS) == int(image is not None)
    learned = text_of(sequence, learn=True)
    assert all(question.answer in learned and question.text not in learned for question in QUESTIONS)


def test_a_long_dialogue_loses_its_end() -> None:
    record = replace(RECORD, questions=QUESTIONS)
    whole = see(Dialogue(), record=record).length
    shortest = see(Dialogue(), record=replace(record, questions=QUESTIONS[:1])).length
    for limit in range(shortest, whole + 1):
        sequence = see(Dialogue(limit), record=record)
        kept = sum(question.answer in text_of(sequence, learn=True) for question in QUESTIONS)
        assert sequence.length <= limit and kept >= 1
        assert sequence == see(Dialogue(), record=replace(record, questions=QUESTIONS[:kept]))
    cut = see(Dialogue(shortest - 3), record=record)
    assert cut.length == shortest - 3 and cut.segments[-1].learn
    assert text_of(see(Dialogue(), record=record)).startswith(text_of(cut))
    with pytest.raises(
        ValueError, match=r"Record squares/6 takes \d+ positions .* there are 12 at most: raise trainer\.num_pos"
    ):
        see(Dialogue(12), record=record)
    small = copy(TEMPLATE)
    small.max_positions = shortest + 3  # so much the model takes
    for view in (Dialogue(), Dialogue(whole)):
        assert view(record, small, np.random.default_rng(0)) == see(Dialogue(shortest + 3), record=record)


@pytest.mark.parametrize("image", [RECORD.image, None])
def test_a_dialogue_stays_one_where_questions_would_be_drawn_by_chance(image: np.ndarray | None) -> None:
    """Conversations of users' own, by any reader: no turn is moved or left out, but at the end for want of room."""
    record = replace(RECORD, image=image, questions=QUESTIONS, is_dialogue=True)
    whole = see(Dialogue(), record=record)
    assert all(see(Conversation(1, 0.0), seed, record) == whole for seed in range(5))
    drawn = [see(Conversation(4, 0.0), seed, replace(RECORD, questions=QUESTIONS)) for seed in range(5)]
    assert len({text_of(sequence) for sequence in drawn}) > 1, "questions that stand by themselves are chosen by chance"
    cut = Conversation(1, 0.0)(record, TEMPLATE.limited(60), np.random.default_rng(0))
    assert cut == see(Dialogue(60), record=record) and cut.full_length == whole.length


LONG = "红色的正方形 and a very long story about it. " * 20


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (Conversation(), {"captions": (Text(LONG),), "questions": ()}),
        (Conversation(caption_share=0.0), {"questions": (Question("What?", LONG), Question("Why?", LONG))}),
        (Drawing(0.0), {"captions": (Text(LONG),), "prompts": ()}),
        (PlainText(), {"text": Text(LONG)}),
        (Description(), {"captions": (Text(LONG),)}),
    ],
)
def test_a_text_that_is_too_long_loses_its_end(view: View, words: dict) -> None:
    record = replace(RECORD, **words)
    whole = see(view, record=record)
    for most in (50, 51, 52, 53, whole.length - 1):
        cut = view(record, TEMPLATE.limited(most), np.random.default_rng(0))
        assert most - 3 <= cut.length <= most and cut.full_length == whole.length
        ends = [s.ids for s in cut.segments if s.kind == Kind.CODES]
        assert ends == [s.ids for s in whole.segments if s.kind == Kind.CODES], "an image is never cut"
        told = text_of(cut).removesuffix("\n\n:") if isinstance(view, Drawing) else text_of(cut).rstrip("\ufffd")
        assert text_of(whole).startswith(told) and len(told) > 5
    assert view(record, TEMPLATE.limited(whole.length), np.random.default_rng(0)).full_length is None
    with pytest.raises(ValueError, match="Record squares/6 takes"):
        view(record, TEMPLATE.limited(1), np.random.default_rng(0))


def test_the_prompt_is_dropped_as_often_as_asked() -> None:
    """Over 3,000 samples of the mixture, 0.1 give or take four standard deviations; the codes always stay."""
    mixture = make_mixture(drop=0.1)
    draw = next(number for number, source in enumerate(mixture.sources) if source.name == "draw")
    samples = [mixture.sequence((draw, number)) for number in range(3000)]
    pad = TEMPLATE.tokenizer.special.pad
    dropped = [pad in sample.segments[1].ids for sample in samples]
    assert abs(np.mean(dropped) - 0.1) < 4 * (0.1 * 0.9 / 3000) ** 0.5
    assert all(sample.segments[-1].learn and sample.segments[-1].kind == Kind.CODES for sample in samples)
    assert dropped[:50] == [pad in make_mixture(drop=0.1).sequence((draw, n)).segments[1].ids for n in range(50)]
    other = make_mixture(drop=0.1, seed=1)
    assert dropped != [pad in other.sequence((draw, n)).segments[1].ids for n in range(3000)]


def test_corrupted_codes_are_read_as_often_as_asked_and_never_without_a_prompt() -> None:
    """A view without them draws the same as ever; one that wants them names the record that has none."""
    codes = np.arange(len(RECORD.codes))
    record = RECORD.with_corrupted_codes(codes)
    drawn = [see(Drawing(0.3, corrupted=0.5), seed, record) for seed in range(2000)]
    pad = TEMPLATE.tokenizer.special.pad
    disguised = [np.array_equal(sequence.segments[-1].corrupted, codes) for sequence in drawn]
    assert not any(pad in sequence.segments[1].ids for sequence, one in zip(drawn, disguised, strict=True) if one)
    assert abs(np.mean(disguised) - 0.35) < 0.04
    assert all(sequence.segments[-1].ids == tuple(RECORD.codes) for sequence in drawn)
    assert see(Drawing(0.3), 5, record) == see(Drawing(0.3), 5)
    with pytest.raises(ValueError, match="has no corrupted_codes"):
        see(Drawing(0.0, corrupted=1.0))


def test_vague_prompts_keep_what_was_drawn() -> None:
    """Who asks for "a square" may have it in any colour, so the colour drawn so far has to be kept."""
    texts = (Text("A red square."), Text("a square", vague=True))
    record = replace(RECORD, captions=texts[:1], prompts=texts[1:]).with_corrupted_codes(np.arange(len(RECORD.codes)))
    drawn = [see(Drawing(0.0, corrupted=1.0), seed, record) for seed in range(40)]
    assert len({sequence.segments[-1].corrupted is None for sequence in drawn}) == 2
    assert all((sequence.segments[-1].corrupted is not None) == ("red" in text_of(sequence)) for sequence in drawn)


def test_prompts_are_captions_and_prompts() -> None:
    prompts = {text_of(see(Drawing(0.0), seed)).removeprefix(": ").removesuffix("\n\n:") for seed in range(60)}
    assert prompts == {text.text for text in RECORD.captions + RECORD.prompts}


def test_plain_text_falls_back_on_captions() -> None:
    assert RECORD.text is not None
    assert text_of(see(PlainText())) == RECORD.text.text
    assert text_of(see(PlainText(), record=replace(RECORD, text=None))) in {c.text for c in RECORD.captions}


@pytest.mark.parametrize(
    ("view", "lack"),
    [
        (Conversation(), {"image": None}),
        (Conversation(), {"captions": (), "questions": ()}),
        (Dialogue(), {"questions": ()}),
        (Drawing(), {"codes": None}),
        (Description(), {"image": None}),
        (PlainText(), {"text": None, "captions": ()}),
    ],
)
def test_a_record_that_lacks_something_is_named(view: Callable, lack: dict) -> None:
    with pytest.raises(ValueError, match="squares/6"):
        see(view, record=replace(RECORD, **lack))


SEVERAL = replace(RECORD, others=(RecordImage(Squares()[1].image), RecordImage(Squares()[2].image)))  # pyright: ignore


def shown(sequence: Sequence) -> list[bytes]:
    return [s.image.open().tobytes() for s in sequence.segments if s.image is not None]


def test_several_images_come_first_or_where_they_stand() -> None:
    pixels = [TEMPLATE.pixels(one.image).image.open().tobytes() for one in SEVERAL.images]  # pyright: ignore
    first = see(Dialogue(), record=replace(SEVERAL, questions=QUESTIONS))
    assert shown(first) == pixels and [s.kind == Kind.PIXELS for s in first.segments][1:6] == [True, False, True, False, True]
    parts = (Question("Which?", "This.", parts=(2, "Which?", 0)), Question("And?", "That.", parts=("And?", 1)))
    placed = see(Dialogue(), record=replace(SEVERAL, questions=parts))
    assert shown(placed) == [pixels[2], pixels[0], pixels[1]]
    asked = text_of(placed, learn=False)
    assert asked.index("Which?") < asked.index("And?")
    one_alone = see(Conversation(num_turns=1, caption_share=0), record=replace(SEVERAL, questions=parts[1:]))
    assert shown(one_alone) == [pixels[1]]
    caption = see(Conversation(caption_share=1), record=SEVERAL)
    assert shown(caption) == pixels


def test_an_image_alone_is_as_ever() -> None:
    """Its sequence is the one that a question without parts had before there were several."""
    question = Question("Which?", "This.")
    plain, placed = (
        see(Dialogue(), record=replace(RECORD, questions=(one,))) for one in (question, replace(question, parts=(0, "Which?")))
    )
    assert plain == placed


def test_the_system_speaks_first() -> None:
    assert text_of(see(Dialogue(), record=replace(SEVERAL, system="Be brief."))).startswith("Be brief.\n\n")


def test_an_answer_draws_among_words() -> None:
    questions = (Question("Draw it.", "Here: Done.", answer_parts=("Here:", 1, "Done.")),)
    record = replace(RECORD, questions=questions, others=(RecordImage(RECORD.image, {"default": RECORD.codes + 1}),))  # pyright: ignore
    sequence = see(Dialogue(), record=record)
    codes = next(s for s in sequence.segments if s.kind == Kind.CODES)
    begin = sequence.segments[[*sequence.segments].index(codes) - 1]
    assert codes.learn and list(codes.ids) == list(RECORD.codes + 1)  # pyright: ignore
    assert begin.learn and begin.ids[-1] == TEMPLATE.tokenizer.special.begin_of_image
    with pytest.raises(ValueError, match="no codes of an image that is drawn"):
        see(Dialogue(), record=replace(SEVERAL, questions=questions))


def test_one_of_several_images_is_drawn() -> None:
    codes = [RECORD.codes + number for number in range(3)]  # pyright: ignore
    record = SEVERAL.with_codes(*codes)
    drawn = {see(Drawing(drop=0.0), seed, record).segments[-1].ids for seed in range(30)}
    assert drawn == {tuple(one.tolist()) for one in codes}
    other = SEVERAL.with_codes(*codes, name="other").images
    assert [one.codes["other"].tolist() for one in other] == [one.tolist() for one in codes]


def test_a_document_learns_its_words_and_draws_where_it_is_told() -> None:
    record = SEVERAL.with_codes(*[RECORD.codes] * 3)  # pyright: ignore
    record = replace(record, document=("One.", 0, "Two.", 1, 2, "Three."))
    looked, drawn = see(Document(), record=record), see(Document(draw=1.0), record=record)
    assert len(shown(looked)) == 3 and not shown(drawn)
    for sequence, kind in ((looked, Kind.PIXELS), (drawn, Kind.CODES)):
        assert [s.kind for s in sequence.segments].count(kind) == 3
        learned = text_of(sequence, learn=True)
        assert "One." in learned and learned.index("Two.") < learned.index("Three.")
    assert all(s.learn for s in drawn.segments if s.kind == Kind.CODES)
    for most in range(8, looked.length):
        short = Document()(record, TEMPLATE.limited(most), np.random.default_rng(0))
        assert short.length <= most and short.full_length == looked.length and any(s.learn for s in short.segments)


def test_a_dialogue_that_draws_is_sometimes_without_its_words() -> None:
    """The null prompt of guidance: the codes alone are learned; a dialogue of words alone keeps them."""
    questions = (Question("Draw it.", "Here: Done.", answer_parts=("Here:", 0, "Done.")),)
    record = replace(RECORD, questions=questions)
    dropped, kept = see(Dialogue(drop=1.0), record=record), see(Dialogue(drop=0.0), record=record)
    assert dropped == kept.unconditioned(TEMPLATE.tokenizer.special.pad)
    assert {segment.kind for segment in dropped.segments if segment.learn} == {Kind.TEXT, Kind.CODES}
    assert [s.ids for s in dropped.segments if s.learn and s.kind == Kind.TEXT] == [
        (TEMPLATE.tokenizer.special.begin_of_image,)
    ]
    assert see(Dialogue(drop=1.0), record=replace(RECORD, questions=QUESTIONS)) == see(
        Dialogue(), record=replace(RECORD, questions=QUESTIONS)
    )
