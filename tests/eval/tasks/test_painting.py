"""In-painting's score: the mask has room, the prompt names what is there then, and the judge sees each way to fail."""

from collections import Counter

import numpy as np
import pytest

from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.scenes import COLOURS, SIDE, Scene, Shape, render
from unimm.data.worlds.shapes_painting import KINDS, PaintingTask, judge_painting, make_painting_task
from unimm.eval.suites import load_task
from unimm.eval.tasks.painting import ShapesInpainting
from unimm.inference.engine import Engine

TASKS = [make_painting_task(index) for index in range(24)]


def painted(task: PaintingTask, *shapes: Shape) -> np.ndarray:
    """The scene with what is inside of the mask replaced by these."""
    kept = tuple(item for item in task.scene.objects if not task.mask[item.y, item.x])
    return render(Scene((*kept, *shapes), task.scene.background))


def middle(task: PaintingTask) -> tuple[int, int]:
    """The centre of the mask, x and y."""
    rows, columns = np.flatnonzero(task.mask.any(1)), np.flatnonzero(task.mask.any(0))
    return int(columns.mean()), int(rows.mean())


def test_what_is_asked_for_is_met_and_nothing_else() -> None:
    for task in TASKS:
        x, y = middle(task)
        right = () if task.wanted is None else (Shape("large", str(task.wanted[1]), str(task.wanted[2]), x, y),)
        verdict = judge_painting(painted(task, *right), task)
        assert (verdict.is_met, verdict.is_kept) == (True, True), verdict
        wrong = Shape("small", "white", "cross", x, y) if task.wanted is None else None
        wrong = wrong or Shape("small", next(one for one in COLOURS if one != task.wanted[1]), "cross", x, y)  # pyright: ignore
        verdict = judge_painting(painted(task, wrong), task)
        assert not verdict.is_met and verdict.is_kept and verdict.reason
        changed = painted(task, *right)
        changed[tuple(np.argwhere(~task.mask)[0])] += 1
        assert not judge_painting(changed, task).is_kept


def test_tasks_are_fair() -> None:
    """Nothing but what is to be painted touches the mask; kinds and languages come in turn; the original is wrong."""
    assert Counter(task.kind for task in TASKS) == dict.fromkeys(KINDS, 8)
    assert Counter(task.prompt.language for task in TASKS) == {"en": 12, "zh": 12}
    for task in TASKS:
        covered = [item for item in task.scene.objects if task.mask[item.y, item.x]]
        assert len(covered) == (0 if task.kind == "add" else 1) and task.mask.sum() < SIDE**2 / 4
        alone = render(Scene(tuple(item for item in task.scene.objects if item not in covered), task.scene.background))
        assert (alone[task.mask] == task.scene.background).all()
        assert not judge_painting(task.image, task).is_met and len(read_objects(task.image)) == len(task.scene.objects)
    assert make_painting_task(5).prompt == TASKS[5].prompt and make_painting_task(5, seed=1).prompt != TASKS[5].prompt


def test_the_task_runs_by_its_name(tiny_engine: Engine) -> None:
    task = load_task("shapes_inpainting?n=3")
    assert isinstance(task, ShapesInpainting) and task.num_items == 3
    result = task.run(tiny_engine, lambda example: None)
    assert result.other_scores["kept"].value == 1.0 and result.count == 3
    assert set(result.details) == {*KINDS, "en"} and result.score == pytest.approx(result.other_scores["met"].value)
