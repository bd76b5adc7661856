"""The view of preferences: what both of a pair share, and which pairs prefer nothing."""

from dataclasses import replace

import numpy as np
import pytest
from toys import Squares, make_template

from unimm.data.preferences import Preference
from unimm.data.records import DEFAULT_CODES, Question, Record, RecordImage, Text
from unimm.sequence import Kind, Sequence

RNG = np.random.default_rng(0)


def a_drawing() -> Record:
    one, other = Squares()[0], Squares()[6]
    return replace(one, questions=(), others=(RecordImage(other.image, {DEFAULT_CODES: other.codes}),))


def learned(sequence: Sequence) -> str:
    ids = [id for segment in sequence.segments if segment.learn for id in segment.content_ids.tolist()]
    return make_template().tokenizer.decode(ids[:-1])


def test_answers_share_all_but_the_last_which_alone_is_learned() -> None:
    turns = (Question("What colour is it?", "red"), Question("And where?", "at the top", rejected="nowhere"))
    chosen, rejected = Preference()(replace(Squares()[0], questions=turns), make_template(), RNG).sequences
    assert (learned(chosen), learned(rejected)) == (" at the top", " nowhere")
    assert chosen.segments[:-1] == rejected.segments[:-1] and chosen.segments[1].kind == Kind.PIXELS


def test_drawings_share_their_prompt_and_the_null_prompt_stands_beside_them() -> None:
    template, record = make_template(), a_drawing()
    chosen, rejected, instead = Preference(drop=1.0)(record, template, RNG).sequences
    assert chosen.segments[:-1] == rejected.segments[:-1]
    assert np.array_equal(chosen.segments[-1].content_ids, record.codes)
    assert np.array_equal(rejected.segments[-1].content_ids, record.others[0].codes[DEFAULT_CODES])
    assert instead == chosen.unconditioned(template.tokenizer.special.pad)
    assert len(Preference(drop=0.0)(record, template, RNG).sequences) == 2


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (replace(Squares()[0], questions=(Question("a", "red", rejected=" red"),)), "prefers nothing: both answers are 'red'"),
        (replace(a_drawing(), others=a_drawing().images[:1]), "prefers nothing: both drawings are equal"),
        (Squares()[0], "neither a rejected answer, nor two images with their codes and a prompt"),
        (replace(a_drawing(), others=(RecordImage(Squares()[1].image),)), "run `unimm encode` on its data"),
        (replace(a_drawing(), prompts=(Text("red " * 90),)), "what is cut off is no preference"),
    ],
)
def test_what_prefers_nothing_is_refused(record: Record, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Preference()(record, make_template().limited(64), RNG)
