"""The world of comparisons: answers that the scenes prove, each as often as the others, and nothing to gain by guessing."""

from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest

from unimm.data.records import Question, Record
from unimm.data.worlds.checker import read_objects, scene_is_exact
from unimm.data.worlds.comparisons import SPLITS, ComparisonsWorld
from unimm.data.worlds.comparisons_language import ANSWERS, DIFFERENCES, TEMPLATES
from unimm.data.worlds.comparisons_scenes import EDITS, FAR, NOTHING, SINGLE, SUBJECTS, Comparison, find_winner
from unimm.data.worlds.scenes import COLOURS, FORMS, HELD_OUT_PAIRS, Scene
from unimm.data.worlds.shapes_language import WORDS

NUM_RECORDS = 150
PLACES = ("first", "second", "third")


@pytest.fixture(scope="module", params=[2, 3])
def records(request: pytest.FixtureRequest) -> list[Record]:
    world = ComparisonsWorld("train", NUM_RECORDS, pictures=request.param)
    return [world[index] for index in range(NUM_RECORDS)]


def numbers(scenes: tuple[Scene, ...], text: str, language: str) -> list[int]:
    """How many objects of each scene have the colour and the form that a question names; read from its words."""
    colours = [colour for colour in COLOURS if WORDS[language][colour][0] in text]
    forms = [form for form in FORMS if WORDS[language][form][0] in text]
    return [
        sum(one.colour in (colours or COLOURS) and one.form in (forms or FORMS) for one in scene.objects) for scene in scenes
    ]


def answer_of(told: Comparison, asked: Question) -> str:
    """The answer that the scenes prove, found again from the words."""
    scenes, language = told.scenes, asked.language
    if asked.category in ("more", "fewer", "which"):
        counts = tuple(numbers(scenes, asked.text, language))
        winner = find_winner(counts, "fewer" if asked.category == "fewer" else "more")
        assert winner and (asked.category != "which" or sum(counts) == 1)
        return ANSWERS[language][winner]
    contents = [sorted(scene.objects) for scene in scenes]
    if asked.category == "same":
        return ANSWERS[language]["yes" if all(one == contents[0] for one in contents) else "no"]
    (odd,) = (place for place, one in zip(PLACES, contents, strict=False) if contents.count(one) == 1)
    return ANSWERS[language][odd]


def test_every_answer_is_proved_by_the_scenes(records: list[Record]) -> None:
    for record in records:
        told = record.facts
        assert record.num_images == len(told.scenes) == len(record.images)
        for asked in record.questions:
            if asked.category in (*EDITS, NOTHING):
                continue
            if asked.category == SINGLE:
                number = next(n for n, place in enumerate(PLACES) if ANSWERS[asked.language][place] in asked.text)
                if asked.answer.isdigit():
                    assert int(asked.answer) == numbers(told.scenes, asked.text, asked.language)[number], asked
                continue
            assert asked.answer == answer_of(told, asked), (asked, told)


def test_a_difference_is_one_change_and_named_by_what_was_there() -> None:
    for record in map(ComparisonsWorld(num_records=150, subjects=("differs",)).__getitem__, range(150)):
        told, (asked,) = record.facts, record.questions
        before, after = (set(scene.objects) for scene in told.scenes)
        gone, new = before - after, after - before
        assert asked.category == told.answer and told.scenes[0].background == told.scenes[1].background
        if told.edit is None:
            assert not gone and not new and asked.answer == DIFFERENCES[asked.language][NOTHING]
            continue
        assert (len(gone), len(new)) == {"added": (0, 1), "removed": (1, 0)}.get(told.answer, (1, 1))
        changed = told.edit.before or told.edit.after
        words = WORDS[asked.language]
        assert words[changed.colour][0] in asked.answer and words[changed.form][0] in asked.answer
        if told.answer in ("colour", "form", "size"):
            (one,), (other,) = gone, new
            differing = [name for name in ("colour", "form", "size") if getattr(one, name) != getattr(other, name)]
            assert differing == [told.answer] and (one.x, one.y) == (other.x, other.y)
            assert words[getattr(other, told.answer)][0] in asked.answer
        if told.answer == "moved":
            (one,), (other,) = gone, new
            assert np.hypot(one.x - other.x, one.y - other.y) >= FAR
        for scene in told.scenes:  # so that the name is of one object alone
            assert len({(item.colour, item.form) for item in scene.objects}) == len(scene.objects)
    assert {len(told) for told in DIFFERENCES.values()} == {len(EDITS) + 1}


@pytest.mark.parametrize("pictures", [2, 3])
def test_each_answer_is_as_likely_as_the_others_whatever_the_words(pictures: int) -> None:
    """By subject, and by each way to ask: the likeliest answer is not much likelier than chance."""
    world = ComparisonsWorld("test", 1000, pictures=pictures)
    by_words: dict[tuple, Counter] = defaultdict(Counter)
    for record in map(world.__getitem__, range(len(world))):
        for number, asked in enumerate(record.questions):
            if asked.category == SINGLE:
                continue
            subject = "differs" if asked.category in (*EDITS, NOTHING) else asked.category
            if subject == "differs" and number:
                continue  # what differs of two that may be the same: see below
            patterns = TEMPLATES[asked.language, pictures][subject]
            parts = [pattern.partition("{}") for pattern in patterns]
            way = next(
                n for n, (start, _, end) in enumerate(parts) if asked.text.startswith(start) and asked.text.endswith(end)
            )
            answer = asked.category if subject == "differs" else asked.answer
            by_words[subject, asked.language, way if subject == "same" else 0][answer] += 1
            by_words[subject, asked.language, f"turn {number > 0}"][answer] += 1
    assert {key[0] for key in by_words} == {*SUBJECTS[pictures]} - {SINGLE}
    for key, answers in by_words.items():
        total = sum(answers.values())
        most = answers.most_common(1)[0][1]
        assert most / total <= 1 / len(answers) + 2.6 / (4 * total) ** 0.5, (key, answers)


@pytest.mark.parametrize(("split", "pictures"), product(SPLITS, (2, 3)))
def test_records_depend_on_their_index_alone_and_splits_differ(split: str, pictures: int) -> None:
    world, again = (ComparisonsWorld(split, 40, pictures=pictures) for _ in range(2))
    for index in (39, 3):
        assert (world[index].facts, world[index].questions) == (again[index].facts, again[index].questions)
        assert all(
            np.array_equal(*both) for both in zip(*([i.image for i in w[index].images] for w in (world, again)), strict=True)
        )
    others = [ComparisonsWorld(name, 40, pictures=pictures)[39].facts for name in SPLITS if name != split]
    assert world[39].facts not in others and ComparisonsWorld(split, 40, 1, pictures)[39].facts != world[39].facts


def test_pictures_show_their_scenes_and_never_a_pair_that_is_held_out(records: list[Record]) -> None:
    for record in records:
        for scene in record.facts.scenes:
            assert not any((item.colour, item.form) in HELD_OUT_PAIRS for item in scene.objects)
    for record in records[:30]:
        for shown, scene in zip(record.images, record.facts.scenes, strict=True):
            assert scene_is_exact(read_objects(np.asarray(shown.image)), scene)


def test_what_is_not_there_is_said() -> None:
    for settings, told in (
        ({"split": "held_out"}, "choose one of train"),
        ({"pictures": 4}, "pictures is 2 or 3, not 4"),
        ({"subjects": ("odd",)}, "subjects of 2 pictures are more, fewer"),
        ({"num_questions": 0}, "num_questions"),
        ({"most_objects": 1}, "most_objects is a number from 2 to 4, not 1"),
    ):
        with pytest.raises(ValueError, match=told):
            ComparisonsWorld(**settings)
    with pytest.raises(IndexError, match=r"outside 0\.\.9"):
        ComparisonsWorld(num_records=10)[10]


def test_who_is_asked_whether_two_are_the_same_is_asked_what_differs() -> None:
    """Half of them do not differ, so that "nothing" is heard often enough."""
    world = ComparisonsWorld("train", 400, subjects=["same", "differs"])
    records = [record for record in world if record.facts.subject == "same"]
    counts = {"yes": 0, "no": 0}
    for record in records:
        first, second = record.questions
        assert (first.category, {first.language, second.language}) == ("same", {"en", "zh"})
        assert (second.category == NOTHING) == (record.facts.answer == "yes")
        counts[record.facts.answer] += 1
    assert min(counts.values()) > 0.35 * len(records)
    assert all(len(record.questions) == 1 for record in ComparisonsWorld("train", 20, subjects=["same"]))


def test_other_subjects_are_other_records() -> None:
    keys = {ComparisonsWorld(num_records=1, subjects=subjects)[0].key for subjects in (None, ["more"])}
    assert len(keys) == 2
