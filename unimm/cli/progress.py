"""Progress on the terminal, on stderr so that results can be piped; nothing at all where stderr is a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unimm.inference.drawing import DrawingProgress


@contextmanager
def drawing_bar() -> Iterator[Callable[[DrawingProgress], None]]:
    """A bar over the codes of a drawing; gives the callback that moves it."""
    console = Console(stderr=True)
    columns = TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("codes"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing", total=None)

        def advance(state: DrawingProgress) -> None:
            progress.update(task, completed=state.step, total=state.num_steps)

        yield advance


@contextmanager
def steps_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over steps; gives the callback that takes how many are done."""
    console = Console(stderr=True)
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
