"""The built-in tasks: one table that says how each is made, how many items it has in every suite, and whether it validates.

`unimm eval`, the suites at a training's end and the validation during it all take their tasks from here; tasks of other
packages are named "pkg.module:Task" (`load_task`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from unimm.data.worlds.drawing import CATEGORIES
from unimm.eval.task import Task
from unimm.eval.tasks.digits import DigitsAnswers, DigitsDrawings
from unimm.eval.tasks.drawings import MODEL_DEFAULTS, DrawingSettings
from unimm.eval.tasks.reconstruction import DigitsReconstruction, ShapesReconstruction
from unimm.eval.tasks.shapes import ShapesAnswers, ShapesCaptions, ShapesDrawings, ShapesHeldOut
from unimm.eval.tasks_by_name import is_outside, load_task

SUITES = ("brief", "quick", "full")
"""brief: for slow machines, with wider intervals. full: about 2,000 items of each task; the digits have 901 test scans."""

DEFAULT_SUITE = "quick"


@dataclass(frozen=True)
class Items:
    """Which items a built-in task is made of.

    num_items: how many; drawings of shapes are rounded up to whole categories.
    split, seed: of the images that are looked at and the questions about them.
    drawing: how drawings are made; its seed is that of their prompts, too.
    """

    num_items: int
    split: str = "test"
    seed: int = 0
    drawing: DrawingSettings = MODEL_DEFAULTS


@dataclass(frozen=True)
class BuiltInTask:
    """How a task is made, its number of items in every suite, and whether a training may be validated by it."""

    make: Callable[[Items], Task]
    brief: int
    quick: int
    full: int
    validates: bool = True


def _shapes_drawings(items: Items) -> Task:
    return ShapesDrawings(-(-items.num_items // len(CATEGORIES)), items.drawing)


TASKS = {
    "shapes_answers": BuiltInTask(lambda items: ShapesAnswers(items.num_items, items.seed, items.split), 400, 1000, 2000),
    "shapes_captions": BuiltInTask(lambda items: ShapesCaptions(items.num_items, items.seed, items.split), 150, 300, 2000),
    "shapes_drawings": BuiltInTask(_shapes_drawings, 120, 240, 2004),
    # Pairs that no training shows say something only as long as nothing was chosen by them: they never validate.
    "shapes_held_out": BuiltInTask(lambda items: ShapesHeldOut(items.num_items, items.drawing), 60, 120, 2000, False),
    "digits_answers": BuiltInTask(lambda items: DigitsAnswers(items.num_items, items.seed, items.split), 150, 300, 2000),
    "digits_drawings": BuiltInTask(lambda items: DigitsDrawings(items.num_items, items.drawing), 50, 100, 2000),
    # Reconstruction is the image tokenizer's, which `unimm train` leaves as it is.
    "shapes_reconstruction": BuiltInTask(
        lambda items: ShapesReconstruction(items.num_items, items.seed), 200, 500, 2000, False
    ),
    "digits_reconstruction": BuiltInTask(lambda items: DigitsReconstruction(items.num_items), 200, 500, 2000, False),
}
"""The built-in tasks by name, in the order in which a suite runs them."""

VALIDATION_TASKS = tuple(name for name, task in TASKS.items() if task.validates)


def build_suite(name: str = DEFAULT_SUITE, drawing: DrawingSettings = MODEL_DEFAULTS) -> list[Task]:
    """The tasks of a suite; the seed of drawings is that of questions, too. ValueError: there is no such suite."""
    if name not in SUITES:
        raise ValueError(f"There is no suite '{name}': choose one of {', '.join(SUITES)}.")
    return [task.make(Items(getattr(task, name), seed=drawing.seed, drawing=drawing)) for task in TASKS.values()]


def choose_tasks(names: list[str], suite: str | None = None, drawing: DrawingSettings = MODEL_DEFAULTS) -> list[Task]:
    """The tasks that an evaluation runs: those of a suite, then those of other packages.

    Args:
        names: of tasks of the suite, and "pkg.module:Task" of others. Where no task of the suite is named, it runs whole.
        suite: None is "quick", or no suite at all where all names are of other packages.
        drawing: how the suite's drawings are made.

    Raises:
        ValueError: there is no such suite or task, or what is named is no task.
    """
    own, outside = [name for name in names if not is_outside(name)], [name for name in names if is_outside(name)]
    if unknown := [name for name in own if name not in TASKS]:
        raise ValueError(
            f"There is no task '{unknown[0]}': choose among {', '.join(TASKS)}, or name one of your own as pkg.module:Task."
        )
    if suite is None and outside and not own:
        return [load_task(name) for name in outside]
    built = dict(zip(TASKS, build_suite(suite or DEFAULT_SUITE, drawing), strict=True))
    return [*(built[name] for name in own or built), *(load_task(name) for name in outside)]
