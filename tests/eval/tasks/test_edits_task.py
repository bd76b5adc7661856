"""Edits as a task: a perfect editor has all of it, one that does nothing keeps the rest alone; the mean is over six kinds."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.worlds.edits_scenes import KINDS
from unimm.data.worlds.scenes import render
from unimm.eval.suites import FURTHER_TASKS
from unimm.eval.task import Result
from unimm.eval.tasks.edits import Edits


def score_of(task: Edits, edit: Callable[[int], np.ndarray]) -> Result:
    """Of an editor that gives these pictures."""
    numbers = iter(range(task.num_items))

    def edit_images(images: list, instructions: list[str], **words: Any) -> list:
        assert len(images) == len(instructions) == len(words["seed"]) and words["image_guidance_scale"] == 2.0
        return [[Image.fromarray(edit(next(numbers)))] for _ in images]

    engine: Any = SimpleNamespace(edit_images=edit_images)
    return task.run(engine, lambda example: None)


def test_a_perfect_editor_and_an_idle_one() -> None:
    task = Edits(num_items=12, image_guidance_scale=2.0, batch_size=5)
    perfect = score_of(task, lambda item: render(task.world[item].facts.target))
    assert perfect.score == perfect.other_scores["made"].value == perfect.other_scores["preserved"].value == 1.0
    idle = score_of(task, lambda item: render(task.world[item].facts.source))
    assert idle.score == idle.other_scores["made"].value == 0.0 and idle.other_scores["preserved"].value == 1.0
    assert {f"{aspect}_{kind}" for aspect in ("made", "preserved") for kind in KINDS} < set(idle.other_scores)
    assert idle.other_scores["made_move"].interval is not None and idle.other_scores["made_move"].count == 2
    half = score_of(task, lambda item: render(task.world[item].facts.target if item < 6 else task.world[item].facts.source))
    assert half.score == half.other_scores["made"].value == 0.5
    assert {example.language for example in half.examples[:6]} == {"en"} and half.examples[6].language == "zh"


def test_it_has_a_name() -> None:
    assert FURTHER_TASKS["edits"].target == "unimm.eval.tasks.edits:Edits"
    assert Edits(split="held_out").name == "edits_held_out"


def test_kinds_are_named() -> None:
    task = Edits(num_items=4, kinds="keep")
    assert task.name == "edits_keep" and {task.world[item].facts.edit.kind for item in range(4)} == {"keep"}
    assert Edits(kinds="move,remove", source_bias=3).name == "edits_move_remove_source_bias_3"
