"""The view of few-shot learning: the sequence that an engine is asked with, any number of examples, what is learned of them."""

from collections import Counter

import numpy as np
import pytest
from toys import make_template

from unimm.data.few_shot_view import FewShot
from unimm.data.records import Question, Record
from unimm.data.worlds.few_shot import FewShotWorld
from unimm.sequence import Kind, Sequence

TEMPLATE = make_template()
RECORD = FewShotWorld(num_records=4)[1]


def see(view: FewShot, seed: int = 0, record: Record = RECORD, most: int | None = None) -> Sequence:
    return view(record, TEMPLATE.limited(most), np.random.default_rng(seed))


def kinds(sequence: Sequence, kind: Kind) -> int:
    return sum(segment.kind == kind for segment in sequence.segments)


def learned(sequence: Sequence) -> list[str]:
    return [TEMPLATE.tokenizer.decode(segment.ids).strip() for segment in sequence.segments if segment.learn]


def test_pixels_and_text_take_turns_and_every_number_of_examples_comes() -> None:
    seen = Counter()
    for seed in range(90):
        sequence = see(FewShot(), seed)
        count = kinds(sequence, Kind.PIXELS)
        seen[count - 1] += 1
        assert len(learned(sequence)) == count and (seed > 5 or sequence == see(FewShot(), seed))
        assert set(learned(sequence)) <= set(RECORD.facts.words)
        order = [segment.kind for segment in sequence.segments if segment.kind == Kind.PIXELS or segment.learn]
        assert order == [Kind.PIXELS, Kind.TEXT] * count, "an image, then its answer"
    assert set(seen) == set(range(9)) and min(seen.values()) >= 3


def test_only_the_last_answer_is_learned_where_that_is_said() -> None:
    for seed in range(20):
        sequence = see(FewShot(3, 3, learn_examples=False), seed)
        both = see(FewShot(3, 3), seed)
        assert kinds(sequence, Kind.PIXELS) == 4 and learned(sequence) == learned(both)[-1:]
        assert [i for s in sequence.segments for i in s.ids] == [i for s in both.segments for i in s.ids]


def test_examples_that_have_no_room_are_left_out_the_first_ones_first() -> None:
    whole = see(FewShot(8, 8))
    for limit in (whole.length - 1, whole.length // 2):
        cut = see(FewShot(8, 8), most=limit)
        count = kinds(cut, Kind.PIXELS)
        assert cut.length <= limit and 1 <= count < 9 and cut.full_length == whole.length
        assert learned(cut) == learned(whole)[-count:]
    with pytest.raises(
        ValueError, match=r"few_shot/train/.*/1 takes \d+ positions without an example, and there are 9 at most"
    ):
        see(FewShot(8, 8), most=9)


def test_records_of_users_with_fewer_questions_and_what_lacks() -> None:
    plain = Record("mine/0", questions=(Question("One?", "1"), Question("Two?", "2")))
    assert {len(learned(see(FewShot(2, 8), seed, plain))) for seed in range(9)} == {2}
    with pytest.raises(ValueError, match="mine/1 has no questions"):
        see(FewShot(), record=Record("mine/1"))
    image = np.zeros((8, 8, 3), np.uint8)
    for seed in range(9):
        about_one = see(FewShot(0, 1), seed, Record("mine/2", image=image, questions=plain.questions))
        assert about_one.segments[0].kind != about_one.segments[1].kind and kinds(about_one, Kind.PIXELS) == 1, "it is shown"
    whole = see(FewShot(1, 1), 0, Record("mine/2", image=image, questions=plain.questions))
    cut = see(FewShot(1, 1), 0, Record("mine/2", image=image, questions=plain.questions), whole.length - 1)
    assert kinds(cut, Kind.PIXELS) == 1 and len(learned(cut)) == 1, "the image stays where an example has no room"
    mixed = (Question("One?", "1", parts=(0, "One?")), Question("Two?", "2"))
    with pytest.raises(ValueError, match="mine/3 has questions with an image of their own and others without"):
        see(FewShot(), record=Record("mine/3", image=image, questions=mixed))
    with pytest.raises(ValueError, match="min_examples is at most max_examples, not 3 and 2"):
        FewShot(3, 2)
