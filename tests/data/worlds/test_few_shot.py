"""The world of few-shot episodes: without examples there is nothing to know, with them there is; no word is in two splits."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from unimm.data.worlds.few_shot import CONCEPTS, Episode, FewShotWorld
from unimm.data.worlds.made_up_words import HELD_OUT_WORDS, RepeatedWordsWorld, choose_word
from unimm.data.worlds.scenes import HELD_OUT_PAIRS
from unimm.data.worlds.shapes_language import WORDS

NUM_RECORDS = 1500


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    world = FewShotWorld("test", NUM_RECORDS, num_examples=2)
    return [world[index].facts for index in range(NUM_RECORDS)]


def test_no_word_is_in_two_splits_and_training_has_too_many_to_know_by_heart() -> None:
    said = {
        split: {word for index in range(count) for word in FewShotWorld(split, count, num_examples=0)[index].facts.words}
        for split, count in (("train", 500), ("validation", 60), ("test", 60))
    }
    assert not said["train"] & (said["validation"] | said["test"]) and not said["validation"] & said["test"]
    held = [word for splits in HELD_OUT_WORDS.values() for words in splits.values() for word in words]
    assert len(set(held)) == len(held) and said["validation"] | said["test"] <= {*held}
    assert len(said["train"]) > 700
    rng = np.random.default_rng(0)
    made = {choose_word(language, "train", rng) for language in ("en", "zh") for _ in range(2000)}
    assert not made & {*held}, "and none that training could make is held out"


def test_a_query_without_examples_is_a_coin_s_throw(episodes: list[Episode]) -> None:
    """Neither the word, nor its place in the question, nor what the picture shows says which is right."""
    by_what: dict[tuple, Counter] = defaultdict(Counter)
    for told in episodes:
        (item,) = told.scenes[-1].objects
        is_named_first = told.question.index(told.answers[-1]) < told.question.index(
            next(word for word in told.words if word != told.answers[-1])
        )
        is_alphabetical = told.answers[-1] == min(told.words)
        for what in (told.concept, told.language, item.colour, item.form, (item.colour, item.form), item.size):
            by_what["place", what][is_named_first] += 1
            by_what["word", what][is_alphabetical] += 1
        by_what["whole", ""][is_named_first] += 1
    for key, counts in by_what.items():
        total = sum(counts.values())
        assert max(counts.values()) / total < 0.5 + 1.9 / total**0.5, (key, counts)
    each = Counter(told.answers[-1] for told in episodes)
    assert all(times < 2.5 * NUM_RECORDS / 2 / len(HELD_OUT_WORDS["zh"]["test"]) for times in each.values())


def test_no_answer_follows_from_those_before_it(episodes: list[Episode]) -> None:
    same = Counter(told.answers[-1] == told.answers[-2] for told in episodes)
    assert abs(same[True] / NUM_RECORDS - 0.5) < 0.05


def test_examples_tell() -> None:
    """Who knows the concept and compares with eight examples is right but where all of them show one word; and then, too."""
    world = FewShotWorld("validation", 120)
    kinds: Counter = Counter()
    for told in (world[index].facts for index in range(120)):
        kinds[told.concept] += 1
        *shown, query = [(scene.objects[0].colour, scene.objects[0].form) for scene in told.scenes]
        for pair, answer in zip((*shown, query), told.answers, strict=True):
            value = told.values[told.words.index(answer)]
            assert all(wanted in (None, has) for wanted, has in zip(value, pair, strict=True))
            other = told.values[told.words.index(next(word for word in told.words if word != answer))]
            assert not all(wanted in (None, has) for wanted, has in zip(other, pair, strict=True)), "both words fit"
            assert pair not in HELD_OUT_PAIRS
        assert all(len(scene.objects) == 1 for scene in told.scenes)
        assert told.words[0][0] != told.words[1][0]
    assert all(kinds[concept] > 20 for concept in CONCEPTS)


def test_records_depend_on_their_index_alone_and_are_dialogues_with_an_image_a_turn() -> None:
    world, again, other = FewShotWorld("test", 20), FewShotWorld("test", 20), FewShotWorld("test", 20, seed=1)
    record = world[7]
    assert record.facts == again[7].facts != other[7].facts and record.is_dialogue
    assert record.num_images == len(record.images) == len(record.questions) == 9
    assert [one.parts for one in record.questions] == [(number, record.facts.question) for number in range(9)]
    assert tuple(one.answer for one in record.questions) == record.facts.answers
    assert all(np.array_equal(*both) for both in zip(*([i.image for i in w[7].images] for w in (world, again)), strict=True))


def test_episodes_in_words_name_what_others_show() -> None:
    shown, told = FewShotWorld("test", 30), FewShotWorld("test", 30, told=True)
    for index in range(30):
        one, other = shown[index], told[index]
        assert other.images == () and other.num_images == 0 and other.facts == one.facts
        for question, asked, scene in zip(one.questions, other.questions, one.facts.scenes, strict=True):
            (item,) = scene.objects
            assert asked.answer == question.answer and asked.text.endswith(question.text) and not asked.parts
            assert WORDS[one.facts.language][item.colour][0] in asked.text
            assert WORDS[one.facts.language][item.form][0] in asked.text


def test_questions_may_name_no_word_or_be_left_out() -> None:
    for index in range(40):
        record = FewShotWorld("test", 40, told=True, asking=["open", "bare"])[index]
        assert not any(word in question.text for question in record.questions for word in record.facts.words)
    asked = {FewShotWorld("test", 40, asking=["open"])[index].facts.question for index in range(40)}
    assert "What is this?" in asked and "" not in asked
    with pytest.raises(ValueError, match="a picture needs a question"):
        FewShotWorld(asking=["bare"])


def test_words_are_said_again_and_those_of_the_test_never_in_training() -> None:
    held = {word for splits in HELD_OUT_WORDS.values() for words in splits.values() for word in words}
    world = RepeatedWordsWorld(num_records=200)
    lengths: Counter = Counter()
    for index in range(200):
        (question,) = world[index].questions
        assert question.text.endswith(question.answer) and world[index].questions == (question,) and not world[index].images
        if question.language == "en":
            words = question.answer.split()
            lengths[len(words)] += 1
            assert not held & {*words}
    assert min(lengths) == 4 and max(lengths) == 20
    with pytest.raises(ValueError, match="max_words is at least"):
        RepeatedWordsWorld(min_words=5, max_words=4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"split": "held_out"}, "choose one of train"), ({"concepts": ["size"]}, "concepts are a list of some of colour"),
     ({"languages": "en"}, "languages are a list"), ({"num_examples": -1}, "num_examples")],
)  # fmt: skip
def test_what_is_not_there_is_said(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FewShotWorld(**settings)
