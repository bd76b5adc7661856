"""Evaluation: tasks, suites, the runner that scores a model on them, and the pages that show the results.

    from unimm.eval import Example, Result, Task, collect, evaluate, summarize

Public names, which YAML and other packages use; they are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.eval.runner import evaluate
    from unimm.eval.score import Example, Judgement, Score
    from unimm.eval.suites import build_suite, load_task
    from unimm.eval.task import ItemTask, Result, Task, collect, split_batches, summarize
    from unimm.eval.tasks.emoji import EmojiAnswers, EmojiDrawings, EmojiNames
    from unimm.eval.tasks.figures import FiguresDrawings, FiguresNames
    from unimm.eval.tasks.locating import HeatMaps, Locate, RefCocoLocate, ShapesLocate
    from unimm.eval.tasks.pages import PagesQuestions, PagesText
    from unimm.eval.tasks.relations import SwappedRelations
    from unimm.eval.tasks.retrieval import Retrieval, ShapesRetrieval
    from unimm.eval.validation import ValidationConfig

__all__ = [
    "EmojiAnswers",
    "EmojiDrawings",
    "EmojiNames",
    "Example",
    "FiguresDrawings",
    "FiguresNames",
    "HeatMaps",
    "ItemTask",
    "Judgement",
    "Locate",
    "PagesQuestions",
    "PagesText",
    "RefCocoLocate",
    "Result",
    "Retrieval",
    "Score",
    "ShapesLocate",
    "ShapesRetrieval",
    "SwappedRelations",
    "Task",
    "ValidationConfig",
    "build_suite",
    "collect",
    "evaluate",
    "load_task",
    "split_batches",
    "summarize",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("Example", "Judgement", "Score"), "score"),
        **dict.fromkeys(("ItemTask", "Result", "Task", "collect", "split_batches", "summarize"), "task"),
        "evaluate": "runner",
        **dict.fromkeys(("build_suite", "load_task"), "suites"),
        **dict.fromkeys(("EmojiAnswers", "EmojiDrawings", "EmojiNames"), "tasks.emoji"),
        **dict.fromkeys(("FiguresDrawings", "FiguresNames"), "tasks.figures"),
        **dict.fromkeys(("PagesQuestions", "PagesText"), "tasks.pages"),
        **dict.fromkeys(("HeatMaps", "Locate", "RefCocoLocate", "ShapesLocate"), "tasks.locating"),
        "SwappedRelations": "tasks.relations",
        **dict.fromkeys(("Retrieval", "ShapesRetrieval"), "tasks.retrieval"),
        "ValidationConfig": "validation",
    },
)
