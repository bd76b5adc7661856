"""Scenes of which a part is to be painted anew: the picture, the mask, the prompt of the whole picture, and the judge.

| kind | the mask is | the prompt names |
|---|---|---|
| replace | over one object | the others, and another in its place |
| add | over a free place | all objects, and a new one |
| remove | over one object | the others |

A mask is a box that has room for a large object and keeps clear of all others. It is met where the checker reads inside it just
what was asked for; a smudge counts as an object. What is outside has to be equal to the byte.
"""

from dataclasses import dataclass, replace

import numpy as np

from unimm.data.records import Text
from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.drawing import name_look
from unimm.data.worlds.scenes import (
    SIDE,
    SIZES,
    TRAINING_PAIRS,
    Scene,
    Shape,
    choose,
    find_free_centres,
    make_generator,
    make_scene,
    render,
)
from unimm.data.worlds.shapes_language import LANGUAGES, Appearance, describe, fits, group, write_list
from unimm.data.worlds.shapes_prompts import frame_prompt

KINDS = ("replace", "add", "remove")

MARGIN = 2
"""Pixels of the mask around the box of a large object."""

FIRST = 10_000_000
"""Of the generators: those of drawing tasks are before it."""


@dataclass(frozen=True, eq=False)
class PaintingTask:
    """A part of a scene that is to be painted.

    image: (64, 64, 3) uint8. mask: (64, 64) bool. wanted: what is to be inside of the mask; None: nothing.
    """

    kind: str
    scene: Scene
    image: np.ndarray
    mask: np.ndarray
    prompt: Text
    wanted: Appearance | None


@dataclass(frozen=True)
class PaintingVerdict:
    """is_met: the checker reads inside of the mask what was asked for. is_kept: all outside is equal, to the byte."""

    is_met: bool
    is_kept: bool
    reason: str
    found: tuple[Shape, ...]


def make_painting_task(index: int, seed: int = 0) -> PaintingTask:
    """Task `index`: the kinds in turn, and both languages."""
    kind, language = KINDS[index % len(KINDS)], LANGUAGES[index // len(KINDS) % len(LANGUAGES)]
    rng = make_generator(seed, "test", FIRST + index, "drawing")
    scene, part = _scene_with_part(kind, seed, index, rng)
    others = tuple(item for item in scene.objects if (item.x, item.y) != (part.x, part.y))
    looks = {(item.colour, item.form) for item in scene.objects}
    colour, form = choose(rng, [pair for pair in TRAINING_PAIRS if pair not in looks])
    painted = () if kind == "remove" else (replace(part, colour=colour, form=form),)
    shown = (*others, *painted)
    words = write_list(group(shown, [describe(item, "colour") for item in shown]), language, rng)
    wanted = None if kind == "remove" else (None, colour, form)
    prompt = Text(frame_prompt(words, language, rng), language)
    return PaintingTask(kind, scene, render(scene), _box(part), prompt, wanted)


def judge_painting(image: np.ndarray, task: PaintingTask) -> PaintingVerdict:
    """Reads what was made of a task's image, (64, 64, 3) uint8."""
    is_kept = bool(np.array_equal(image[~task.mask], task.image[~task.mask]))
    found = tuple(read_objects(image))
    inside = [item for item in found if task.mask[item.y, item.x]]
    wanted = 0 if task.wanted is None else 1
    if len(inside) != wanted:
        return PaintingVerdict(False, is_kept, f"{len(inside)} objects inside of the mask, not {wanted}", found)
    if task.wanted is not None and not fits(inside[0], task.wanted):
        reason = f"inside of the mask is a {name_look(describe(inside[0], 'colour'))}, not a {name_look(task.wanted)}"
        return PaintingVerdict(False, is_kept, reason, found)
    return PaintingVerdict(True, is_kept, "as asked" if is_kept else "pixels outside of the mask changed", found)


def _scene_with_part(kind: str, seed: int, index: int, rng: np.random.Generator) -> tuple[Scene, Shape]:
    """A scene, and the object of it that is masked, or a place where a large one has room."""
    largest = max(SIZES.values())
    for attempt in range(1000):
        scene = make_scene(seed, "test", FIRST + 1000 * index + attempt, (1, 2) if kind == "add" else (2, 3), ())
        if kind == "add":
            free = find_free_centres(list(scene.objects), largest + MARGIN)
            if len(free):
                y, x = divmod(int(choose(rng, free)), SIDE)
                return scene, Shape("large", "white", "circle", x, y)
        for item in scene.objects if kind != "add" else ():
            others = [other for other in scene.objects if other is not item]
            if item.y * SIDE + item.x in find_free_centres(others, largest + MARGIN):
                return scene, item
    raise AssertionError("no scene has room for a mask")


def _box(part: Shape) -> np.ndarray:
    """The mask (64, 64) bool around a place."""
    reach, mask = int(max(SIZES.values())) + MARGIN, np.zeros((SIDE, SIDE), dtype=bool)
    mask[part.y - reach : part.y + reach + 1, part.x - reach : part.x + reach + 1] = True
    return mask
