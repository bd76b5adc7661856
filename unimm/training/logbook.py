"""What a run writes while it runs: numbers as JSONL and TensorBoard, pictures as PNG, and a progress line for the person.

    run/metrics.jsonl          one line a report: {"step": 100, "loss/codes": 3.2, ...}
    run/tensorboard/           the same, and texts and pictures
    run/samples/               pictures and texts, by step

Only the first process of a run writes; the others hold a logbook that does nothing.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class Logbook:
    """Numbers, texts and pictures of one run, by step."""

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.folder = folder
        self.active = active
        if not active:
            return
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        """Drop the numbers after `step`: a run that resumes there writes them again."""
        if not self.active:
            return
        self._lines.close()
        path = self.folder / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
        self._lines = path.open("a", encoding="utf-8")

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """One line of scalars."""
        if not self.active:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """A text, such as sample captions."""
        if not self.active:
            return
        (self.folder / "samples" / f"{step:08d}-{name}.txt").write_text(text + "\n", encoding="utf-8")
        self._writer.add_text(name, text, step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture, such as a grid of reconstructions or drawings."""
        if not self.active:
            return
        picture.save(self.folder / "samples" / f"{step:08d}-{name}.png")
        self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Flush everything to disk."""
        if self.active:
            self._lines.close()
            self._writer.close()


def read_numbers(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a half-written last line is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


class ProgressLine:
    """A live bar in a terminal; a line now and then where output is not a terminal (a log file, a notebook cell)."""

    def __init__(self, description: str, active: bool = True, seconds_between_lines: float = 15.0) -> None:
        self.description = description
        self._console = Console(quiet=not active)
        self._between = seconds_between_lines
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal and active:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            more = (TextColumn("eta"), TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, *more, console=self._console)
            self._task = self._bar.add_task(description, total=1.0, note="")
            self._bar.start()

    def update(self, progress: float, note: str) -> None:
        """progress: 0 to 1. note: the numbers that a person wants to see."""
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= self._between or progress >= 1.0:
            self._last_line = now
            elapsed = now - self._started
            eta = elapsed * (1 - progress) / progress if progress > 0 else float("nan")
            self._console.print(
                f"{self.description}: {progress:4.0%}, {elapsed:.0f} s, eta {eta:.0f} s, {note}", highlight=False
            )

    def close(self) -> None:
        """End the live display."""
        if self._bar is not None:
            self._bar.stop()
