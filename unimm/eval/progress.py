"""What an evaluation shows: a live bar a task in a terminal, a line now and then elsewhere; and the table of scores."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from unimm.eval.score import SHARE, Example, Score
from unimm.eval.task import Result

SECONDS_BETWEEN_LINES = 10.0
"""Where output is no terminal."""


class EvaluationProgress:
    """A live bar a task in a terminal, a line a finished task elsewhere, nothing where it is not active."""

    def __init__(self, console: Console | None, active: bool) -> None:
        self._console = (console or Console()) if active else Console(quiet=True)
        more = (MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn())
        live = active and self._console.is_terminal
        self._bars = Progress(TextColumn("{task.description}"), BarColumn(), *more, console=self._console, disable=not live)
        self._is_live = live

    def __enter__(self) -> "EvaluationProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, name: str, num_items: int, num_answered: int = 0) -> Callable[[Example], None]:
        """A bar for a task, moved by every example. num_answered: of its items, by an earlier run."""
        bar, total, seen = self._bars.add_task(name, total=num_items, completed=num_answered, note=""), 0.0, 0
        last_line = time.monotonic()
        if num_answered:
            self.say(f"{name}: {num_answered:,} of {num_items:,} were answered before.")

        def advance(example: Example) -> None:
            nonlocal total, seen, last_line
            total, seen = total + example.mark, seen + 1
            self._bars.update(bar, advance=1, note=f"{total / seen:.3f}")
            if not self._is_live and time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                self.say(f"{name}: {num_answered + seen:,} of {num_items:,}, {total / seen:.3f} so far")

        return advance

    def finish(self, result: Result, seconds: float) -> None:
        """A line where there is no bar."""
        if not self._is_live:
            self.say(f"{result.name}: {say_value(result.total)} ({result.count:,} items, {seconds:.1f} s)")

    def say(self, line: str) -> None:
        """A line."""
        self._console.print(line, highlight=False)

    def show(self, table: Table) -> None:
        """The table, at the end."""
        self._console.print(table)


def score_table(results: dict[str, Result], details: bool = False) -> Table:
    """A table for a person; with `details`, a row for every category and language of a task too."""
    table = Table("task", title="scores", title_justify="left")
    for column in ("score", "95 % interval", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("beside it")
    for name, result in results.items():
        beside = [f"{other} {say_value(score)}" for other, score in result.other_scores.items()]
        beside += [f"{one} {value:.4g}" for one, value in result.measures.items() if one not in result.other_scores]
        if not result.higher_is_better:
            beside.insert(0, "lower is better")
        table.add_row(name, *_columns(result.total), ", ".join(beside))
        for label, score in result.details.items() if details else ():
            table.add_row(f"  {label}", *_columns(score), "", style="dim")
    return table


def say_value(score: Score) -> str:
    """A score with its unit; shares have three places and no unit."""
    return f"{score.value:.3f}" if score.unit == SHARE else f"{score.value:.4g} {score.unit}"


def _columns(score: Score) -> tuple[str, str, str]:
    places = ".3f" if score.unit == SHARE else ".4g"
    interval = "" if score.interval is None else f"{score.interval[0]:{places}} - {score.interval[1]:{places}}"
    return say_value(score), interval, f"{score.count:,}"
