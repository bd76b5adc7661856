"""The world of edits: an instruction has one reading, held-out pairs are shown where they should be, the judge tells both."""

from dataclasses import replace

import numpy as np
import pytest

from unimm.data.worlds.edits import EditsWorld
from unimm.data.worlds.edits_judge import judge_edit
from unimm.data.worlds.edits_language import write_instructions
from unimm.data.worlds.edits_scenes import COMPOSING, KINDS, EditedScene, make_edit
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, Scene, find_place, render
from unimm.data.worlds.shapes_language import describe, fits, parse_caption

EDITS = [make_edit(kind, np.random.default_rng(number)) for kind in KINDS for number in range(8)]


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    return {(item.colour, item.form) for item in scene.objects}


@pytest.mark.parametrize("edited", EDITS, ids=lambda edited: edited.edit.kind)
def test_one_thing_changes_and_has_one_name(edited: EditedScene) -> None:
    source, target, edit = edited.source, edited.target, edited.edit
    assert set(source.objects) - set(target.objects) == ({edit.before} if edit.before else set())
    assert set(target.objects) - set(source.objects) == ({edit.after} if edit.after else set())
    assert not (pairs_of(source) | pairs_of(target)) & set(HELD_OUT_PAIRS)
    if edit.before:
        assert [item for item in source.objects if fits(item, edit.look)] == [edit.before]
    if edit.after and edit.place:
        assert find_place(edit.after) == edit.place
    for text in write_instructions(edit, np.random.default_rng(0)):
        assert "{" not in text.text
        named = parse_caption(text.text)
        assert edit.before is None or edit.look in named or edit.kind in ("resize", "recolour")


@pytest.mark.parametrize("edited", EDITS, ids=lambda edited: edited.edit.kind)
def test_the_judge_tells_what_is_made_and_what_is_kept(edited: EditedScene) -> None:
    made = judge_edit(render(edited.target), edited)
    assert made.made and made.preserved and not made.reason
    untouched = judge_edit(render(edited.source), edited)
    assert not untouched.made and untouched.preserved
    empty = judge_edit(render(Scene(())), edited)
    assert empty.made == (edited.edit.kind == "remove") and empty.preserved == (not edited.rest)
    if edited.rest:
        lost = replace(edited.target, objects=tuple(item for item in edited.target.objects if item != edited.rest[0]))
        verdict = judge_edit(render(lost), edited)
        assert verdict.made and not verdict.preserved and "1 lost" in verdict.reason


def test_records_are_the_same_every_time_and_differ() -> None:
    world, again = EditsWorld(num_records=12), EditsWorld(num_records=1000)
    assert [world[index].facts for index in range(12)] == [again[index].facts for index in range(12)]
    assert [world[index].edits[0].category for index in range(6)] == list(KINDS)
    assert len({world[index].facts.source for index in range(12)}) == 12
    assert world[3].facts != EditsWorld("test", 12)[3].facts and world[3].facts != EditsWorld(seed=1)[3].facts
    record = world[0]
    assert record.num_images == len(record.images) == 2 and record.key == f"edits/train/{'+'.join(KINDS)}/0"
    assert np.array_equal(np.asarray(record.images[1].image), render(record.facts.target))
    assert {text.language for text in record.edits[0].instructions} == {"en", "zh"}


def test_nothing_changes_where_all_is_kept_or_the_object_is_not_there() -> None:
    world = EditsWorld(num_records=60, kinds=["keep"])
    assert {bool(world[index].facts.edit.asks) for index in range(60)} == {False, True}
    for index in range(60):
        record, facts = world[index], world[index].facts
        assert facts.target == facts.source and record.num_images == len(record.images) == 1
        assert record.edits[0].source == record.edits[0].target == 0
        if facts.edit.asks:
            assert any(facts.edit.look) and not any(fits(item, facts.edit.look) for item in facts.source.objects)
        assert all("{" not in text.text for text in record.edits[0].instructions)
        untouched, empty = judge_edit(record.image, facts), judge_edit(render(Scene(())), facts)
        assert untouched.made and untouched.preserved and not empty.made and not empty.preserved
        one_more = judge_edit(render(make_edit("add", np.random.default_rng(index)).target), facts)
        assert not one_more.preserved and not one_more.made


def test_the_held_out_split_shows_a_new_pair_afterwards() -> None:
    world = EditsWorld("held_out", num_records=9)
    for index in range(9):
        facts = world[index].facts
        assert facts.edit.kind == COMPOSING[index % 3]
        assert len(pairs_of(facts.target) & set(HELD_OUT_PAIRS)) == 1 and not pairs_of(facts.source) & set(HELD_OUT_PAIRS)
        assert describe(facts.edit.after)[1:] in HELD_OUT_PAIRS


def test_mistakes_end_in_one_sentence() -> None:
    for words, told in [
        ({"split": "zebra"}, "unknown split"),
        ({"kinds": ["zebra"]}, "kinds of edits in the split 'train' are recolour"),
        ({"split": "held_out", "kinds": ["move"]}, "are recolour, add, replace"),
        ({"split": "held_out", "kinds": ["keep"]}, "are recolour, add, replace, not"),
    ]:
        with pytest.raises(ValueError, match=told):
            EditsWorld(**words)
    with pytest.raises(IndexError, match=r"outside 0\.\.4"):
        EditsWorld(num_records=5)[5]
