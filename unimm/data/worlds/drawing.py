"""Drawing scores for the world of shapes: prompts with requirements, and the judge of a drawing.

The six categories and the rule for positions are GenEval's (Ghosh et al. 2023); the detector is the checker. Since a
prompt of this world describes the whole picture, an object too many is wrong here, where GenEval lets it pass except
in counting. Prompts use the words and frames that training prompts use, English and Chinese in turn.

| category | example |
|---|---|
| single_object | a circle; a small circle |
| two_objects | a circle and a square |
| counting | three circles; two green squares |
| colours | a red circle |
| position | a red circle to the left of a blue cross |
| colour_attribution | a red circle and a blue cross |
| held_out | colours, counting, position and colour_attribution, with a (colour, form) pair never trained on |
"""

from dataclasses import dataclass

import numpy as np

from unimm.data.records import Text
from unimm.data.worlds.checker import UNCLEAR, read_objects
from unimm.data.worlds.scenes import (
    FORMS,
    HELD_OUT_PAIRS,
    RELATIONS,
    SIZES,
    TRAINING_PAIRS,
    Shape,
    choose,
    make_generator,
    shuffle,
)
from unimm.data.worlds.shapes_language import LANGUAGES, Appearance, Group, fits, write_list, write_relation
from unimm.data.worlds.shapes_prompts import frame_prompt

CATEGORIES = ("single_object", "two_objects", "counting", "colours", "position", "colour_attribution")
"""What the mean drawing score is taken over."""

HELD_OUT = "held_out"
"""The seventh category, reported beside the mean."""

HELD_OUT_TASKS = ("colours", "counting", "position", "colour_attribution")

POSITION_THRESHOLD = 0.1
"""GenEval: boxes count as apart on an axis beyond this part of the sum of their widths."""

POSITION_DIRECTION = 0.5
"""GenEval: the part of the remaining offset, normalised to length 1, that must point along the axis."""


@dataclass(frozen=True)
class Requirement:
    """What a drawing must show: exactly these groups, the first in `relation` to the second where there is one."""

    category: str
    groups: tuple[Group, ...]
    relation: str | None = None


@dataclass(frozen=True)
class DrawingTask:
    """A prompt and what its drawing must show."""

    prompt: Text
    requirement: Requirement


@dataclass(frozen=True)
class Verdict:
    """Whether a drawing is correct, in one sentence why, and the objects that the checker found."""

    correct: bool
    reason: str
    found: tuple[Shape, ...]


def make_drawing_task(category: str, index: int, seed: int = 0) -> DrawingTask:
    """Task `index` of a category (one of CATEGORIES, or HELD_OUT); even ones are English, odd ones Chinese.

    Raises ValueError for an unknown category.
    """
    every = (*CATEGORIES, HELD_OUT)
    if category not in every:
        raise ValueError(f"unknown drawing category {category!r}: choose one of {', '.join(every)}")
    rng = make_generator(seed, "test", index * len(every) + every.index(category), "drawing")
    language = LANGUAGES[index % len(LANGUAGES)]
    requirement = choose_requirement(category, rng)
    if requirement.relation:
        a, b = (group.look for group in requirement.groups)
        words = write_relation(a, requirement.relation, b, language, rng)
    else:
        words = write_list(list(requirement.groups), language, rng)
    return DrawingTask(Text(frame_prompt(words, language, rng), language), requirement)


def make_drawing_tasks(num_each: int, seed: int = 0, held_out: bool = True) -> list[DrawingTask]:
    """`num_each` tasks of each of the six categories, and as many of the held-out one if asked for."""
    categories = (*CATEGORIES, HELD_OUT) if held_out else CATEGORIES
    return [make_drawing_task(category, index, seed) for category in categories for index in range(num_each)]


def choose_requirement(category: str, rng: np.random.Generator) -> Requirement:
    """What one task of a category asks for."""
    task, first = category, choose(rng, TRAINING_PAIRS)
    if category == HELD_OUT:
        task, first = choose(rng, HELD_OUT_TASKS), choose(rng, HELD_OUT_PAIRS)
    colour, form = first
    if task == "single_object":
        return Requirement(category, (Group(1, (choose(rng, (None, *SIZES)), None, form)),))
    if task == "two_objects":
        a, b = shuffle(rng, FORMS)[:2]
        return Requirement(category, (Group(1, (None, None, a)), Group(1, (None, None, b))))
    if task == "counting":
        named = category == HELD_OUT or rng.random() < 0.5
        return Requirement(category, (Group(choose(rng, (2, 3, 4)), (None, colour if named else None, form)),))
    if task == "colours":
        return Requirement(category, (Group(1, (None, colour, form)),))
    others = [pair for pair in TRAINING_PAIRS if pair[0] != colour and pair[1] != form]
    looks: list[Appearance] = [(None, colour, form), (None, *choose(rng, others))]
    groups = tuple(Group(1, look) for look in shuffle(rng, looks))
    return Requirement(category, groups, choose(rng, RELATIONS) if task == "position" else None)


def relation_holds(a: Shape, relation: str, b: Shape) -> bool:
    """GenEval's rule: whether a is left of, right of, above or below b. A diagonal neighbour can be both."""
    offset = np.array([a.x - b.x, a.y - b.y], dtype=np.float64)
    slack = POSITION_THRESHOLD * 2 * (a.radius + b.radius)
    offset = np.sign(offset) * np.maximum(np.abs(offset) - slack, 0)
    length = float(np.linalg.norm(offset))
    if length == 0:
        return False
    dx, dy = offset / length
    along = {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation]
    return bool(along > POSITION_DIRECTION)


def judge(image: np.ndarray, requirement: Requirement) -> Verdict:
    """Reads a drawing, (64, 64, 3) uint8, and compares it with what was asked for."""
    found = tuple(read_objects(image))
    problem = find_problem(found, requirement)
    return Verdict(problem is None, problem or "as asked", found)


def find_problem(found: tuple[Shape, ...], requirement: Requirement) -> str | None:
    """The first thing wrong with the objects found, in words, or None."""
    for item in found:
        if item.form == UNCLEAR:
            return f"something {item.colour} at ({item.x}, {item.y}) is no clear shape"
    members = [[item for item in found if fits(item, group.look)] for group in requirement.groups]
    for group, fitting in zip(requirement.groups, members, strict=True):
        if len(fitting) != group.count:
            return f"{len(fitting)} of {name_look(group.look)}, not {group.count}"
    wanted = sum(group.count for group in requirement.groups)
    if len(found) != wanted:
        return f"{len(found)} objects, not {wanted}"
    if requirement.relation and not relation_holds(members[0][0], requirement.relation, members[1][0]):
        first, second = (name_look(group.look) for group in requirement.groups[:2])
        return f"{first} is not {requirement.relation} of {second}"
    return None


def name_look(look: Appearance) -> str:
    """The words of a look for a reason: "small red circle"."""
    return " ".join(word for word in look if word)
