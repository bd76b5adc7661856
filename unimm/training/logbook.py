"""What a run reports while it runs: numbers as JSONL and TensorBoard, pictures as PNG, and a progress line for the person.

    run/metrics.jsonl          one line a report: {"step": 100, "loss/codes": 3.2, ...}
    run/tensorboard/           the same, and texts and pictures
    run/samples/               pictures and texts, by step

The same goes to the `trackers` that a run asks for. Only the first process of a run writes; the others hold a logbook that does
nothing. What cannot be written (a full disk, a folder that is gone, a server that does not answer) is reported once and left
out: only checkpoints are worth stopping for.

A `Meter` counts between two reports: sums over steps and, in a report, over ranks, so that what is logged is the global mean.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from unimm.batch import Batch
from unimm.models.ports.base import LossSums
from unimm.training.flops import FlopCount
from unimm.training.trackers import Tracker

SECONDS_BETWEEN_NOTES = 1.0

logger = logging.getLogger(__name__)


class Logbook:
    """Numbers, texts and pictures of one run, by step. trackers: get the same, and are closed with it."""

    def __init__(self, folder: Path, active: bool = True, trackers: list[Tracker] | None = None) -> None:
        self.folder = folder
        self.trackers = trackers or []
        self.active = active
        if not active:
            return
        self._lost: set[str] = set()
        self._metrics = folder / "metrics.jsonl"
        self._samples = folder / "samples"
        self._samples.mkdir(parents=True, exist_ok=True)
        self._metrics.touch()
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def rewind(self, step: int) -> None:
        """Drop the numbers after `step`: a run that resumes there writes them again."""
        if not self.active:
            return
        with self._spared("metrics.jsonl"):
            kept = [line for line in read_numbers(self._metrics) if line["step"] <= step]
            temporary = self._metrics.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            temporary.replace(self._metrics)

    def has(self, step: int, group: str) -> bool:
        """Whether a number whose name begins so was written for a step; what is not active has none."""
        if not self.active or not self._metrics.is_file():
            return False
        written = (line for line in read_numbers(self._metrics) if line["step"] == step)
        return any(name.startswith(group) for line in written for name in line)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """One line of scalars."""
        if not self.active:
            return
        with self._spared("metrics.jsonl"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._metrics.open("ab") as file:
                file.write(self._new_line() + json.dumps({"step": step, **values}).encode() + b"\n")
        with self._spared("TensorBoard"):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        self._tell_trackers(lambda tracker: tracker.numbers(step, values))

    def text(self, step: int, name: str, text: str) -> None:
        """A text, such as sample captions."""
        if not self.active:
            return
        with self._spared("samples"):
            self._samples.mkdir(parents=True, exist_ok=True)
            (self._samples / f"{step:08d}-{name}.txt").write_text(text + "\n", encoding="utf-8")
        with self._spared("TensorBoard"):
            self._writer.add_text(name, text, step)
        self._tell_trackers(lambda tracker: tracker.text(step, name, text))

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture, such as a grid of reconstructions or drawings."""
        if not self.active:
            return
        with self._spared("samples"):
            self._samples.mkdir(parents=True, exist_ok=True)
            picture.save(self._samples / f"{step:08d}-{name}.png")
        with self._spared("TensorBoard"):
            self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        self._tell_trackers(lambda tracker: tracker.picture(step, name, picture))

    def close(self) -> None:
        """Flush everything to disk."""
        if self.active:
            with self._spared("TensorBoard"):
                self._writer.close()
            self._tell_trackers(lambda tracker: tracker.close())

    def _tell_trackers(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in self.trackers:
            with self._spared(tracker.name, Exception):  # of whatever kind: packages of others, that speak with servers
                tell(tracker)

    @contextmanager
    def _spared(self, what: str, trouble: type[Exception] = OSError) -> Iterator[None]:
        """Trouble with the disk in here costs what is written, not the run; of each kind it is reported once."""
        try:
            yield
        except trouble as error:
            if what not in self._lost:
                logger.warning(f"{what} of {self.folder} cannot be written ({error}); training goes on without.")
            self._lost.add(what)

    def _new_line(self) -> bytes:
        """What ends a line that a full disk or a kill has cut."""
        if not self._metrics.is_file() or self._metrics.stat().st_size == 0:
            return b""
        with self._metrics.open("rb") as file:
            file.seek(-1, 2)
            return b"" if file.read(1) == b"\n" else b"\n"


def read_numbers(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; half-written ones are left out."""
    numbers = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # cut by a full disk or a kill
            numbers.append(json.loads(line))
    return numbers


class ProgressLine:
    """A live bar in a terminal; a line now and then where output is not a terminal (a log file, a notebook cell)."""

    def __init__(self, description: str, active: bool = True, seconds_between_lines: float = 10.0) -> None:
        self.description = description
        self._console = Console(quiet=not active)
        self._between = seconds_between_lines
        self._started = self._last_line = time.monotonic()
        self._noted = -math.inf
        self._first: tuple[float, float] | None = None  # time and progress of the first update: a run may go on in its middle
        self._bar: Progress | None = None
        if self._console.is_terminal and active:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            more = (TextColumn("eta"), TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, *more, console=self._console)
            self._task = self._bar.add_task(description, total=1.0, note="")
            self._bar.start()

    def update(self, progress: float, note: Callable[[], str]) -> None:
        """progress: 0 to 1. note: the numbers that a person wants to see, asked for no more often than they are read: a GPU
        has to be waited for."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=progress)
            if now - self._noted >= SECONDS_BETWEEN_NOTES or progress >= 1.0:
                self._noted = now
                self._bar.update(self._task, note=note())
            return
        self._first = self._first or (now, progress)
        if now - self._last_line >= self._between or progress >= 1.0:
            self._last_line = now
            since, began = self._first
            known = progress > began
            eta = f"eta {(now - since) * (1 - progress) / (progress - began):.0f} s, " if known else ""
            line = f"{self.description}: {progress:4.0%}, {now - self._started:.0f} s, {eta}{note()}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """End the live display."""
        if self._bar is not None:
            self._bar.stop()


class Read(NamedTuple):
    """How much of something was read: positions that are no padding, all positions, images, operations."""

    elements: float
    positions: float
    images: float
    flops: float

    @classmethod
    def of(cls, batch: Batch, flop_count: FlopCount | None = None, num_sharing: int = 1) -> "Read":
        """Of a batch that still lies in main memory, which so many processes share."""
        flops = flop_count.of(batch) if flop_count else 0
        every = (batch.num_elements, batch.tokens.numel(), batch.num_images, flops)
        return cls(*(one / num_sharing for one in every))


class Meter:
    """Sums of losses, how much was read and how long it took, since the last report.

    peak_flops: what the device of a rank computes in a second at most; None leaves MFU out.
    sources: the names of those that samples come from, whose shares are reported where there are several.
    """

    def __init__(self, peak_flops: float | None = None, sources: Iterable[str] = ()) -> None:
        self.grad_norm = 0.0
        self.peak_flops = peak_flops
        self.sources = list(sources)
        self._clear()

    def add_batch(self, read: Read, sums: dict[str, LossSums]) -> None:
        """One micro-batch and what came of it."""
        for name, one in sums.items():
            row = torch.stack([one.loss.detach(), one.correct, one.count]).float()
            self._sums[name] = self._sums[name] + row if name in self._sums else row
        self._read += torch.tensor(read, dtype=torch.float64)

    def add_samples(self, sources: Iterable[int]) -> None:
        """Samples that were learned, by the number of their source each."""
        for source in sources:
            self._samples[source] += 1

    def add_time(self, seconds: float, waited: float) -> None:
        """One step's seconds, and how many of them it waited for data."""
        self._time += torch.tensor([seconds, waited])

    def report(self, rate: float, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks for the logbook; starts a new count. Every rank must call it at the same step."""
        rows = [*self._sums.values(), self._samples, self._read, self._time / accelerator.num_processes]
        together = accelerator.reduce(torch.cat([row.float().to(accelerator.device) for row in rows]), "sum")
        assert isinstance(together, torch.Tensor)
        *sums, samples, read, time = together.split([len(row) for row in rows])
        values = self._shares(samples.tolist()) | _means(dict(zip(self._sums, sums, strict=True)), read, time)
        if self.peak_flops and "speed/tflops_per_second" in values:
            values["speed/mfu"] = 1e12 * values["speed/tflops_per_second"] / accelerator.num_processes / self.peak_flops
        self._clear()
        return values | {"optim/grad_norm": self.grad_norm, "optim/rate_factor": rate}

    def _shares(self, samples: list[float]) -> dict[str, float]:
        """Of each source in the samples since the last report."""
        if len(samples) < 2 or not sum(samples):
            return {}
        return {f"data/share/{name}": count / sum(samples) for name, count in zip(self.sources, samples, strict=True)}

    def note(self) -> str:
        """One line for the progress bar: this rank's own numbers."""
        values = _means(self._sums, self._read, self._time)
        losses = " ".join(f"{name.removeprefix('loss/')} {v:.3f}" for name, v in values.items() if name.startswith("loss/"))
        speed = f"{values['speed/tokens_per_second']:,.0f} tok/s {values['speed/images_per_second']:,.0f} img/s"
        return f"loss {losses} | {speed}"

    def _clear(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._read = torch.zeros(len(Read._fields), dtype=torch.float64)
        self._samples = torch.zeros(len(self.sources))
        self._time = torch.zeros(2)  # seconds, seconds of waiting


def _means(sums: dict[str, torch.Tensor], read: torch.Tensor, time: torch.Tensor) -> dict[str, float]:
    """The numbers as they are logged, from sums."""
    values = {}
    for name, row in sums.items():
        loss, correct, count = row.tolist()
        if count:
            values[name if "/" in name else f"loss/{name}"] = loss / count
            if not math.isnan(correct):
                values[f"accuracy/{name}"] = correct / count
    elements, positions, images, flops = read.tolist()
    seconds, waited = time.clamp(min=1e-9).tolist()
    if flops:
        values["speed/tflops_per_second"] = flops / seconds / 1e12
    return values | {
        "speed/tokens_per_second": elements / seconds,
        "speed/images_per_second": images / seconds,
        "speed/data_wait": waited / seconds,
        "data/fill": elements / max(positions, 1),
    }
