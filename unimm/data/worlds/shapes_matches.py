"""Does a picture of drawn shapes show what a prompt asks for? Questions for a model that is to judge drawings, its own too."""

from collections import Counter
from dataclasses import replace

import numpy as np

from unimm.data.records import SHOWS, Question
from unimm.data.worlds.scenes import SIZES, TRAINING_PAIRS, Scene, Shape, choose, choose_weighted, find_relation
from unimm.data.worlds.shapes_language import describe
from unimm.data.worlds.shapes_prompts import PromptStyle, write_prompt

MATCH_DETAILS = {"colour": 0.6, "form": 0.2, "full": 0.1, "hue": 0.1}
"""What prompts say of which it is asked whether a picture shows it."""


def ask_match(scene: Scene, language: str, rng: np.random.Generator) -> Question | None:
    """Does the picture show what this prompt asks for? Where it does not, the prompt is of a scene that differs in one thing.

    The question and its answer are in English, whatever the language of the prompt: who asks need not know that.
    """
    if not scene.objects:
        return None
    detail = tuple(MATCH_DETAILS)[choose_weighted(rng, tuple(MATCH_DETAILS.values()))]
    answer = choose(rng, ("yes", "no"))
    told, related = (scene, 0.5) if answer == "yes" else differ(scene, detail, rng)
    prompt = write_prompt(told, language, rng, PromptStyle({detail: 1.0}, related))
    return Question(SHOWS.format(prompt), answer, "match", language)


def differ(scene: Scene, detail: str, rng: np.random.Generator) -> tuple[Scene, float]:
    """A scene that differs in one thing that `detail` names, and how often a prompt has to say how its two objects lie.

    It tries until something differs: were such questions left out, "yes" would be the likelier answer to some prompts.
    """
    if len(scene.objects) == 2 and rng.random() < 0.4 and (exchanged := exchange(scene, detail)):
        return exchanged, 1.0
    while True:
        if changed := change(scene, detail, rng):
            return changed, 0.0


def exchange(scene: Scene, detail: str) -> Scene | None:
    """The scene with its two objects in each other's place; None where that says nothing else."""
    a, b = scene.objects
    if describe(a, detail) == describe(b, detail) or not find_relation(a, b):
        return None
    return replace(scene, objects=(replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)))


def change(scene: Scene, detail: str, rng: np.random.Generator) -> Scene | None:
    """A scene that differs in one thing that `detail` names: one object looks otherwise, is there twice or not at all, or two
    exchange their colours. None where this try came to nothing.
    """
    objects = list(scene.objects)
    index = int(rng.random() * len(objects))
    item = objects[index]
    kind = choose(rng, ("look", "look", "number", "colours" if len(objects) > 1 else "look"))
    if kind == "look":
        looks = [(size, *pair) for size in SIZES for pair in TRAINING_PAIRS]
        others = [replace(item, size=size, colour=colour, form=form) for size, colour, form in looks]
        objects[index] = choose(rng, [other for other in others if count_differences(item, other) == 1])
    elif kind == "number":
        more = len(objects) == 1 or (len(objects) < 4 and rng.random() < 0.5)
        objects[index : index + 1] = [item, item] if more else []
    else:
        other = (index + 1) % len(objects)
        exchanged = replace(item, colour=objects[other].colour), replace(objects[other], colour=item.colour)
        if any((new.colour, new.form) not in TRAINING_PAIRS for new in exchanged):
            return None
        objects[index], objects[other] = exchanged
    said, seen = (Counter(describe(one, detail) for one in all_objects) for all_objects in (objects, scene.objects))
    return None if said == seen else replace(scene, objects=tuple(objects))


def count_differences(a: Shape, b: Shape) -> int:
    """In how many of size, colour and form two objects differ."""
    return sum(one != other for one, other in zip(describe(a), describe(b), strict=True))
