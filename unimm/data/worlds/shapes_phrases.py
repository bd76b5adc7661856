"""What may be located among drawn shapes: phrases in two languages, with the boxes of all that they fit.

    the red circle; red circles; the small cross         by look: one, several, or none that is there
    the largest shape; the leftmost shape                where one is so beyond doubt
    the shape left of the blue square                    all of which that is clear

A box is the smallest that holds the pixels of which a shape covers at least half; those pixels are its mask.
"""

from functools import cache

import numpy as np

from unimm.data.records import Phrase, PixelBox
from unimm.data.worlds.scenes import (
    RELATIONS,
    SIDE,
    TRAINING_PAIRS,
    Scene,
    Shape,
    choose,
    find_relation,
    make_mask,
    shuffle,
)
from unimm.data.worlds.shapes_language import LANGUAGES, RELATION_WORDS, Appearance, describe, fits
from unimm.data.worlds.shapes_questions import find_name, mask_look, name_look, name_reference

MARGIN = 4
"""Pixels that tell the leftmost of several centres, and the topmost, from the next one."""

EXTREMES = {
    "en": {
        "large": ("the largest shape", "the biggest shape"),
        "small": ("the smallest shape",),
        "left": ("the leftmost shape", "the shape furthest to the left"),
        "right": ("the rightmost shape", "the shape furthest to the right"),
        "above": ("the topmost shape", "the highest shape"),
        "below": ("the lowest shape",),
    },
    "zh": {
        "large": ("最大的图形",),
        "small": ("最小的图形",),
        "left": ("最左边的图形",),
        "right": ("最右边的图形",),
        "above": ("最上面的图形",),
        "below": ("最下面的图形",),
    },
}

SHARES = {"look": 4, "absent": 2, "extreme": 1, "relation": 1}
"""How many phrases of a kind are made of a scene, where it allows as many."""


@cache
def _tight(size: str, form: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a shape's mask, from its own upper left corner."""
    ys, xs = np.nonzero(make_mask(size, form) >= 0.5)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def box_of(item: Shape) -> PixelBox:
    """The box of a shape in pixels."""
    left, top = item.x - int(item.radius), item.y - int(item.radius)
    x1, y1, x2, y2 = _tight(item.size, item.form)
    return left + x1, top + y1, left + x2, top + y2


def mask_of(item: Shape) -> np.ndarray:
    """The pixels of a shape, (64, 64) bool."""
    mask, reach = np.zeros((SIDE, SIDE), dtype=bool), int(item.radius)
    window = make_mask(item.size, item.form) >= 0.5
    mask[item.y - reach : item.y + reach + 1, item.x - reach : item.x + reach + 1] = window
    return mask


def objects_of(phrase: Phrase, scene: Scene) -> list[Shape]:
    """The shapes that a phrase of `write_phrases` fits."""
    return [item for item in scene.objects if box_of(item) in phrase.boxes]


def write_phrases(scene: Scene, rng: np.random.Generator, languages: tuple[str, ...] = LANGUAGES) -> tuple[Phrase, ...]:
    """Up to as many phrases as `SHARES` says, each once, languages in turn."""
    first, found = int(rng.random() * 2), []
    makers = {"look": _by_look, "absent": _absent, "extreme": _extreme, "relation": _by_relation}
    for kind, count in SHARES.items():
        for _ in range(count):
            phrase = makers[kind](scene, languages[(first + len(found)) % len(languages)], rng)
            if phrase is not None:
                found.append(phrase)
    return tuple({phrase.text: phrase for phrase in found}.values())


def _phrase(text: str, objects: list[Shape], language: str, category: str) -> Phrase:
    """Of one object it may be asked what is in its box, whatever the phrase says of it: by its whole look."""
    region = name_look(describe(objects[0]), language) if len(objects) == 1 else ""
    boxes = tuple(sorted(box_of(item) for item in objects))
    return Phrase(text, boxes, language, region, category)


def name_all(look: Appearance, count: int, language: str, rng: np.random.Generator) -> str:
    """All objects of a look, mostly in the number that there are: whoever asks need not know it."""
    is_plural = rng.random() < (0.7 if count > 1 else 0.15)
    if language == "zh":
        return ("所有" if is_plural else "") + name_look(look, language)
    article = choose(rng, ("all ", "the ", "")) if is_plural else choose(rng, ("the ", "the ", ""))
    return article + name_look(look, language, is_plural)


def _by_look(scene: Scene, language: str, rng: np.random.Generator) -> Phrase | None:
    if not scene.objects:
        return None
    masks = ((False, True, True), (False, True, True), (True, True, True), (False, False, True), (False, True, False))
    look = mask_look(choose(rng, scene.objects), choose(rng, (*masks, (True, False, True))))
    objects = [item for item in scene.objects if fits(item, look)]
    category = "one" if len(objects) == 1 else "several"
    return _phrase(name_all(look, len(objects), language, rng), objects, language, category)


def _absent(scene: Scene, language: str, rng: np.random.Generator) -> Phrase | None:
    """Half of what is not there differs in one attribute only from what is."""
    pairs = list(TRAINING_PAIRS)
    if scene.objects and rng.random() < 0.5:
        near = choose(rng, scene.objects)
        pairs = [pair for pair in pairs if (pair[0] == near.colour) != (pair[1] == near.form)]
    mask = choose(rng, ((False, True, True), (False, True, True), (True, True, True), (False, False, True)))
    looks = [mask_look(Shape(choose(rng, ("small", "large")), colour, form, 0, 0), mask) for colour, form in pairs]
    absent = [look for look in looks if not any(fits(item, look) for item in scene.objects)]
    if not absent:
        return None
    return _phrase(name_all(choose(rng, absent), 0, language, rng), [], language, "none")


def _extreme(scene: Scene, language: str, rng: np.random.Generator) -> Phrase | None:
    """The only large or small one, or the one that lies furthest to a side."""
    if len(scene.objects) < 2:
        return None
    for kind in shuffle(rng, tuple(EXTREMES[language])):
        if kind in ("large", "small"):
            first = [item for item in scene.objects if item.size == kind]
        else:
            axis, sign = ("x" if kind in ("left", "right") else "y"), (1 if kind in ("left", "above") else -1)
            ordered = sorted(scene.objects, key=lambda item, axis=axis, sign=sign: sign * getattr(item, axis))
            gap = abs(getattr(ordered[0], axis) - getattr(ordered[1], axis))
            first = ordered[:1] if gap >= MARGIN else []
        if len(first) == 1:
            return _phrase(choose(rng, EXTREMES[language][kind]), first, language, "extreme")
    return None


def _by_relation(scene: Scene, language: str, rng: np.random.Generator) -> Phrase | None:
    """What lies on one side of an object that its name tells from all others, where that is clear of every other one."""
    for item in shuffle(rng, scene.objects):
        name = find_name(item, scene.objects)
        others = [other for other in scene.objects if other != item]
        relations = [find_relation(other, item) for other in others]
        if name is None or not others or None in relations:
            continue
        relation = choose(rng, RELATIONS) if rng.random() < 0.2 else choose(rng, relations)
        objects = [other for other, one in zip(others, relations, strict=True) if one == relation]
        words, named = choose(rng, RELATION_WORDS[language][str(relation)]), name_reference(name, language)
        text = f"the shape {words} {named}" if language == "en" else f"{named}{words}的图形"
        return _phrase(text, objects, language, "relation" if objects else "none")
    return None
