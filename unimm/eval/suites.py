"""The registry of tasks: every task by a short name that stays, for the suites, validation, YAML and the shell.

    shapes_answers                    a task of the suites, with a suite's items
    shapes_answers?n=200&seed=1       with others
    emoji_drawings?subset=plain       a task that is in no suite, with the arguments of its class
    pkg.module:Task?n=100             a task of another package (`unimm.eval.tasks_by_name`)

A further task of unimm is one line in `FURTHER_TASKS`, and then has its name everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from unimm.data.worlds.drawing import CATEGORIES
from unimm.eval.task import Task
from unimm.eval.tasks.digits import DigitsAnswers, DigitsDrawings
from unimm.eval.tasks.drawings import MODEL_DEFAULTS, Drawings, DrawingSettings
from unimm.eval.tasks.reconstruction import DigitsReconstruction, ShapesReconstruction
from unimm.eval.tasks.shapes import ShapesAnswers, ShapesCaptions, ShapesDrawings, ShapesHeldOut
from unimm.eval.tasks_by_name import is_outside, load_outside_task, read_arguments
from unimm.runtime.number_checks import whole_number

SUITES = ("glance", "brief", "quick", "full")
"""brief: for slow machines, with wider intervals. full: about 2,000 items of each task; the digits have 901 test scans."""

DEFAULT_SUITE = "quick"

LOOKED_AT = ("seed", "split")
DRAWN = ("seed", "guidance_scale", "temperature", "best_of", "size", "drawing", "steps", "solver")
"""The arguments, beside n, of tasks about images that are looked at, and that are drawn."""


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

    def changed(self, arguments: dict[str, Any]) -> "Items":
        """The same with some arguments changed, by their names in the shell; a seed is also that of drawings."""
        drawing = {name: value for name, value in arguments.items() if name in DRAWN}
        own = {name: value for name, value in arguments.items() if name in ("num_items", "split", "seed")}
        return replace(self, **own, drawing=replace(self.drawing, **drawing))


@dataclass(frozen=True)
class BuiltInTask:
    """A task of the suites: how it is made, its number of items in each, and whether a training may be validated by it.

    takes: the arguments that its name may have in the shell, beside n. about: what it asks, for people.
    """

    make: Callable[[Items], Task]
    glance: int
    brief: int
    quick: int
    full: int
    validates: bool = True
    takes: tuple[str, ...] = ()
    about: str = ""


@dataclass(frozen=True)
class FurtherTask:
    """A task with a name that is in no suite. target: its class, "package.module:Class", whose arguments its name may have."""

    target: str
    about: str = ""


def _shapes_drawings(items: Items) -> Task:
    return ShapesDrawings(-(-items.num_items // len(CATEGORIES)), items.drawing)


TASKS = {
    "shapes_answers": BuiltInTask(
        lambda items: ShapesAnswers(items.num_items, items.seed, items.split), 40, 400, 1000, 2000, True, LOOKED_AT,
        "questions about unseen scenes: colour, shape, size, count, existence, relation",
    ),
    "shapes_captions": BuiltInTask(
        lambda items: ShapesCaptions(items.num_items, items.seed, items.split), 20, 150, 300, 2000, True, LOOKED_AT,
        "captions: every object right, none invented",
    ),
    "shapes_drawings": BuiltInTask(
        _shapes_drawings, 12, 120, 240, 2004, True, DRAWN, "drawings in six categories; the mean of these"
    ),
    # Pairs that no training shows say something only as long as nothing was chosen by them: they never validate.
    "shapes_held_out": BuiltInTask(
        lambda items: ShapesHeldOut(items.num_items, items.drawing), 6, 60, 120, 2000, False, DRAWN,
        "drawings of pairs of colour and shape that training never shows",
    ),
    "digits_answers": BuiltInTask(
        lambda items: DigitsAnswers(items.num_items, items.seed, items.split), 20, 150, 300, 2000, True, LOOKED_AT,
        "questions about unseen scans",
    ),
    "digits_drawings": BuiltInTask(
        lambda items: DigitsDrawings(items.num_items, items.drawing), 10, 50, 100, 2000, True, DRAWN,
        "digits, read by a classifier",
    ),
    # Reconstruction is the image tokenizer's, which `unimm train` leaves as it is.
    "shapes_reconstruction": BuiltInTask(
        lambda items: ShapesReconstruction(items.num_items, items.seed, items.drawing.drawing), 20, 200, 500, 2000, False,
        ("seed", "drawing"),
        "what the image tokenizer keeps of scenes: read right, PSNR, SSIM, codebook usage",
    ),
    "digits_reconstruction": BuiltInTask(
        lambda items: DigitsReconstruction(items.num_items, items.drawing.drawing), 20, 200, 500, 2000, False, ("drawing",),
        "the same of scans, of which there are 901",
    ),
}  # fmt: skip
"""The tasks of the suites by name, in the order in which a suite runs them."""

FURTHER_TASKS = {
    "clips_answers": FurtherTask(
        "unimm.eval.tasks.clips:ClipsAnswers", "what happens in clips of moving shapes: ask=direction"
    ),
    "clips_direction": FurtherTask("unimm.eval.tasks.clips:clips_direction", "where a shape moves, one of eight directions"),
    "clips_order": FurtherTask("unimm.eval.tasks.clips:clips_order", "which appears, disappears or changes colour first"),
    "clips_count": FurtherTask("unimm.eval.tasks.clips:clips_count", "how often a shape blinks"),
    "clips_passing": FurtherTask("unimm.eval.tasks.clips:clips_passing", "how many shapes pass"),
    "clips_speed": FurtherTask("unimm.eval.tasks.clips:clips_speed", "which of two shapes moves faster"),
    "edits": FurtherTask("unimm.eval.tasks.edits:Edits", "scenes edited as an instruction says: made, and the rest preserved"),
    "edit_sessions": FurtherTask(
        "unimm.eval.tasks.edit_sessions:EditSessions", "MagicBrush's turns of edits: the rest preserved, L1, L2: paths=, chain="
    ),
    "emoji_names": FurtherTask("unimm.eval.tasks.emoji:EmojiNames", "what an emoji is called"),
    "emoji_answers": FurtherTask("unimm.eval.tasks.emoji:EmojiAnswers", "questions about one emoji or two"),
    "emoji_drawings": FurtherTask("unimm.eval.tasks.emoji:EmojiDrawings", "drawings of one emoji or two"),
    "figures_names": FurtherTask("unimm.eval.tasks.figures:FiguresNames", "what a figure is called"),
    "figures_drawings": FurtherTask("unimm.eval.tasks.figures:FiguresDrawings", "drawings of figures, all parts in place"),
    "pages_text": FurtherTask("unimm.eval.tasks.pages:PagesText", "lines of text on pages, by character error rate"),
    "pages_questions": FurtherTask("unimm.eval.tasks.pages:PagesQuestions", "text, tables and charts: what stands where"),
    "several_compare": FurtherTask("unimm.eval.tasks.several:SeveralCompare", "two pictures compared; pictures=3: three"),
    "several_differs": FurtherTask("unimm.eval.tasks.several:SeveralDiffers", "what differs between two pictures"),
    "few_shot": FurtherTask("unimm.eval.tasks.several:FewShotWords", "new words, learned from 0 to 8 examples in the prompt"),
    "shapes_inpainting": FurtherTask(
        "unimm.eval.tasks.painting:ShapesInpainting", "a part of a scene painted anew, the rest kept to the byte"
    ),
    "shapes_zero_shot": FurtherTask("unimm.eval.tasks.zero_shot:ShapesZeroShot", "colour and form by labels alone"),
    "reranked_retrieval": FurtherTask("unimm.eval.tasks.reranking:RerankedRetrieval", "what towers find, ranked again"),
    "swapped_relations": FurtherTask("unimm.eval.tasks.relations:SwappedRelations", "which of two texts is whose picture's"),
    "interleaved": FurtherTask("unimm.eval.tasks.interleaved:Interleaved", "conversations in which the model draws"),
    "redrawing": FurtherTask("unimm.eval.tasks.redrawing:Redrawing", "draw, look, draw again, beside the best of several"),
    "locate": FurtherTask("unimm.eval.tasks.locating:ShapesLocate", "boxes of phrases about scenes, or that there is none"),
    "heat_map": FurtherTask("unimm.eval.tasks.locating:HeatMaps", "heat maps against the pixels of shapes: by="),
    "refcoco": FurtherTask("unimm.eval.tasks.locating:RefCocoLocate", "referring expressions: refs=, annotations=, images="),
    "vqa": FurtherTask("unimm.eval.tasks.question_files:VqaFiles", "VQAv2's questions: questions=, annotations=, images="),
    "pope": FurtherTask("unimm.eval.tasks.question_files:PopeFiles", "POPE's questions, by yes or no: paths=, images="),
    "docvqa": FurtherTask("unimm.eval.tasks.document_files:DocVqaFiles", "DocVQA's questions, by ANLS: questions=, images="),
    "chartqa": FurtherTask(
        "unimm.eval.tasks.document_files:ChartQaFiles", "ChartQA's questions, by relaxed accuracy: paths=, images="
    ),
    "captions": FurtherTask("unimm.eval.tasks.caption_files:CaptionFiles", "captions, by COCO's scores: annotations=, images="),
    "perplexity": FurtherTask("unimm.eval.tasks.perplexity:Perplexity", "bits a byte of held-out text: paths="),
    "hallucination": FurtherTask(
        "unimm.eval.tasks.hallucination:hallucination", "what of a scene is named and not there: ask=captions or questions"
    ),
}
"""Tasks with names that are in no suite, since they need a model, a font or data of their own."""

VALIDATION_TASKS = tuple(name for name, task in TASKS.items() if task.validates)


def load_task(name: str, items: Items | None = None) -> Task:
    """The task of a name, with its arguments.

    items: those of a built-in task where the name says nothing of them; default: those of the suite "quick".

    Raises:
        ValueError: there is no such task, it does not take the arguments, or what is named is no task.
    """
    short, _, query = name.partition("?")
    if is_outside(short):
        return load_outside_task(name)
    if short in FURTHER_TASKS:
        return load_outside_task(FURTHER_TASKS[short].target + (f"?{query}" if query else ""))
    check_name(name)
    task = TASKS[short]
    arguments = read_arguments(query, name)
    arguments = {{"n": "num_items"}.get(key, key): value for key, value in arguments.items()}
    takes = ("num_items", *task.takes)
    if unknown := [key for key in arguments if key not in takes]:
        raise ValueError(f"'{short}' takes {', '.join(('n', *task.takes))}, not {unknown[0]}.")
    if "num_items" in arguments:
        arguments["num_items"] = whole_number(f"n of {short}", arguments["num_items"], 1)
    return task.make((items or Items(getattr(task, DEFAULT_SUITE))).changed(arguments))


def check_name(name: str) -> None:
    """Raises ValueError where a name is that of no task here, nor of the form of one of another package."""
    short = name.partition("?")[0]
    if short not in TASKS and short not in FURTHER_TASKS and not is_outside(short):
        raise ValueError(
            f"There is no task '{short}': choose among {', '.join((*TASKS, *FURTHER_TASKS))}, or name one of your own as "
            f"pkg.module:Task."
        )


def brings_items(name: str) -> bool:
    """Whether a name is that of a task with items of its own: of another package, or in no suite."""
    short = name.partition("?")[0]
    return is_outside(short) or short in FURTHER_TASKS


def build_suite(name: str = DEFAULT_SUITE, drawing: DrawingSettings = MODEL_DEFAULTS) -> list[Task]:
    """The tasks of a suite; the seed of drawings is that of questions, too. ValueError: there is no such suite."""
    check_suite(name)
    return [load_task(task, _items_of(task, name, drawing)) for task in TASKS]


def check_suite(name: str) -> None:
    """Raises ValueError where there is no such suite."""
    if name not in SUITES:
        raise ValueError(f"There is no suite '{name}': choose one of {', '.join(SUITES)}.")


def choose_tasks(names: list[str], suite: str | None = None, drawing: DrawingSettings = MODEL_DEFAULTS) -> list[Task]:
    """The tasks that an evaluation runs: those of a suite, then those with items of their own.

    Args:
        names: as `load_task` has them. Where none is of a task of the suite, it runs whole.
        suite: None is "quick", or no suite at all where no name is of a task of it.
        drawing: how drawings are made, of the suite and of `Drawings` that do not say themselves.

    Raises:
        ValueError: there is no such suite or task, or what is named is no task.
    """
    for name in names:
        check_name(name)
    own, further = [name for name in names if not brings_items(name)], [name for name in names if brings_items(name)]
    if suite is None and further and not own:
        return [_load_further(name, drawing) for name in further]
    chosen = suite or DEFAULT_SUITE
    check_suite(chosen)
    built = [load_task(name, _items_of(name.partition("?")[0], chosen, drawing)) for name in own or TASKS]
    return [*built, *(_load_further(name, drawing) for name in further)]


def _load_further(name: str, drawing: DrawingSettings) -> Task:
    """A task with items of its own; its drawings are made as is said for all, where it does not say itself."""
    task = load_task(name)
    return task.drawn_with(drawing) if isinstance(task, Drawings) and task.settings == MODEL_DEFAULTS else task


def _items_of(task: str, suite: str, drawing: DrawingSettings) -> Items:
    return Items(getattr(TASKS[task], suite), seed=drawing.seed, drawing=drawing)
