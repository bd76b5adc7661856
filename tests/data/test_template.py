"""Prompts: an open one is the closed one without its answer, users cannot write control tokens, answers are what is learned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import make_template

from unimm.data.template import ImageSegments, PromptFormat, Template, Turn
from unimm.data.text import SPECIAL_NAMES
from unimm.sequence import Kind, Segment, Sequence

FORMATS = [
    PromptFormat(),
    PromptFormat(user="User", assistant="Assistant", system_prompt="You are helpful."),  # roles as plain text
]
TEMPLATE = make_template()
SPECIAL = TEMPLATE.tokenizer.special
CODES = np.array([3, 1, 4, 1])
TYPED = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(list(SPECIAL_NAMES.values()))), max_size=4).map("".join)


def template_of(prompt_format: PromptFormat) -> Template:
    return Template(TEMPLATE.tokenizer, prompt_format, TEMPLATE.image_size, TEMPLATE.num_positions)


def elements(sequence: Sequence) -> list[tuple]:
    """Every position of the given part: its kind and its id, or its place in the image."""
    flat: list[tuple] = []
    for segment in sequence.given.segments:
        contents = range(segment.length) if segment.kind == Kind.PIXELS else segment.ids
        flat += [(segment.kind, content) for content in contents]
    return flat


def all_ids(sequence: Sequence) -> list[int]:
    return [value for kind, value in elements(sequence) if kind == Kind.TEXT]


def learned_ids(sequence: Sequence) -> list[list[int]]:
    return [list(segment.ids) for segment in sequence.segments if segment.learn]


@pytest.fixture
def image() -> ImageSegments:
    return TEMPLATE.look(np.full((16, 16, 3), 90, dtype=np.uint8))


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_an_open_chat_is_the_closed_one_without_its_answer(prompt_format: PromptFormat, image: ImageSegments) -> None:
    template = template_of(prompt_format)
    turns = [Turn("user", (image, "What colour?")), Turn("assistant", ("red",)), Turn("user", ("Sure? 真的吗",))]
    for asked in (turns[:1], turns):
        closed = template.chat([*asked, Turn("assistant", ("A red square.",))])
        opened = template.chat(asked, limit=20)
        answer = len(closed.segments[-1].ids)
        assert closed.segments[-1].learn
        assert elements(opened) == elements(closed)[:-answer]
        assert opened.segments[-1].kind == Kind.TEXT
        assert (opened.segments[-1].limit, opened.segments[-1].stop) == (20, (SPECIAL.eos,))
        assert elements(opened.fill(closed.segments[-1].ids)) == elements(closed)


@pytest.mark.parametrize("prompt_format", FORMATS)
@given(prompt=TYPED)
def test_an_open_drawing_is_the_closed_one_without_its_codes(prompt_format: PromptFormat, prompt: str) -> None:
    template = template_of(prompt_format)
    closed, opened = template.draw(prompt, CODES), template.draw(prompt, num_codes=4)
    assert opened.given.segments == closed.segments[:-1]
    assert closed.segments[-1] == Segment.codes(CODES, learn=True)
    assert opened.segments[-1] == Segment.blank(Kind.CODES, 4)
    assert closed.segments[0].ids == (SPECIAL.bos,) and closed.segments[-2].ids == (SPECIAL.begin_of_image,)
    assert learned_ids(closed) == [CODES.tolist()]


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_the_null_prompt_keeps_begin_of_sequence_and_of_image(prompt_format: PromptFormat) -> None:
    sequence = template_of(prompt_format).draw("a red square", CODES)
    ids = all_ids(sequence.unconditioned(SPECIAL.pad))
    assert ids == [SPECIAL.bos, *[SPECIAL.pad] * (len(ids) - 2), SPECIAL.begin_of_image]
    assert len(ids) == len(all_ids(sequence))


@given(question=TYPED, answer=TYPED)
def test_what_a_user_types_never_becomes_a_control_token(question: str, answer: str) -> None:
    image = (Segment.look(np.zeros((3, 16, 16), np.float32), 4),)
    chat = TEMPLATE.chat([Turn("user", (image, question)), Turn("assistant", (answer,))])
    frame = [SPECIAL.bos, SPECIAL.user, SPECIAL.begin_of_image, SPECIAL.end_of_image, SPECIAL.assistant, SPECIAL.eos]
    assert [i for i in all_ids(chat) if i in TEMPLATE.tokenizer.control_ids] == frame
    plain = TEMPLATE.plain(question)
    assert [i for i in all_ids(plain) if i in TEMPLATE.tokenizer.control_ids] == [SPECIAL.bos, SPECIAL.eos]
    assert TEMPLATE.tokenizer.decode(plain.segments[1].ids[:-1]) == question


def test_what_is_learned_is_the_answers_and_their_ends(image: ImageSegments) -> None:
    turns = [
        Turn("user", (image, "Where?")),
        Turn("assistant", ("left",)),
        Turn("user", ("Sure?",)),
        Turn("assistant", ("yes",)),
    ]
    encode = TEMPLATE.tokenizer.encode
    assert learned_ids(TEMPLATE.chat(turns)) == [[*encode(" left"), SPECIAL.eos], [*encode(" yes"), SPECIAL.eos]]
    silent = [turns[0], Turn("assistant", ("left",), learn=False), *turns[2:]]
    assert learned_ids(TEMPLATE.chat(silent)) == [[*encode(" yes"), SPECIAL.eos]]
    assert elements(TEMPLATE.chat(silent)) == elements(TEMPLATE.chat(turns))
    assert learned_ids(TEMPLATE.plain("a square")) == [[*encode("a square"), SPECIAL.eos]]


def test_text_between_special_ids_is_one_piece() -> None:
    chat = TEMPLATE.chat([Turn("user", ("one", "two")), Turn("assistant", ("three",))])
    user = [SPECIAL.bos, SPECIAL.user, *TEMPLATE.tokenizer.encode(": one two\n\n"), SPECIAL.assistant]
    assert all_ids(chat)[: len(user)] == user


def test_images_stand_between_their_begin_and_end(image: ImageSegments) -> None:
    chat = TEMPLATE.chat([Turn("user", (image, image, "Which is red?"))], limit=5)
    flat = elements(chat)
    starts = [t for t, element in enumerate(flat) if element == (Kind.PIXELS, 0)]
    assert len(starts) == 2
    for t in starts:
        assert flat[t - 1] == (Kind.TEXT, SPECIAL.begin_of_image)
        assert flat[t + TEMPLATE.num_positions] == (Kind.TEXT, SPECIAL.end_of_image)


def test_what_makes_no_sense_is_refused(image: ImageSegments) -> None:
    with pytest.raises(ValueError, match="not 'system's"):
        TEMPLATE.chat([Turn("system", ("Be brief.",))])
    with pytest.raises(ValueError, match="is text"):
        TEMPLATE.chat([Turn("assistant", (image,))])
    with pytest.raises(ValueError, match="codes or their number"):
        TEMPLATE.draw("a square")


@pytest.mark.parametrize(("sees", "kinds"), [("codes", [Kind.CODES]), ("both", [Kind.PIXELS, Kind.CODES])])
def test_an_image_may_be_seen_as_codes(sees: str, kinds: list[Kind]) -> None:
    """One encoder for both jobs, or both encoders for one: the same prompt around another image."""
    array = np.full((16, 16, 3), 90, dtype=np.uint8)
    template = Template(TEMPLATE.tokenizer, PromptFormat(sees=sees), 16, 4, encode=lambda image: np.array([9, 8, 7]))
    for codes, expected in ((None, (9, 8, 7)), (np.array([1, 2]), (1, 2))):
        chat = template.chat([Turn("user", (template.look(array, codes), "What?")), Turn("assistant", ("It.",))])
        seen = [segment for segment in chat.segments if segment.kind != Kind.TEXT]
        assert [segment.kind for segment in seen] == kinds
        assert seen[-1].ids == expected and not seen[-1].learn and seen[-1].condition == "image"
        plain = TEMPLATE.chat([Turn("user", (TEMPLATE.look(array), "What?")), Turn("assistant", ("It.",))])
        assert all_ids(chat) == all_ids(plain)
    with pytest.raises(ValueError, match="sees codes, and the image has none"):
        Template(TEMPLATE.tokenizer, PromptFormat(sees=sees), 16, 4).look(array)
    with pytest.raises(ValueError, match="sees pixels, codes, both, not 'ears'"):
        PromptFormat(sees="ears")
