"""Scenes with one thing to change: what is changed, how, and the scene afterwards.

    recolour   one object gets another colour, where it is
    move       one object goes to another third of the picture
    add        an object more, in a third of the picture that is named
    remove     an object less
    resize     a small object becomes a large one, or a large one a small one
    replace    one object becomes one of another form and colour, where it is
    keep       nothing changes: it is asked to keep all, or what is to be removed, recoloured, moved... is not there

The object is named by as much of its look as tells it from all others, so an instruction has one reading. Pairs of colour and
form that the shapes world holds out are in no scene before an edit; after one only where `held_out` asks for it, so it says
whether a model composes. The kinds are those that InstructPix2Pix (arXiv 2211.09800) and MagicBrush (arXiv 2306.10012) count;
"keep" is beside them: to copy is the first lesson of an editor, and an object that is not there is the commonest mistake.
"""

from dataclasses import dataclass, replace

import numpy as np

from unimm.data.worlds.comparisons_scenes import draw_scene
from unimm.data.worlds.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    PLACES,
    SIDE,
    SIZES,
    TRAINING_PAIRS,
    Scene,
    Shape,
    choose,
    choose_weighted,
    find_free_centres,
    find_place,
)
from unimm.data.worlds.shapes_language import DETAILS, Appearance, describe, fits

KINDS = ("recolour", "move", "add", "remove", "resize", "replace")

KEEP = "keep"
"""The kind of edits after which all is as it was."""

COMPOSING = ("recolour", "add", "replace")
"""Kinds after which a pair may be there that was never seen."""

ALL_PLACES = tuple(name for row in PLACES for name in row)

NUM_OBJECTS_WEIGHTS = (0.0, 0.25, 0.35, 0.25, 0.15)
"""How often a scene has 1, 2, 3, 4 objects before an edit."""

MOST_OBJECTS = 4

HOW_OFTEN_ALL_IS_KEPT = 0.5
"""Of the edits after which all is as it was, the share whose instruction says so."""


@dataclass(frozen=True)
class Edit:
    """What changes: its kind, the object before and after, None where there is none, and what the instruction says of both.

    look: of the object before, by which it is named; new_look: of what is asked for. place: where it goes, or is added.
    asks: with the kind "keep", which of KINDS is asked for of an object that is not there; empty: all is to be kept.
    """

    kind: str
    before: Shape | None
    after: Shape | None
    look: Appearance = (None, None, None)
    new_look: Appearance = (None, None, None)
    place: str = ""
    asks: str = ""


@dataclass(frozen=True)
class EditedScene:
    """A scene, what to change in it, and the scene afterwards."""

    source: Scene
    edit: Edit
    target: Scene

    @property
    def rest(self) -> tuple[Shape, ...]:
        """The objects that stay as they are."""
        return tuple(item for item in self.source.objects if item != self.edit.before)


def make_edit(kind: str, rng: np.random.Generator, held_out: bool = False) -> EditedScene:
    """A scene with one edit of a kind; tries until there is room for it. held_out: a pair that is held out is there afterwards.

    Raises ValueError for an unknown kind, or one that shows no new pair where one is asked for."""
    if kind not in (*KINDS, KEEP):
        raise ValueError(f"unknown kind of edit {kind!r}: choose some of {', '.join((*KINDS, KEEP))}")
    if held_out and kind not in COMPOSING:
        raise ValueError(f"an edit of the kind {kind!r} shows no new pair: choose some of {', '.join(COMPOSING)}")
    if kind == KEEP:
        return _keep(rng)
    while True:
        most = choose_weighted(rng, NUM_OBJECTS_WEIGHTS)
        number = min(most, MOST_OBJECTS - 1) if kind == "add" else most
        looks = [(choose(rng, tuple(SIZES)), *choose(rng, TRAINING_PAIRS)) for _ in range(number)]
        scene = draw_scene(looks, rng)
        edit = _add(scene, rng, held_out) if kind == "add" else _change(kind, scene, rng, held_out)
        if edit is not None:
            others = tuple(item for item in scene.objects if item != edit.before)
            added = () if edit.after is None else (edit.after,)
            return EditedScene(scene, edit, replace(scene, objects=(*others, *added)))


def _keep(rng: np.random.Generator) -> EditedScene:
    """A scene that stays as it is. Half of the instructions are about an object of another scene, whose look none here has."""
    scene = make_edit("remove", rng).source
    if rng.random() < HOW_OFTEN_ALL_IS_KEPT:
        return EditedScene(scene, Edit(KEEP, None, None), scene)
    while True:
        kind = choose(rng, tuple(kind for kind in KINDS if kind != "add"))
        other = make_edit(kind, rng).edit
        if not any(fits(item, other.look) for item in scene.objects):
            absent = Edit(KEEP, None, None, other.look, other.new_look, other.place, asks=kind)
            return EditedScene(scene, absent, scene)


def _add(scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit | None:
    size, place = choose(rng, tuple(SIZES)), choose(rng, ALL_PLACES)
    colour, form = choose(rng, HELD_OUT_PAIRS if held_out else TRAINING_PAIRS)
    after = _put(Shape(size, colour, form, 0, 0), place, scene.objects, rng)
    return None if after is None else Edit("add", None, after, new_look=describe(after), place=place)


def _change(kind: str, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit | None:
    """An edit of one of the objects, if it can be named and there is room."""
    before = choose(rng, scene.objects)
    looks = [look for detail in DETAILS if _names_one(look := describe(before, detail), scene)]
    if not looks:
        return None
    look = choose(rng, looks)
    others = tuple(item for item in scene.objects if item != before)
    allowed = HELD_OUT_PAIRS if held_out else TRAINING_PAIRS
    if kind == "remove":
        return Edit(kind, before, None, look)
    if kind == "recolour":
        colours = [colour for colour in COLOURS if colour != before.colour and (colour, before.form) in allowed]
        after = replace(before, colour=choose(rng, colours)) if colours else None
        return after and Edit(kind, before, after, look, describe(after, "hue"))
    if kind == "replace":
        pairs = [pair for pair in allowed if pair[1] != before.form]
        colour, form = choose(rng, pairs)
        after = replace(before, colour=colour, form=form)
        return Edit(kind, before, after, look, describe(after, "colour"))
    if kind == "resize":
        after = replace(before, size="small" if before.size == "large" else "large")
        has_room = after.y * SIDE + after.x in find_free_centres(list(others), after.radius)
        return Edit(kind, before, after, look, (after.size, None, None)) if has_room else None
    place = choose(rng, [name for name in ALL_PLACES if name != find_place(before)])
    after = _put(before, place, others, rng)
    return after and Edit(kind, before, after, look, place=place)


def _names_one(look: Appearance, scene: Scene) -> bool:
    return sum(fits(item, look) for item in scene.objects) == 1


def _put(item: Shape, place: str, others: tuple[Shape, ...], rng: np.random.Generator) -> Shape | None:
    """The object in a third of the picture, where it touches nothing; well inside, so that a pixel off is no other third."""
    free = find_free_centres(list(others), item.radius)
    inside = [spot for spot in free if _is_well_inside(int(spot), place)]
    if not inside:
        return None
    y, x = divmod(int(choose(rng, inside)), SIDE)
    return replace(item, x=x, y=y)


MARGIN = 2
"""Pixels from a centre to the edge of its third, at least."""


def _is_well_inside(spot: int, place: str) -> bool:
    y, x = divmod(spot, SIDE)
    corners = [(y + dy, x + dx) for dy in (-MARGIN, MARGIN) for dx in (-MARGIN, MARGIN)]
    return all(PLACES[min(3 * row // SIDE, 2)][min(3 * column // SIDE, 2)] == place for row, column in corners)
