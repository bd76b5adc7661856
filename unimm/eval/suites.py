"""Named suites: which tasks an evaluation runs, and how many items each."""

from dataclasses import dataclass

from unimm.eval.task import Task
from unimm.eval.tasks.digits import DigitsAnswers, DigitsDrawings
from unimm.eval.tasks.drawings import USUAL, DrawingSettings
from unimm.eval.tasks.reconstruction import DigitsReconstruction, ShapesReconstruction
from unimm.eval.tasks.shapes import ShapesAnswers, ShapesCaptions, ShapesDrawings, ShapesHeldOut


@dataclass(frozen=True)
class SuiteSize:
    """Items of every score. drawings_each: of each of the six categories."""

    answers: int
    captions: int
    drawings_each: int
    held_out: int
    digit_answers: int
    digit_drawings: int
    reconstructions: int


SUITES = {
    "brief": SuiteSize(400, 150, 20, 60, 150, 50, 200),  # for slow machines: the intervals are wider
    "quick": SuiteSize(1000, 300, 40, 120, 300, 100, 500),
    "full": SuiteSize(2000, 2000, 334, 2000, 2000, 2000, 2000),  # 6 x 334 = 2,004; the digits have 901 test scans
}


def build_suite(name: str = "quick", drawing: DrawingSettings = USUAL) -> list[Task]:
    """The tasks of a suite; the seed of drawings is that of questions, too. ValueError: there is no such suite."""
    if name not in SUITES:
        raise ValueError(f"There is no suite '{name}': choose one of {', '.join(SUITES)}.")
    size = SUITES[name]
    return [
        ShapesAnswers(size.answers, drawing.seed),
        ShapesCaptions(size.captions, drawing.seed),
        ShapesDrawings(size.drawings_each, drawing),
        ShapesHeldOut(size.held_out, drawing),
        DigitsAnswers(size.digit_answers, drawing.seed),
        DigitsDrawings(size.digit_drawings, drawing),
        ShapesReconstruction(size.reconstructions, drawing.seed),
        DigitsReconstruction(size.reconstructions),
    ]


def choose_tasks(tasks: list[Task], names: list[str]) -> list[Task]:
    """The tasks of these names; all of them where none is named. ValueError: there is no such task."""
    known = {task.name: task for task in tasks}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"There is no task '{unknown[0]}': choose among {', '.join(known)}.")
    return [known[name] for name in names] or tasks
