"""Scenes made to be compared: the answer is chosen first, and two or three scenes are made for it.

    more, fewer   which scene holds most or fewest of a form, a colour or a pair; of two they may be equally many
    which         which scene holds the one thing that is named; the others hold things that are like it
    same          whether all scenes are the same, or one is changed in one thing
    differs       what is changed in the second of two, if anything
    odd           which of three is changed
    single        what the shapes world asks, of one of the scenes: who compares has to find each first

A change is one of an object's colour, form, size or place, or one object more or less. Scenes that are changed show no two
objects of one colour and form, so that whatever is changed has a name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from unimm.data.worlds.scenes import (
    ALIKE_WEIGHTS,
    SIDE,
    SIZES,
    TRAINING_PAIRS,
    Scene,
    Shape,
    choose,
    choose_looks,
    find_free_centres,
    place,
    shuffle,
)
from unimm.data.worlds.shapes_language import Appearance, fits

SUBJECTS = {
    2: ("more", "fewer", "which", "same", "differs", "single"),
    3: ("more", "fewer", "which", "same", "odd", "single"),
}
"""What may be asked about so many pictures."""

SINGLE = "single"
"""The subject that needs one of the pictures alone: for training."""

COUNTED = ("more", "fewer")

ORDINALS = ("first", "second", "third")

EQUAL = "equal"

EDITS = ("colour", "form", "size", "added", "removed", "moved")

NOTHING = "nothing"
"""The change of scenes that are the same."""

MOST_COUNTED, MOST_OTHERS, MOST_OBJECTS = 3, 2, 4

FAR = 18
"""Pixels that an object is moved by, at least."""


@dataclass(frozen=True)
class Edit:
    """A change: its kind, one of EDITS, and the object before and after it; None where it is not there."""

    kind: str
    before: Shape | None
    after: Shape | None


@dataclass(frozen=True)
class Comparison:
    """Scenes with what is asked about them, and the answer: a place ("first"), "equal", "yes", "no", or a kind of change.

    look: of what is counted or looked for. edit: the change, where one scene is a changed one.
    """

    scenes: tuple[Scene, ...]
    subject: str
    answer: str
    look: Appearance = (None, None, None)
    edit: Edit | None = None


def make_comparison(subject: str, pictures: int, rng: np.random.Generator, most_objects: int = MOST_OBJECTS) -> Comparison:
    """Scenes of at most so many objects for one subject. Each answer to it is as likely as any other."""
    places = ORDINALS[:pictures]
    if subject == SINGLE:
        numbers = [choose(rng, range(1, most_objects + 1)) for _ in places]
        scenes = tuple(draw_scene(choose_looks(rng, number, False, ALIKE_WEIGHTS), rng) for number in numbers)
        return Comparison(scenes, subject, "")
    if subject in COUNTED:
        return _counted(subject, choose(rng, answers_to(subject, pictures)), pictures, rng, most_objects)
    if subject == "which":
        answer, look = choose(rng, places), (None, *choose(rng, TRAINING_PAIRS))
        scenes = tuple(_scene_with(look, int(place == answer), rng, most_objects) for place in places)
        return Comparison(scenes, subject, answer, look)
    kind = choose(rng, (*EDITS, NOTHING)) if subject == "differs" else choose(rng, EDITS)
    answer = kind
    if subject == "same" and (answer := choose(rng, ("yes", "no"))) == "yes":
        kind = NOTHING
    place_of_edit = 1 if pictures == 2 else int(rng.random() * pictures)
    if subject == "odd":
        answer = places[place_of_edit]
    scene, changed, edit = _edited(kind, rng, most_objects)
    scenes = tuple(changed if number == place_of_edit else scene for number in range(pictures))
    return Comparison(scenes, subject, answer, edit=edit)


def answers_to(subject: str, pictures: int) -> tuple[str, ...]:
    """All answers to a question for a place among so many pictures."""
    places = ORDINALS[:pictures]
    return (*places, EQUAL) if subject in COUNTED and pictures == 2 else places


def find_winner(counts: tuple[int, ...], subject: str) -> str | None:
    """Where there are most, or fewest: a place; of two "equal" where both have as many, at least one. None: nothing clear."""
    best = max(counts) if subject == "more" else min(counts)
    winners = [number for number, count in enumerate(counts) if count == best]
    if len(winners) == 1:
        return ORDINALS[winners[0]]
    return EQUAL if len(counts) == 2 and best else None


def count_fitting(scenes: tuple[Scene, ...], look: Appearance) -> tuple[int, ...]:
    """How many objects of each scene have the attributes that a look names."""
    return tuple(sum(fits(item, look) for item in scene.objects) for scene in scenes)


COUNTS = {
    (subject, pictures, answer): tuple(
        counts for counts in product(range(MOST_COUNTED + 1), repeat=pictures) if find_winner(counts, subject) == answer
    )
    for pictures in SUBJECTS
    for subject in COUNTED
    for answer in answers_to(subject, pictures)
}
"""How many there may be in each picture, by the answer that this gives."""


def _counted(subject: str, answer: str, pictures: int, rng: np.random.Generator, most_objects: int) -> Comparison:
    kind = choose(rng, ("form", "form", "colour", "pair"))
    colour, form = choose(rng, TRAINING_PAIRS)
    look = (None, None if kind == "form" else colour, None if kind == "colour" else form)
    counts = choose(rng, [counts for counts in COUNTS[subject, pictures, answer] if max(counts) <= most_objects])
    return Comparison(tuple(_scene_with(look, count, rng, most_objects) for count in counts), subject, answer, look)


def _scene_with(look: Appearance, count: int, rng: np.random.Generator, most_objects: int) -> Scene:
    """A scene with so many objects that fit a look, and up to two that do not; half of these are like it in one attribute."""
    _, colour, form = look

    def num_shared(pair: tuple[str, str]) -> int:
        return (pair[0] == colour) + (pair[1] == form)

    named = sum(word is not None for word in look)
    fitting = [pair for pair in TRAINING_PAIRS if num_shared(pair) == named]
    others = [pair for pair in TRAINING_PAIRS if num_shared(pair) < named]
    near = [pair for pair in others if num_shared(pair)] or others
    num_others = choose(rng, range(min(MOST_OTHERS, most_objects - count) + 1))
    pairs = [choose(rng, fitting) for _ in range(count)]
    pairs += [choose(rng, near if rng.random() < 0.5 else others) for _ in range(num_others)]
    return draw_scene([(choose(rng, tuple(SIZES)), *pair) for pair in shuffle(rng, pairs)], rng)


def draw_scene(looks: list[tuple[str, str, str]], rng: np.random.Generator) -> Scene:
    """Objects of these looks (size, colour, form) anywhere, on a dark ground as the shapes world has it."""
    objects = place(rng, looks)
    tone = 12 + 20 * rng.random()
    red, green, blue = (round(tone + 8 * rng.random()) for _ in range(3))
    return Scene(objects, (red, green, blue))


# -- changes ---------------------------------------------------------------------------------------------------------------


def _edited(kind: str, rng: np.random.Generator, most_objects: int) -> tuple[Scene, Scene, Edit | None]:
    """A scene of one object to so many, the same with one change, and that change; tries until there is room for it."""
    while True:
        most = most_objects - (kind == "added")
        pairs = shuffle(rng, TRAINING_PAIRS)[: choose(rng, range(1, most + 1))]
        scene = draw_scene([(choose(rng, tuple(SIZES)), *pair) for pair in pairs], rng)
        if kind == NOTHING:
            return scene, scene, None
        number = int(rng.random() * len(scene.objects))
        before = None if kind == "added" else scene.objects[number]
        others = scene.objects if before is None else (*scene.objects[:number], *scene.objects[number + 1 :])
        after = CHANGES[kind](before, others, rng)
        if (after is None) != (kind == "removed"):
            continue
        changed = others if after is None else (*others, after)
        return scene, replace(scene, objects=tuple(changed)), Edit(kind, before, after)


def _fresh_pairs(others: tuple[Shape, ...]) -> list[tuple[str, str]]:
    taken = {(item.colour, item.form) for item in others}
    return [pair for pair in TRAINING_PAIRS if pair not in taken]


def _recolour(item: Shape, others: tuple[Shape, ...], rng: np.random.Generator) -> Shape | None:
    colours = [colour for colour, form in _fresh_pairs(others) if form == item.form and colour != item.colour]
    return replace(item, colour=choose(rng, colours)) if colours else None


def _reform(item: Shape, others: tuple[Shape, ...], rng: np.random.Generator) -> Shape | None:
    forms = [form for colour, form in _fresh_pairs(others) if colour == item.colour and form != item.form]
    return replace(item, form=choose(rng, forms)) if forms else None


def _resize(item: Shape, others: tuple[Shape, ...], rng: np.random.Generator) -> Shape | None:
    size = "small" if item.size == "large" else "large"
    has_room = item.y * SIDE + item.x in find_free_centres(list(others), SIZES[size])
    return replace(item, size=size) if has_room else None


def _add(item: None, others: tuple[Shape, ...], rng: np.random.Generator) -> Shape | None:
    size, (colour, form) = choose(rng, tuple(SIZES)), choose(rng, _fresh_pairs(others))
    free = find_free_centres(list(others), SIZES[size])
    return _put(Shape(size, colour, form, 0, 0), free, rng)


def _move(item: Shape, others: tuple[Shape, ...], rng: np.random.Generator) -> Shape | None:
    free = find_free_centres(list(others), SIZES[item.size])
    far = np.hypot(free % SIDE - item.x, free // SIDE - item.y) >= FAR
    return _put(item, free[far], rng)


def _put(item: Shape, free: np.ndarray, rng: np.random.Generator) -> Shape | None:
    if not len(free):
        return None
    y, x = divmod(int(choose(rng, free)), SIDE)
    return replace(item, x=x, y=y)


CHANGES: dict[str, Callable[..., Shape | None]] = {
    "colour": _recolour,
    "form": _reform,
    "size": _resize,
    "added": _add,
    "removed": lambda item, others, rng: None,
    "moved": _move,
}
"""What becomes of an object, given the others; None: it is gone, or there is no such change."""
