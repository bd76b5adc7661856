"""Rewards that are checked, not learned: the judges of the built-in worlds, and answers compared with the expected ones.

    checker    whether a drawing of shapes shows what its prompt asks for (facts: `unimm.data.worlds.drawing.Requirement`)
    digit      whether a drawing is read as the digit that its prompt asks for (facts: the digit)
    caption    how well a caption names what a scene of shapes shows: F1 over its objects (facts: the scene)
    exact      whether an answer is the expected one, apart from case, width and punctuation (facts: the answer)

A drawing of shapes that shows a pair of colour and form which training never shows is judged by `checker` only where the prompt
asks for such a pair: else a model would learn, from drawings of its own, what it is later tested on.
"""

from collections import Counter

from unimm.data.worlds.drawing import HELD_OUT, Requirement, judge
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, Scene
from unimm.data.worlds.shapes_language import describe, parse_caption
from unimm.eval.tasks.answers import is_same_answer
from unimm.eval.tasks.digits import find_judge
from unimm.eval.tasks.shapes import at_side
from unimm.rewards.response import Response, need_answer, need_drawn


def checker(responses: list[Response]) -> list[float | None]:
    """1 where a drawing shows what was asked for, else 0; None where it shows a held-out pair that was not asked for."""
    return [_check(one) for one in responses]


def _check(response: Response) -> float | None:
    drawn, required = need_drawn(response, "checker"), response.facts
    if not isinstance(required, Requirement):
        raise ValueError(
            f"The checker needs what {response.key or 'a prompt'} requires, a Requirement, as facts of its record."
        )
    verdict = judge(at_side(drawn), required)
    if required.category != HELD_OUT and any((shape.colour, shape.form) in HELD_OUT_PAIRS for shape in verdict.found):
        return None
    return float(verdict.correct)


def digit(responses: list[Response]) -> list[float | None]:
    """1 where the machine reads the digit that was asked for, else 0."""
    return [float(find_judge().read(need_drawn(one, "digit")) == _digit_of(one)) for one in responses]


def _digit_of(response: Response) -> int:
    digit = getattr(response.facts, "digit", response.facts)
    if not isinstance(digit, int):
        raise ValueError(f"The judge of digits needs the digit of {response.key or 'a prompt'} as facts of its record.")
    return digit


def caption(responses: list[Response]) -> list[float | None]:
    """F1 between the objects that a caption names and those that the scene shows: 1 where all are named, and none else."""
    return [_f1(one) for one in responses]


def _f1(response: Response) -> float:
    scene = response.facts
    if not isinstance(scene, Scene):
        raise ValueError(f"The reward 'caption' needs the scene of {response.key or 'a record'} as facts of its record.")
    shown = Counter(describe(shape) for shape in scene.objects)
    named = Counter(parse_caption(need_answer(response, "caption")))
    if not shown and not named:
        return 1.0
    return 2 * (shown & named).total() / (shown.total() + named.total())


def exact(responses: list[Response]) -> list[float | None]:
    """1 where an answer is the expected one, else 0."""
    return [float(is_same_answer(need_answer(one, "exact"), _expected(one))) for one in responses]


def _expected(response: Response) -> str:
    if not isinstance(response.facts, str):
        raise ValueError(f"The reward 'exact' needs the answer to {response.key or 'a question'} as facts of its record.")
    return response.facts
