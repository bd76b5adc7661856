"""Tasks, the runner that scores a model on them, and the pages that show it.

Public names, which YAML and other packages use; they are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.eval.runner import evaluate
    from unimm.eval.suites import build_suite
    from unimm.eval.task import Example, Judgement, Result, Task
    from unimm.eval.validation import ValidationConfig

__all__ = ["Example", "Judgement", "Result", "Task", "ValidationConfig", "build_suite", "evaluate"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Task": "task",
        "Result": "task",
        "Example": "task",
        "Judgement": "task",
        "evaluate": "runner",
        "build_suite": "suites",
        "ValidationConfig": "validation",
    },
)
