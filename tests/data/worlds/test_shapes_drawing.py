"""The judge of drawings: accepts what was asked for, rejects every change, and asks only for training pairs."""

from dataclasses import replace

import numpy as np
import pytest

from unimm.data.worlds.drawing import (
    CATEGORIES,
    HELD_OUT,
    DrawingTask,
    Requirement,
    judge,
    make_drawing_task,
    make_drawing_tasks,
    relation_holds,
)
from unimm.data.worlds.scenes import (
    COLOURS,
    FORMS,
    HELD_OUT_PAIRS,
    OPPOSITE,
    RELATIONS,
    SIZES,
    Scene,
    Shape,
    make_scene,
    place,
    render,
)
from unimm.data.worlds.shapes import ShapesWorld
from unimm.data.worlds.shapes_language import Group, parse_caption

EVERY = (*CATEGORIES, HELD_OUT)


def draw(task: DrawingTask, rng: np.random.Generator) -> Scene:
    """A scene that shows what a task asks for; what the prompt leaves open is drawn by chance."""
    looks = [
        (size or str(rng.choice(list(SIZES))), colour or str(rng.choice(list(COLOURS))), form or "circle")
        for group in task.requirement.groups
        for size, colour, form in [group.look] * group.count
    ]
    while True:
        objects = place(rng, looks)
        relation = task.requirement.relation
        if relation is None or relation_holds(objects[0], relation, objects[1]):
            return Scene(objects)


@pytest.mark.parametrize("category", EVERY)
def test_tasks_are_deterministic_bilingual_and_varied(category):
    tasks = [make_drawing_task(category, index) for index in range(60)]
    assert tasks[17] == make_drawing_task(category, 17)
    assert {task.prompt.language for task in tasks[::2]} == {"en"}
    assert {task.prompt.language for task in tasks[1::2]} == {"zh"}
    assert len({task.prompt.text for task in tasks}) > 15
    assert make_drawing_task(category, 0, seed=1).requirement.category == category


def test_tasks_come_category_by_category():
    tasks = make_drawing_tasks(3)
    assert [task.requirement.category for task in tasks] == [category for category in EVERY for _ in range(3)]
    assert len(make_drawing_tasks(3, held_out=False)) == 18
    with pytest.raises(ValueError, match="single_object"):
        make_drawing_task("colors", 0)


def test_the_prompt_says_what_the_requirement_wants():
    for task in make_drawing_tasks(40):
        wanted = [group.look for group in task.requirement.groups for _ in range(group.count)]
        assert sorted(map(str, parse_caption(task.prompt.text))) == sorted(map(str, wanted)), task


def test_held_out_pairs_are_asked_for_in_their_category_alone():
    for task in make_drawing_tasks(60):
        pairs = {group.look[1:] for group in task.requirement.groups}
        assert bool(pairs & set(HELD_OUT_PAIRS)) == (task.requirement.category == HELD_OUT)


@pytest.mark.parametrize("category", EVERY)
def test_the_judge_accepts_what_was_asked_for_and_rejects_changes(category):
    rng = np.random.default_rng(0)
    for index in range(30):
        task = make_drawing_task(category, index)
        scene = draw(task, rng)
        verdict = judge(render(scene), task.requirement)
        assert verdict.correct and len(verdict.found) == len(scene.objects), (task, verdict)
        for changed in change(task, scene):
            assert not judge(render(changed), task.requirement).correct, (task, changed)


def change(task: DrawingTask, scene: Scene) -> list[Scene]:
    """The scene with an object less, another form, another colour, another size, mirrored: as far as it was asked."""
    first, rest = scene.objects[0], scene.objects[1:]
    size, colour, _ = task.requirement.groups[0].look
    used = {item.form for item in scene.objects}
    other_form = next(form for form in FORMS if form not in used)
    changed = [rest, (replace(first, form=other_form), *rest)]
    if colour:
        changed.append((replace(first, colour=next(c for c in COLOURS if c != colour)), *rest))
    if size:
        # In the middle, where there is room to grow; only single objects are asked for by size.
        changed.append((replace(first, size=next(s for s in SIZES if s != size), x=30, y=30), *rest))
    if task.requirement.relation:
        changed.append(tuple(replace(item, x=63 - item.x, y=63 - item.y) for item in scene.objects))
    return [Scene(objects) for objects in changed]


def test_one_object_too_many_is_wrong():
    asked = Requirement("colours", (Group(1, (None, "red", "circle")),))
    circle = Shape("small", "red", "circle", 15, 15)
    assert judge(render(Scene((circle,))), asked).correct
    extra = judge(render(Scene((circle, Shape("small", "blue", "cross", 45, 45)))), asked)
    assert not extra.correct and extra.reason == "2 objects, not 1"


def test_swapped_colours_are_wrong():
    asked = Requirement("colour_attribution", (Group(1, (None, "red", "circle")), Group(1, (None, "blue", "cross"))))
    swapped = Scene((Shape("small", "blue", "circle", 15, 15), Shape("small", "red", "cross", 45, 45)))
    assert judge(render(swapped), asked).reason == "0 of red circle, not 1"


def test_relations_follow_geneval():
    b = Shape("small", "red", "circle", 30, 30)
    places = {"left": (10, 32), "right": (50, 27), "above": (31, 10), "below": (28, 50)}
    for relation in RELATIONS:
        x, y = places[relation]
        a = Shape("small", "blue", "circle", x, y)
        assert [other for other in RELATIONS if relation_holds(a, other, b)] == [relation]
        assert relation_holds(b, OPPOSITE[relation], a)
    diagonal = Shape("small", "blue", "circle", 12, 12)
    assert relation_holds(diagonal, "left", b) and relation_holds(diagonal, "above", b)


def test_the_judge_accepts_scenes_by_their_own_prompts_and_captions():
    for record in ShapesWorld("validation", 150):
        for text in record.captions + record.prompts:
            said = parse_caption(text.text)
            groups = tuple(Group(said.count(look), look) for look in dict.fromkeys(said))
            verdict = judge(np.asarray(record.image), Requirement("", groups))
            assert verdict.correct, (text, verdict)


def test_a_smudge_is_wrong():
    image = render(make_scene(0, "test", 0))
    image[:] = 20
    image[30:34, 10:50] = COLOURS["red"]
    verdict = judge(image, Requirement("colours", (Group(1, (None, "red", "circle")),)))
    assert not verdict.correct and "no clear shape" in verdict.reason
