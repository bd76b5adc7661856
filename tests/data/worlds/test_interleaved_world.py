"""Conversations in which the assistant draws: same every time, true of their pictures, held-out pairs kept out."""

from collections import Counter

import numpy as np
import pytest
from toys import make_template

from unimm.data.template import PromptFormat, Template
from unimm.data.views import Dialogue
from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.interleaved import InterleavedWorld
from unimm.data.worlds.interleaved_scenes import KINDS, answer_to, make_story, meets
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, Shape
from unimm.data.worlds.shapes_language import describe, parse_caption
from unimm.sequence import Kind

TRAIN = [InterleavedWorld(num_records=400)[index] for index in range(400)]


def test_a_record_is_the_same_every_time_and_splits_differ() -> None:
    again = InterleavedWorld(num_records=400)
    for index in (0, 7, 399):
        assert again[index].questions == TRAIN[index].questions and again[index].facts == TRAIN[index].facts
    others = [InterleavedWorld(split, 50) for split in ("validation", "test", "held_out")]
    assert all(world[3].facts != TRAIN[3].facts for world in others)
    assert Counter(record.facts.kind for record in TRAIN).keys() == set(KINDS)
    assert {record.language for record in TRAIN} == {"en", "zh"}


def test_held_out_pairs_are_shown_by_their_split_alone() -> None:
    def shows_one(record) -> bool:
        return any((item.colour, item.form) in HELD_OUT_PAIRS for scene in record.facts.scenes for item in scene.objects)

    assert not any(map(shows_one, TRAIN))
    assert all(shows_one(InterleavedWorld("held_out", 60)[index]) for index in range(60))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_pictures_show_what_is_asked_for_and_answers_are_true(split: str) -> None:
    for record in [InterleavedWorld(split, 80)[index] for index in range(80)]:
        pictures = [record.image, *(one.image for one in record.others)]
        for exchange, question in zip(record.facts.exchanges, record.questions, strict=True):
            drawn = [part for part in question.answer_parts if isinstance(part, int)]
            if exchange.picture is not None:
                assert drawn[-1] == exchange.picture and len(drawn) == 1 + (exchange.wrong is not None)
                assert meets(read_objects(pictures[exchange.picture]), exchange.looks)
            else:
                assert not drawn
            if exchange.wrong is not None:
                assert not meets(read_objects(pictures[exchange.wrong]), exchange.looks)
                assert question.given_images == (exchange.wrong,)
            if exchange.asked is not None:
                last = exchange.picture if exchange.picture is not None else len(pictures) - 1
                assert answer_to(exchange.asked, read_objects(pictures[last])) is not None
            if exchange.before:
                said = question.answer_parts[0]
                assert Counter(parse_caption(str(said))) == Counter(map(describe, read_objects(pictures[0])))
            if exchange.edit is None and exchange.picture is not None and not exchange.asked:
                assert Counter(parse_caption(question.text)) == Counter(exchange.looks)


def test_a_judge_takes_the_most_exact_words_first() -> None:
    red, large = Shape("small", "red", "circle", 10, 10), Shape("large", "red", "circle", 40, 40)
    assert meets([red, large], ((None, "red", "circle"), ("small", "red", "circle")))
    assert not meets([large, large], ((None, "red", "circle"), ("small", "red", "circle")))
    assert not meets([red, large], ((None, "red", "circle"),)), "one too many"


def test_what_is_drawn_wrong_is_read_and_not_learned() -> None:
    template = Template(make_template().tokenizer, PromptFormat(looks_at_drawings=True), 64, 64)
    record = next(one for one in TRAIN if one.facts.kind == "check" and len(one.facts.scenes) == 2)
    codes = [np.full(64, number) for number in range(2)]
    sequence = Dialogue()(record.with_codes(*codes), template, np.random.default_rng(0))
    drawn = [segment for segment in sequence.segments if segment.kind == Kind.CODES]
    assert [(segment.ids[0], segment.learn) for segment in drawn] == [(0, False), (1, True)]
    assert [segment.kind for segment in sequence.segments].count(Kind.PIXELS) == 2
    begin = template.tokenizer.special.begin_of_image
    learned = [token for segment in sequence.segments if segment.learn and segment.kind == Kind.TEXT for token in segment.ids]
    assert learned.count(begin) == 1


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown split"):
        InterleavedWorld("dev")
    with pytest.raises(ValueError, match="kinds are draw"):
        InterleavedWorld(kinds=["paint"])
    with pytest.raises(ValueError, match="Conversations are draw"):
        make_story("paint", np.random.default_rng(0))
    with pytest.raises(IndexError):
        InterleavedWorld(num_records=3)[3]
