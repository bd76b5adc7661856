"""What is asked for in conversations about drawings, and the scenes that fit it: who is asked draws, and often says something.

    draw     a picture of so many objects
    ask      a picture, and a question about it that only the picture answers: in the same turn, or in a second one
    tell     say first what will be drawn, all of it, then draw that
    story    three turns, each with a picture: a scene, and two changes of it one after the other; then perhaps a question
    check    draw, look at it, and draw again where it is not what was asked for

Nothing asked for is vague in what a judge compares: colours and forms, in some also sizes, never places. Objects of a scene all
differ in colour and form, so that each has a name. Pairs of colour and form that the shapes world holds out are shown by the
split "held_out" alone, where a scene begins with one.
"""

from dataclasses import dataclass, replace

import numpy as np

from unimm.data.worlds.comparisons_scenes import CHANGES, Edit, draw_scene
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, SIZES, TRAINING_PAIRS, Scene, Shape, choose, shuffle
from unimm.data.worlds.shapes_language import Appearance, describe, fits

KINDS = ("draw", "ask", "tell", "story", "check")
QUESTIONS = ("count", "existence", "size")
EDITS = ("added", "removed", "colour", "form", "size")
NUM_EDITS = 2
"""Of a story: with its first picture three of them."""


@dataclass(frozen=True)
class Asked:
    """A question about a picture: how many fit a look, whether one does, or the size of the one that does."""

    category: str
    look: Appearance


@dataclass(frozen=True)
class Exchange:
    """A turn of the user's with its answer.

    edit: what changes in the picture of the turn before; None: it is asked for a new picture, or for none.
    picture: the number of the scene that the answer ends with; None: it has no picture. looks: all that it is asked to show.
    wrong: the number of the scene that is drawn first and is not what was asked for.
    asked: the question; before: whether words say what is drawn before it is drawn.
    """

    picture: int | None = None
    looks: tuple[Appearance, ...] = ()
    edit: Edit | None = None
    wrong: int | None = None
    asked: Asked | None = None
    before: bool = False
    checks: bool = False


@dataclass(frozen=True)
class Story:
    """A conversation: its kind, its scenes, and its turns."""

    kind: str
    scenes: tuple[Scene, ...]
    exchanges: tuple[Exchange, ...]


def make_story(kind: str, rng: np.random.Generator, held_out: bool = False) -> Story:
    """A conversation of one of KINDS. ValueError: there is no such kind."""
    if kind not in KINDS:
        raise ValueError(f"Conversations are {', '.join(KINDS)}, not {kind!r}.")
    scene = _scene(rng, choose(rng, (1, 2, 2, 3)), held_out)
    looks = _looks(scene, rng)
    first = Exchange(0, looks)
    if kind == "draw":
        return Story(kind, (scene,), (first,))
    if kind == "ask":
        asked = choose_question(scene, rng)
        if rng.random() < 0.5:
            return Story(kind, (scene,), (replace(first, asked=asked),))
        return Story(kind, (scene,), (first, Exchange(asked=asked)))
    if kind == "tell":
        return Story(kind, (scene,), (replace(first, before=True),))
    if kind == "story":
        return _tell_story(scene, rng)
    first = replace(first, checks=True)
    if rng.random() < 0.4:
        return Story(kind, (scene,), (first,))
    return Story(kind, (_wrong(scene, looks, rng), scene), (replace(first, picture=1, wrong=0),))


def choose_question(scene: Scene, rng: np.random.Generator) -> Asked:
    """A question about a scene. Whether there is something is answered by yes as often as by no."""
    category = choose(rng, QUESTIONS)
    item = choose(rng, scene.objects)
    if category == "size":
        return Asked(category, describe(item, "colour"))
    if category == "count":
        look = choose(rng, ((None, None, item.form), (None, item.colour, None), (None, None, None)))
        return Asked(category, look)
    if rng.random() < 0.5:
        return Asked(category, describe(item, "colour"))
    absent = [(None, *pair) for pair in TRAINING_PAIRS if not any(fits(one, (None, *pair)) for one in scene.objects)]
    near = [look for look in absent if (look[1] == item.colour) != (look[2] == item.form)]
    return Asked(category, choose(rng, near if rng.random() < 0.5 else absent))


def answer_to(asked: Asked, objects: tuple[Shape, ...] | list[Shape]) -> str | None:
    """The answer from what a picture shows: a number, "yes" or "no", or a size; None where the question has none."""
    fitting = [item for item in objects if fits(item, asked.look)]
    if asked.category == "count":
        return str(len(fitting))
    if asked.category == "existence":
        return "yes" if fitting else "no"
    return fitting[0].size if len(fitting) == 1 else None


def meets(objects: list[Shape] | tuple[Shape, ...], looks: tuple[Appearance, ...]) -> bool:
    """Whether a picture shows what all these looks say, an object each, and nothing else."""
    left = list(objects)
    # The most exact look first: a vaguer one could take the only object that it fits.
    for look in sorted(looks, key=lambda look: -sum(word is not None for word in look)):
        found = next((item for item in left if fits(item, look)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _scene(rng: np.random.Generator, count: int, held_out: bool) -> Scene:
    pairs = shuffle(rng, TRAINING_PAIRS)[:count]
    if held_out:
        pairs[0] = choose(rng, HELD_OUT_PAIRS)
    return draw_scene([(choose(rng, tuple(SIZES)), *pair) for pair in shuffle(rng, pairs)], rng)


def _looks(scene: Scene, rng: np.random.Generator) -> tuple[Appearance, ...]:
    """What is said of the objects of a scene: colour and form, sometimes the size, too."""
    detail = "full" if rng.random() < 0.25 else "colour"
    return tuple(describe(item, detail) for item in scene.objects)


def _wrong(scene: Scene, looks: tuple[Appearance, ...], rng: np.random.Generator) -> Scene:
    """The scene with a change that the looks tell; tries until there is one."""
    while True:
        changed, _ = _edit(scene, choose(rng, ("colour", "colour", "form", "removed", "added")), rng)
        if changed is not None and changed.objects and not meets(changed.objects, looks):
            return changed


def _edit(scene: Scene, kind: str, rng: np.random.Generator) -> tuple[Scene | None, Edit | None]:
    """The scene after one change, and that; None where there is no such change."""
    number = int(rng.random() * len(scene.objects))
    before = None if kind == "added" else scene.objects[number]
    others = scene.objects if before is None else (*scene.objects[:number], *scene.objects[number + 1 :])
    after = CHANGES[kind](before, others, rng)
    if (after is None) != (kind == "removed"):
        return None, None
    # In its place: what is told of the objects stays in their order.
    put = () if after is None else (after,)
    objects = (*others, *put) if before is None else (*scene.objects[:number], *put, *scene.objects[number + 1 :])
    return replace(scene, objects=objects), Edit(kind, before, after)


def _tell_story(scene: Scene, rng: np.random.Generator) -> Story:
    looks = tuple(describe(item, "colour") for item in scene.objects)
    scenes, exchanges = [scene], [Exchange(0, looks)]
    while len(scenes) <= NUM_EDITS:
        last = scenes[-1]
        kinds = [kind for kind in EDITS if not (kind == "added" and len(last.objects) > 2)]
        kinds = [kind for kind in kinds if not (kind == "removed" and len(last.objects) < 2)]
        changed, edit = _edit(last, choose(rng, kinds), rng)
        if changed is None or edit is None:
            continue
        looks = _after(edit, looks, last)
        scenes.append(changed)
        exchanges.append(Exchange(len(scenes) - 1, looks, edit))
    if rng.random() < 0.4:
        exchanges.append(Exchange(asked=choose_question(scenes[-1], rng)))
    return Story("story", tuple(scenes), tuple(exchanges))


def _after(edit: Edit, looks: tuple[Appearance, ...], scene: Scene) -> tuple[Appearance, ...]:
    """What was said of all objects so far, after one more change: a size is known once it was asked for."""
    if edit.before is None:
        assert edit.after is not None
        return (*looks, describe(edit.after, "colour"))
    place = scene.objects.index(edit.before)
    if edit.after is None:
        return (*looks[:place], *looks[place + 1 :])
    size = edit.after.size if edit.kind == "size" else looks[place][0]
    return (*looks[:place], (size, edit.after.colour, edit.after.form), *looks[place + 1 :])
