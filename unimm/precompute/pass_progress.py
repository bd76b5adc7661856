"""Progress of a pass over many images: a bar in a terminal, elsewhere a line at least every ten seconds, also while nothing
moves.

On stderr, so that results can be piped. A line tells what is done, how fast it goes and how long it will take.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 9.0


@contextmanager
def images_progress(title: str, total: int, quiet: bool = False, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Progress over so many images while the block runs; gives a function to call with how many more are done."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if quiet or not total:
        yield lambda _: None
    elif console.is_terminal:
        yield from _bar(title, total, console, unit)
    else:
        yield from _lines(title, total, console, unit)


def say(sentence: str) -> None:
    """A line on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(sentence)


def duration(seconds: float) -> str:
    """Seconds for a person: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _bar(title: str, total: int, console: Console, unit: str) -> Iterator[Callable[[int], None]]:
    rate = TextColumn("{task.fields[rate]}")
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit), rate, TimeRemainingColumn()
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total, rate="")
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, completed=done, rate=f"{done / (time.monotonic() - started + 1e-9):.3g}/s")

        yield add


def _lines(title: str, total: int, console: Console, unit: str) -> Iterator[Callable[[int], None]]:
    done, is_over = 0, threading.Event()
    started = time.monotonic()

    def tell() -> None:
        seconds = time.monotonic() - started
        rate = done / max(seconds, 1e-9)
        left = f", {rate:.3g} {unit}/s, {duration((total - done) / rate)} left" if done else f", none yet after {seconds:.0f} s"
        console.print(f"{title}: {done:,} of {total:,} {unit} ({done / total:.0%}){left}", markup=False)

    def tell_now_and_then() -> None:
        while not is_over.wait(SECONDS_BETWEEN_LINES):
            tell()

    def add(count: int) -> None:
        nonlocal done
        done += count

    teller = threading.Thread(target=tell_now_and_then, name="progress", daemon=True)
    teller.start()
    try:
        yield add
    finally:
        is_over.set()
        teller.join()
    console.print(f"{title}: {done:,} {unit} in {duration(time.monotonic() - started)}", markup=False)
