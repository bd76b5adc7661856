"""Clips of moving shapes: what is asked can be read off the frames, and off no frame alone; files of them are read again."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from unimm.data.readers.llava import LlavaJson
from unimm.data.records import Record, Video
from unimm.data.video.choosing import VideoFormat, choose_times
from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.clip_scenes import DIRECTIONS, KINDS, ClipFacts, make_clip
from unimm.data.worlds.clips import ClipsWorld, write_clips
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, find_place
from unimm.data.worlds.shapes_language import PLACE_WORDS

MANY = 400


def facts_of(kind: str, count: int = MANY, num_frames: int = 8, split: str = "train") -> list[ClipFacts]:
    return [make_clip(0, split, index, num_frames, kind) for index in range(count)]


@pytest.mark.parametrize("num_frames", [8, 11, 16])
def test_the_facts_are_what_the_frames_show(num_frames: int) -> None:
    """Read off the scenes, in every kind."""
    for facts in facts_of("direction", 60, num_frames):
        first, last = (scene.objects[-1] for scene in (facts.frames[0], facts.frames[-1]))
        assert (np.sign(last.x - first.x), np.sign(last.y - first.y)) == DIRECTIONS[str(facts.answer)]
    for facts in facts_of("count", 60, num_frames):
        assert sum(not scene.objects for scene in facts.frames) == facts.answer
    for facts in facts_of("speed", 60, num_frames):
        first, last = facts.frames[0].objects, facts.frames[-1].objects
        moved = [abs(a.x - b.x) + abs(a.y - b.y) for a, b in zip(first, last, strict=True)]
        assert moved[int(facts.answer)] >= 1.9 * moved[1 - int(facts.answer)]
    for facts in facts_of("order", 60, num_frames):
        states = _states(facts)
        changes = [one != other for one, other in pairwise(states)]
        assert sum(changes) == 2
        before, after = (states[changes.index(True) + step] for step in (0, 1))
        assert before[1 - int(facts.answer)] == after[1 - int(facts.answer)]
    for facts in facts_of("passing", 60, num_frames):
        along = [scene.objects[0].x + scene.objects[0].y if scene.objects else None for scene in facts.frames]
        length = num_frames // 4
        assert sum(place is not None for place in along) == int(facts.answer) * length
        slots = [along[start : start + length] for start in range(0, 4 * length, length)]
        ways = {np.sign(slot[-1] - slot[0]) for slot in slots if slot[0] is not None and slot[-1] is not None}
        assert len(ways) == 1 and 0 not in ways  # all pass the same way


def _states(facts: ClipFacts) -> list[tuple]:
    """What of each of two shapes is shown in each frame, by its form."""
    forms = [shape.form for shape in facts.shapes]
    return [tuple(next((one for one in scene.objects if one.form == form), None) for form in forms) for scene in facts.frames]


def test_steps_on_the_way_are_true() -> None:
    """Where, when and which way: read off the frames again."""
    checked = Counter()
    for record in map(ClipsWorld(num_records=100).__getitem__, range(100)):
        facts: ClipFacts = record.facts
        for question in (one for one in record.questions if one.language == "en"):
            named = [shape for shape in facts.shapes if f"{shape.colour} {shape.form}" in question.text]
            seen = [next((o for o in scene.objects if named and o.form == named[0].form), None) for scene in facts.frames]
            if question.category == "place":
                there = seen[0] if "first" in question.text else seen[-1]
                assert there is not None and question.answer == PLACE_WORDS["en"][find_place(there)]
            elif question.category == "time":
                number = next(number for number, one in enumerate(seen) if one != seen[0])
                assert question.answer == VideoFormat().write_time((number + 0.5) / 2).removesuffix(": ")
            elif question.category == "way" and facts.kind == "speed":
                moved = [one for one in seen if one is not None]
                way = (np.sign(moved[-1].x - moved[0].x), np.sign(moved[-1].y - moved[0].y))
                assert DIRECTIONS[question.answer] == way
            checked[question.category] += 1
    assert min(checked[name] for name in (*KINDS, "place", "time", "way", "look")) >= 20


def test_a_drawn_frame_is_read_by_the_checker() -> None:
    facts = make_clip(0, "test", 3, 8, "speed")
    for number in (0, 4, 7):
        found, there = read_objects(facts.render(number)), facts.frames[number].objects
        assert sorted((one.colour, one.form) for one in found) == sorted((one.colour, one.form) for one in there)


@pytest.mark.parametrize("kind", KINDS)
def test_the_middle_frame_does_not_tell(kind: str) -> None:
    """What it shows is as it is, whatever the answer: places are alike, and so is what is there."""
    by_answer: dict[str | int, list[tuple[float, ...]]] = {}
    for facts in facts_of(kind):
        middle = facts.frames[4].objects
        # Of what is asked about: where it is, how large it is, whether it is there.
        told = tuple(value for one in middle[-1:] for value in (one.x, one.y, one.size == "large"))
        by_answer.setdefault(facts.answer, []).append((len(middle), *(told or (0, 0, 0))))
    numbers = np.array([value for values in by_answer.values() for value in values], dtype=float)
    for values in by_answer.values():
        own = np.array(values, dtype=float)
        # Four standard errors: with so many answers one in a few hundred draws would lie outside, and this one does not.
        slack = 4 * numbers.std(0) / np.sqrt(len(own)) + 1e-9
        assert (np.abs(own.mean(0) - numbers.mean(0)) <= slack).all()


def test_directions_have_the_same_places_in_the_middle_frame_exactly() -> None:
    """Only the direction is other, all else equal: its one frame is the same picture."""
    for facts in facts_of("direction", 50):
        shape = facts.frames[4].objects[-1]
        assert (shape.x, shape.y) == (facts.shapes[0].x, facts.shapes[0].y)
    counts = Counter(str(facts.answer) for facts in facts_of("direction"))
    assert len(counts) == 8 and min(counts.values()) > MANY / 8 * 0.6


def test_no_pair_is_shown_that_is_held_out() -> None:
    for split in ("train", "test"):
        for kind in KINDS:
            for facts in facts_of(kind, 100, split=split):
                shown = {(one.colour, one.form) for scene in facts.frames for one in scene.objects}
                assert not shown & set(HELD_OUT_PAIRS)


def test_records_are_the_same_each_time_and_differ_from_each_other() -> None:
    world, again = ClipsWorld(num_records=10), ClipsWorld(num_records=10)
    for index in range(10):
        one, other = world[index], again[index]
        assert (one.key, one.questions, one.captions, one.facts) == (other.key, other.questions, other.captions, other.facts)
    assert [world[index].facts.kind for index in range(5)] == list(KINDS)
    assert world[0].facts != ClipsWorld("test")[0].facts != ClipsWorld("test", seed=1)[0].facts
    assert (
        len({language for record in map(world.__getitem__, range(5)) for q in record.questions for language in [q.language]})
        == 2
    )
    for wrong in ({"split": "held_out"}, {"kinds": ["dance"]}, {"num_frames": 17}, {"num_frames": 7}):
        with pytest.raises(ValueError):
            ClipsWorld(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(IndexError):
        world[10]


def test_a_record_is_a_video_of_its_frames() -> None:
    record = ClipsWorld(num_records=5, num_frames=16)[0]
    video = record.image
    assert isinstance(video, Video) and (video.seconds, video.num_frames) == (8.0, 16)
    times = choose_times(video, VideoFormat(num_frames=16))
    assert times == tuple(number / 2 + 0.25 for number in range(16))  # as those of a file of it
    drawn = list(video.frames(times))
    assert all(np.array_equal(frame, record.facts.render(number)) for number, frame in enumerate(drawn))
    assert choose_times(video, VideoFormat(num_frames=1)) == (4.0,)  # the middle frame


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_clips_as_files_are_read_with_their_questions(suffix: str, tmp_path: Path) -> None:
    if suffix == "mp4":
        pytest.importorskip("av", reason='PyAV is not installed: pip install "unimm[video]"')
    world = ClipsWorld("test", 3)
    dataset = LlavaJson(write_clips(tmp_path, world, suffix))
    for index in range(3):
        record, drawn = dataset[index], world[index]
        assert _asked(record) == [(q.text, q.answer) for q in drawn.questions if q.language == "en"]
        assert isinstance(record.image, Video) and record.is_dialogue
        assert record.image.seconds == pytest.approx(4.0, abs=0.05)
        assert choose_times(record.image, VideoFormat()) == pytest.approx(choose_times(drawn.image, VideoFormat()))
        (frame,) = record.image.frames([2.01])
        assert np.abs(frame.astype(int) - drawn.facts.render(4)).mean() < 6  # the codec's


def _asked(record: Record) -> list[tuple[str, str]]:
    return [(question.text, question.answer) for question in record.questions]
