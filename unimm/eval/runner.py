"""Runs tasks and writes their results: every answer as it comes, the scores, pictures to look at (`unimm.eval.answer_folder`).

With a folder, a run that was killed goes on after the answers that are there. An `ItemTask` goes on item by item and is shared
out among processes: process k of n asks every n-th item. A task that has only `run` starts again, and is one process's. Scores
are computed from the answers as they lie on disk, so they do not depend on interruptions or the number of processes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimm.eval.answer_folder import WHOLE, AnswerFolder, Shard
from unimm.eval.fingerprints import describe_engine
from unimm.eval.progress import EvaluationProgress, score_table
from unimm.eval.report.pictures import picture_result
from unimm.eval.task import Example, ItemTask, Result, Task, collect, split_batches
from unimm.eval.tasks_by_name import check_task
from unimm.inference.engine import Engine


@dataclass
class Report:
    """The results of tasks by name, in the order they ran, and the seconds each took."""

    results: dict[str, Result] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Result:
        return self.results[name]

    def table(self, details: bool = False) -> Table:
        """A table for a person; with `details`, a row for every category and language of a task too."""
        return score_table(self.results, details)

    def scores(self) -> dict[str, Any]:
        """All numbers as plain data, without the examples; what is not finite is None."""
        return {name: result.plain() | {"seconds": round(self.seconds[name], 2)} for name, result in self.results.items()}


def evaluate(
    engine: Engine,
    tasks: list[Task],
    out_folder: Path | str | None = None,
    progress: bool = True,
    console: Console | None = None,
    *,
    existing: str = "resume",
    shard: Shard = WHOLE,
    batch_size: int | None = None,
) -> Report:
    """Run the tasks one after the other.

    Args:
        engine: of `unimm.load`.
        tasks: built-in ones (`build_suite`, `load_task`), or objects of your own (`ItemTask`, `Task`).
        out_folder: where answers, scores and pictures go. Answers of this model to these tasks that are there are not asked
            again. None writes nothing.
        progress: show a live bar (where output is no terminal, a line every 10 seconds and a task) and, at the end, the table.
        console: where progress goes; standard output by default.
        existing: "resume": refuse a folder of another model, precision or arguments; "replace" what it holds then; "restart"
            with none of its answers in any case.
        shard: (k, n): this is process k of n, which are started with the same arguments and the same folder. The report is
            empty but for the process that finds all answers there.
        batch_size: items that are asked at once [default: the tasks' own]; in float32 it changes no answer.

    Raises:
        ValueError: one of them is no task, two have one name, or the folder holds something else.
    """
    tasks = check_tasks(tasks)
    with EvaluationProgress(console, progress) as display:
        if out_folder is None:
            if shard != WHOLE:
                raise ValueError("Several processes put their answers together in a folder: name one (out_folder).")
            report = Report()
            for task in tasks:
                _run_in_memory(engine, task, report, display, batch_size)
        else:
            folder = AnswerFolder(Path(out_folder), describe_engine(engine), tasks, shard, existing)
            evaluation = Evaluation(engine, tasks, folder, display, batch_size)
            evaluation.answer()
            report = evaluation.finish()
    if report.results or shard == WHOLE:
        display.show(report.table())
    return report


def check_tasks(tasks: list[Task]) -> list[Task]:
    """The tasks as they are. Raises ValueError where one of them is no task, or two have one name."""
    for task in tasks:
        check_task(task, f"Task {task!r:.80}")
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Scores and files are named by tasks, and {' and '.join(twice)} stands here more than once: evaluate each in a "
            f"folder of its own (--out)."
        )
    return tasks


class Evaluation:
    """The tasks of one process, with the folder of their answers.

    Args:
        folder: of these tasks; its shard is which process this is.
    """

    def __init__(
        self, engine: Engine, tasks: list[Task], folder: AnswerFolder, display: EvaluationProgress, batch_size: int | None
    ) -> None:
        self.engine, self.tasks, self.folder, self.display = engine, tasks, folder, display
        self.batch_size = batch_size
        self.report = Report()

    def answer(self) -> None:
        """Ask what this process has to ask. A single process scores each task when its answers are there."""
        self.folder.open()
        try:
            if any(self.folder.missing(task) for task in self.tasks):
                self.folder.mark_unfinished()
            for number, task in enumerate(self.tasks):
                started = time.monotonic()
                asked = self._ask_items(task) if isinstance(task, ItemTask) else self._run_whole(task, number)
                if self.folder.shard == WHOLE:
                    self._score(task, time.monotonic() - started if asked else 0.0)
        finally:
            self.folder.close()

    def finish(self) -> Report:
        """Where all answers are there, of whatever process: put them together, and score them."""
        folder = self.folder
        if folder.shard != WHOLE:
            folder.read()
            if any(folder.missing(task) for task in self.tasks):
                self.display.say(
                    f"Process {folder.shard[0]} of {folder.shard[1]} is done. The last one to be done writes the scores."
                )
                return self.report
        folder.put_together()
        for task in self.tasks:
            if task.name not in self.report.results:
                self._score(task, 0.0)
        folder.write_scores(self.report.scores(), finished=True)
        return self.report

    def take_over(self) -> Report:
        """What `answer` and `finish` do as a single process, after others: ask what they have left, and score everything."""
        self.folder.shard = WHOLE
        self.answer()
        return self.finish()

    def _ask_items(self, task: Any) -> bool:
        """Whether anything was left to ask."""
        number, count = self.folder.shard
        missing = self.folder.missing(task)
        own = [item for item in missing if item % count == number]
        num_own = len(range(number, task.num_items, count))
        if not own:
            return False
        advance = self.display.start(task.name, num_own, num_own - len(own))
        for items in split_batches(own, self.batch_size or task.batch_size):
            for item, example in zip(items, task.ask(self.engine, items), strict=True):
                self.folder.write(task.name, item, example)
                advance(example)
        return True

    def _run_whole(self, task: Task, number: int) -> bool:
        """Run a task that scores itself, where it is this process's; whether it was."""
        if not self.folder.missing(task) or number % self.folder.shard[1] != self.folder.shard[0]:
            return False
        advance, items = self.display.start(task.name, task.num_items), iter(range(task.num_items))

        def take(example: Example) -> None:
            self.folder.write(task.name, next(items), example)
            advance(example)

        started = time.monotonic()
        result = task.run(self.engine, take)
        plain = result.plain() | {"seconds": round(time.monotonic() - started, 2)}
        self.folder.write_scores({task.name: plain}, finished=False)
        return True

    def _score(self, task: Task, seconds: float) -> None:
        examples, stored = self.folder.examples(task.name), self.folder.scores.get(task.name, {})
        result = task.score(examples) if isinstance(task, ItemTask) else Result.read(task.name, stored, examples)
        self.report.results[task.name] = result
        self.report.seconds[task.name] = seconds or stored.get("seconds", 0.0)
        self.display.finish(result, self.report.seconds[task.name])
        self.folder.write_scores(self.report.scores(), finished=False)
        if (picture := picture_result(result)) is not None:
            picture.save(self.folder.folder / f"{result.name}.png")


def _run_in_memory(engine: Engine, task: Task, report: Report, display: EvaluationProgress, batch_size: int | None) -> None:
    started = time.monotonic()
    advance: Callable[[Example], None] = display.start(task.name, task.num_items)
    if isinstance(task, ItemTask) and batch_size:
        batches = split_batches(list(range(task.num_items)), batch_size)
        result = task.score(collect((one for items in batches for one in task.ask(engine, items)), advance))
    else:
        result = task.run(engine, advance)
    report.results[task.name], report.seconds[task.name] = result, time.monotonic() - started
    display.finish(result, report.seconds[task.name])
