"""Runs tasks and writes their results: every answer as it comes, the scores atomically, pictures to look at.

out/answers.jsonl     one line an item: task, key, category, language, prompt, expected, answer, correct, reason; and image,
                      original and codes where these are kept
out/images/           the images that these lines name
out/scores.json       {"finished": ..., "tasks": {name: score, interval, count, details, measures, seconds}}
out/NAME.png          drawings with their prompts, or reconstructions below their originals
"""

import itertools
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from unimm.eval.report.pictures import picture_result
from unimm.eval.task import Example, ImageRetention, Result, Task
from unimm.eval.tasks_by_name import check_task
from unimm.inference.engine import Engine
from unimm.runtime.atomic_files import write_json
from unimm.runtime.provenance import write_image

SECONDS_BETWEEN_LINES = 10.0
"""Where output is no terminal."""


@dataclass
class Report:
    """The results of tasks by name, in the order they ran, and the seconds each took."""

    results: dict[str, Result] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Result:
        return self.results[name]

    def table(self, details: bool = False) -> Table:
        """A table for a person; with `details`, a row for every category and language of a task too."""
        table = Table("task", title="scores", title_justify="left")
        for column in ("score", "95 % interval", "n"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("beside it")
        for name, result in self.results.items():
            beside = ", ".join(f"{measure} {value:.4g}" for measure, value in result.measures.items())
            table.add_row(name, *_columns(result.score, result.interval, result.count), beside)
            for label, score in result.details.items() if details else ():
                table.add_row(f"  {label}", *_columns(score.value, score.interval, score.count), "", style="dim")
        return table

    def scores(self) -> dict[str, Any]:
        """All numbers as plain data, without the examples; what is not finite is None."""
        return {name: self._plain(name) for name in self.results}

    def _plain(self, name: str) -> dict[str, Any]:
        result = self.results[name]
        return {
            **_plain_score(result.score, result.interval, result.count),
            "details": {
                label: _plain_score(score.value, score.interval, score.count) for label, score in result.details.items()
            },
            "measures": {key: value if math.isfinite(value) else None for key, value in result.measures.items()},
            "seconds": round(self.seconds[name], 2),
        }


def evaluate(
    engine: Engine,
    tasks: list[Task],
    out_folder: Path | str | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> Report:
    """Run the tasks one after the other.

    Args:
        engine: of `unimm.load`.
        tasks: built-in ones (`build_suite`), or any objects with `name`, `num_items` and `run` (`Task`).
        out_folder: where answers, scores and pictures go, in place of an earlier evaluation's. None writes nothing.
        progress: show a live bar (where output is no terminal, a line every 10 seconds and a task) and, at the end, the table.
        console: where progress goes; standard output by default.

    Raises:
        ValueError: one of them is no task, or two have one name.
    """
    for task in tasks:
        check_task(task, f"Task {task!r:.80}")
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"Every task needs a name of its own, not {', '.join(task.name for task in tasks)}.")
    report = Report()
    with _Output(Path(out_folder) if out_folder is not None else None) as output, _Display(console, progress) as display:
        for task in tasks:
            started = time.monotonic()
            result = task.run(engine, _call_all(display.start(task), output.writer(task.name)))
            report.results[task.name], report.seconds[task.name] = result, time.monotonic() - started
            display.finish(result, report.seconds[task.name])
            output.write(report, result, finished=task is tasks[-1])
    display.show(report.table())
    return report


def _columns(value: float, interval: tuple[float, float], count: int) -> tuple[str, str, str]:
    return f"{value:.3f}", f"{interval[0]:.3f} - {interval[1]:.3f}", f"{count:,}"


def _plain_score(value: float, interval: tuple[float, float], count: int) -> dict[str, Any]:
    return {"score": value, "interval": list(interval), "count": count}


def _call_all(*listeners: Callable[[Example], None]) -> Callable[[Example], None]:
    def call_each(example: Example) -> None:
        for listener in listeners:
            listener(example)

    return call_each


class _Output:
    """The files of an evaluation; without a folder it does nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lines: TextIO | None = None

    def __enter__(self) -> "_Output":
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "scores.json").unlink(missing_ok=True)  # it would not belong to the answers beside it
            shutil.rmtree(self._folder / "images", ignore_errors=True)
            (self._folder / "images").mkdir()
            self._lines = (self._folder / "answers.jsonl").open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()

    def writer(self, task_name: str) -> Callable[[Example], None]:
        """Writes the examples of one task."""
        names = ("key", "category", "language", "prompt", "expected", "answer", "correct", "reason")
        retention, numbers = ImageRetention(), itertools.count()

        def write_line(example: Example) -> None:
            if self._lines is not None:
                line = {"task": task_name} | {name: getattr(example, name) for name in names}
                number = next(numbers)
                if retention.keeps(example):
                    line |= self._save_images(example, f"{task_name}-{number:05d}")
                self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                self._lines.flush()

        return write_line

    def _save_images(self, example: Example, stem: str) -> dict[str, Any]:
        assert self._folder is not None
        named: dict[str, Any] = {} if example.codes is None else {"codes": example.codes.tolist()}
        for part in ("image", "original"):
            if (array := getattr(example, part)) is not None:
                name = f"images/{stem}{'' if part == 'image' else '-original'}.png"
                write_image(Image.fromarray(array), self._folder / name, example.provenance if part == "image" else None)
                named[part] = name
        return named

    def write(self, report: Report, result: Result, finished: bool) -> None:
        """The scores so far, and the picture of the newest result."""
        if self._folder is None:
            return
        # Under another name first: an interrupt leaves the scores of before, not half a file.
        temporary = self._folder / ".scores.json.tmp"
        write_json(temporary, {"finished": finished, "tasks": report.scores()})
        temporary.replace(self._folder / "scores.json")
        if (picture := picture_result(result)) is not None:
            picture.save(self._folder / f"{result.name}.png")


class _Display:
    """A live bar a task in a terminal, a line a finished task elsewhere, nothing where progress is off."""

    def __init__(self, console: Console | None, active: bool) -> None:
        self._console = (console or Console()) if active else Console(quiet=True)
        more = (MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn())
        live = active and self._console.is_terminal
        self._bars = Progress(TextColumn("{task.description}"), BarColumn(), *more, console=self._console, disable=not live)
        self._is_live = live

    def __enter__(self) -> "_Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, task: Task) -> Callable[[Example], None]:
        """A bar for the task, moved by every example."""
        bar, right, seen = self._bars.add_task(task.name, total=task.num_items, note=""), 0, 0
        last_line = time.monotonic()

        def advance(example: Example) -> None:
            nonlocal right, seen, last_line
            right, seen = right + example.correct, seen + 1
            self._bars.update(bar, advance=1, note=f"{right / seen:.3f}")
            if not self._is_live and time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                self._console.print(f"{task.name}: {seen:,} of {task.num_items:,}, {right / seen:.3f} so far", highlight=False)

        return advance

    def finish(self, result: Result, seconds: float) -> None:
        """A line where there is no bar."""
        if not self._is_live:
            line = f"{result.name}: {result.score:.3f} ({result.count:,} items, {seconds:.1f} s)"
            self._console.print(line, highlight=False)

    def show(self, table: Table) -> None:
        """The table, at the end."""
        self._console.print(table)
