"""Rewards: by name, by the judges of worlds, by models; and what fails costs one prompt, not the run."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from unimm.data.worlds.drawing import CATEGORIES, HELD_OUT, make_drawing_task
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, Scene, Shape
from unimm.data.worlds.shapes import render
from unimm.inference.engine import Engine
from unimm.rewards import GuardedReward, Response, RewardFailure, build_reward, models
from unimm.rewards.guarded import MAX_FAILURES, MAX_HANGING
from unimm.rewards.models import ClipScore
from unimm.runtime import plugins

RED = Shape("large", "red", "circle", 20, 20)


def draw(*shapes: Shape) -> np.ndarray:
    return render(Scene(shapes))


def task_of(category: str, *wanted: str):
    """The first task of a category whose prompt has these words."""
    tasks = (make_drawing_task(category, index, 5) for index in range(2000))
    return next(task for task in tasks if all(word in task.prompt.text for word in wanted))


def test_the_checker_reads_what_was_asked_for() -> None:
    asked = task_of("colours", "red circle").requirement
    responses = [
        Response("p", draw(RED), facts=asked),
        Response("p", draw(RED, Shape("small", "blue", "cross", 45, 45)), facts=asked),
    ]
    assert build_reward("checker")(responses) == [1.0, 0.0]


def test_a_held_out_pair_that_was_not_asked_for_is_not_judged() -> None:
    """A prompt without a colour may be drawn in any: what is held out must not be learned that way."""
    circle = task_of("single_object", "circle").requirement
    colour, form = HELD_OUT_PAIRS[0]
    assert form == "circle"
    size = circle.groups[0].look[0] or "large"
    of_pair = Shape(size, colour, form, 30, 30)
    assert build_reward("checker")([Response("p", draw(of_pair), facts=circle)]) == [None]
    asked = task_of(HELD_OUT, f"{colour} {form}")
    if asked.requirement.relation is None and len(asked.requirement.groups) == 1 and asked.requirement.groups[0].count == 1:
        assert build_reward("checker")([Response("p", draw(of_pair), facts=asked.requirement)]) == [1.0]
    assert len(CATEGORIES) == 6


def test_captions_and_answers() -> None:
    scene = Scene((RED, Shape("small", "blue", "cross", 45, 45)))
    said = ["a large red circle and a small blue cross", "a large red circle", "a large red square"]
    values = build_reward("caption")([Response("", answer=text, facts=scene) for text in said])
    assert values == [1.0, pytest.approx(2 / 3), 0.0]
    assert build_reward("exact")([Response("?", answer=" Red. ", facts="red"), Response("?", answer="blue", facts="red")]) == [
        1.0,
        0.0,
    ]


def test_digits_are_read() -> None:
    from unimm.data.worlds.digits import DigitsWorld

    record = DigitsWorld("test", num_records=4)[1]
    value = record.facts.digit
    image = np.asarray(record.image)
    assert build_reward("digit")([Response("p", image, facts=value), Response("p", image, facts=(value + 1) % 10)]) == [
        1.0,
        0.0,
    ]


def test_the_model_itself_and_another_judge(tiny_engine: Engine, tiny_folder: Path) -> None:
    responses = [Response(text, np.full((16, 16, 3), 90, np.uint8)) for text in ("a red square", "a cat")]
    own = build_reward("vqa_score", lambda: tiny_engine)(responses)
    assert own == tiny_engine.alignment([one.drawn for one in responses], ["a red square", "a cat"])
    other = build_reward(f"vqa_score:{tiny_folder}", device="cpu")(responses)
    assert other == pytest.approx(own, abs=1e-5)


def test_a_clip_compares_drawing_and_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    from stand_in_networks import Clip, clip_processor

    monkeypatch.setattr(models, "open_clip", lambda folder: lambda: (Clip(), clip_processor))
    responses = [Response(text, np.full((32, 32, 3), grey, np.uint8)) for text, grey in (("a cat", 30), ("a dog", 200))]
    together, apart = ClipScore("clip", "cpu")(responses), [ClipScore("clip", "cpu")([one])[0] for one in responses]
    assert together == pytest.approx(apart, abs=1e-5) and all(0 <= value <= 1 for value in apart if value is not None)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cheker", "did you mean 'checker'?"),
        ("zebra", "choose one of checker"),
        ("vqa_score", "vqa_score:FOLDER"),
        ("clip_score", "clip_score:FOLDER"),
        ("no_such_package:reward", "cannot be imported"),
        ("math:nothing", "has no 'nothing'"),
        ("math:pi", "is no reward"),
        ("checker", ""),
    ],
)
def test_names(name: str, told: str) -> None:
    if not told:
        assert callable(build_reward(name))
        return
    with pytest.raises(ValueError) as caught:
        build_reward(name)
    assert told in str(caught.value)


def test_a_function_and_a_class_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(
        "def brightness(responses):\n    return [float(one.drawn.mean()) / 255 for one in responses]\n"
        "class Constant:\n    def __init__(self, value):\n        self.value = value\n"
        "    def __call__(self, responses):\n        return [self.value] * len(responses)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_trusted", set(plugins._trusted))
    responses = [Response("p", np.full((2, 2, 3), 255, np.uint8))]
    assert build_reward("own_rewards:brightness")(responses) == [1.0]
    assert build_reward("own_rewards:Constant?value=0.25")(responses) == [0.25]
    with pytest.raises(ValueError, match="arguments"):
        build_reward("own_rewards:Constant?zebra=1")


ONE = [Response("p", answer="x")]


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (lambda _: [float("nan")], "not finite"),
        (lambda _: [1.0, 2.0], "2 numbers for 1"),
        (lambda _: 3, "int, not a list"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (lambda _: time.sleep(0.3) or [1.0], "more than 0.05 seconds"),
    ],
)
def test_a_call_that_fails_costs_its_prompt(reward, told: str) -> None:
    guarded = GuardedReward("own", reward, time_limit=0.05)
    assert guarded(ONE) is None
    assert list(guarded.reasons.values()) == [1] and told in next(iter(guarded.reasons))


def test_one_that_always_fails_ends_in_one_sentence() -> None:
    guarded = GuardedReward("own", lambda _: [float("inf")], time_limit=5)
    for _ in range(MAX_FAILURES):
        assert guarded(ONE) is None
    with pytest.raises(RewardFailure, match="'own' failed 21 times in a row"):
        guarded(ONE)
    hanging = GuardedReward("slow", lambda _: time.sleep(30), time_limit=0.01)  # pyright: ignore[reportArgumentType]
    for _ in range(MAX_HANGING):
        assert hanging(ONE) is None
    with pytest.raises(RewardFailure, match="'slow' does not end 4 of its calls"):
        hanging(ONE)
    good = GuardedReward("good", lambda responses: [None] * len(responses))
    assert good(ONE) == [None] and not good.reasons


def _leaves(_: list[Response]) -> list[float | None]:
    raise SystemExit(3)


def _numbers_one_by_one(_: list[Response]):
    yield 1.0
    raise OSError("the judge is gone")


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (_leaves, "it raised SystemExit: 3"),
        (_numbers_one_by_one, "it raised OSError: the judge is gone"),
        (lambda _: [10**400], "it returned list, not a list of numbers"),
        (lambda _: "1", "it returned str, not a list of numbers"),
        (lambda _: {1: "key"}, "it returned dict, not a list of numbers"),
    ],
)
def test_whatever_a_reward_does_costs_one_call(reward, reason: str) -> None:
    guarded = GuardedReward("own", reward, time_limit=5)
    assert guarded(ONE) is None and guarded.last_reason == reason and guarded.reasons == {reason: 1}


def test_numbers_of_any_kind_are_read() -> None:
    for values in (np.array([0.5], np.float16), torch.tensor([0.5]), (one for one in [0.5]), (np.float32(0.5),)):
        assert GuardedReward("own", lambda _, values=values: values, time_limit=5)(ONE) == [0.5]


def test_calls_that_ended_late_hang_no_more() -> None:
    slow = GuardedReward("slow", lambda _: [time.sleep(0.02)], time_limit=0.001)  # pyright: ignore[reportArgumentType]
    for _ in range(MAX_HANGING + 2):
        assert slow(ONE) is None
        time.sleep(0.1)
