"""The loop that all trainings share: steps until the budget is spent, reports, checkpoints, signals.

A step is a batch, its gradient (`compute_gradient`, a subclass'), a check that it is finite on all processes, and the update
(`apply_gradient`, a subclass'). With several processes, whatever depends on a clock, on a signal, on a disk or on a number that
is not finite is agreed on first, so that all of them do the same after the same step.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from rich.console import Console
from torch.utils.data import DataLoader, SequentialSampler, Subset

from unimm.data.records import Dataset
from unimm.runtime.devices import check_precision, choose_device, has_bf16, why_not_compile
from unimm.runtime.environment import loader_processes
from unimm.runtime.number_checks import check_number, check_whole
from unimm.training.acceleration import computing_with, make_accelerator, meet, settle_precision, settle_threads
from unimm.training.bad_records import DataError, lost_step
from unimm.training.checkpoint import CHECKPOINTS
from unimm.training.logbook import Logbook, ProgressLine
from unimm.training.optimizers import Budget, NotFiniteError, Schedule
from unimm.training.run_state import Resumable
from unimm.training.signals import StopRequest, init_worker, signals_blocked
from unimm.training.trackers import Tracker, TrackingConfig, open_trackers

MAX_WORKERS = 1024
"""More processes that load data are a mistake on any machine."""

STDERR = 2
NO_DATA = 1_000_000
"""In place of a signal's number: a process cannot read what its next step would learn from."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how fast, and what is written when.

    precision: "no" (fp32), "bf16" (autocast; master weights stay fp32), or "auto": which of them is faster on the device.
    compile: compile the heavy parts with torch.compile, where that works (on a CPU it needs a C++ compiler).
    report_every, save_every: in steps; 0 is never (a checkpoint at the end is always written).
    save_minutes: a checkpoint also after so many minutes since the last one.
    num_workers: processes that make batches ahead, at most as many as there are cores.
    max_skipped_steps: so many steps of a run may go without their update because their loss or gradient is not finite; the
        next one ends it.
    """

    budget: Budget
    schedule: Schedule = field(default_factory=Schedule)
    precision: str = "no"
    compile: bool = False
    report_every: int = 20
    save_every: int = 0
    save_minutes: float = 2.0
    num_workers: int = 1
    max_skipped_steps: int = 0

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_whole(self, 0, "report_every", "save_every", "num_workers", "max_skipped_steps")
        check_number(self, "save_minutes", above=0)
        if self.num_workers > MAX_WORKERS:
            raise ValueError(f"num_workers={self.num_workers} are processes of their own: a few are enough, one for each core.")


class _Ahead(NamedTuple):
    """What the next step learns from, or why there is none, and how long it was waited for."""

    batch: Any
    error: Exception | None
    seconds: float


class Gradient(NamedTuple):
    """What a step has computed, before any weight has moved: the gradients themselves lie in the parameters.

    norm, loss: scalars, of the gradient of all processes, and of this process' share of the loss. outcome: what else the
    subclass wants to report once the step counts.
    """

    norm: torch.Tensor
    loss: torch.Tensor
    outcome: Any = None


class StepMeter(Protocol):
    """What counts between two reports."""

    def add_time(self, seconds: float, waited: float) -> None: ...

    def note(self) -> str: ...


class Loop(Resumable):
    """One run in one folder. A subclass calls `resume` at the end of its constructor."""

    def __init__(self, config: LoopConfig, folder: Path, device: str | None) -> None:
        self.loop_config = config
        ranks = meet(choose_device(device))
        precision, lines = settle_precision(config.precision, choose_device(device), folder, ranks)
        super().__init__(folder, ranks, config.max_skipped_steps, precision)
        self.say(lines)
        self.accelerator = make_accelerator(choose_device(device), precision)
        self.stop = StopRequest(self._say_stopping)
        self._doing = "starting"
        self._trackers: list[Tracker] = []

    @property
    def muon_dtype(self) -> torch.dtype:
        """Of Muon's products: bfloat16 as its authors have it, but where a device would only emulate it. Not by a trial, which
        may end otherwise in another process of the run, or when it goes on."""
        return torch.bfloat16 if has_bf16(self.accelerator.device) else torch.float32

    def track(self, config: TrackingConfig, settings: dict[str, Any]) -> None:
        """Report to trackers from now on; called by all processes.

        settings: what the run is configured with, JSON-able, for the trackers to show.

        Raises:
            ValueError: a tracker is missing or cannot start; raised on every process.
        """
        failure: ValueError | None = None
        try:
            self._trackers = open_trackers(config, self.folder, settings) if self.is_main else []
        except ValueError as error:
            failure = error
        if self.ranks.any(failure is not None):
            raise failure or ValueError("The first process could not start its trackers.")

    def compiles(self) -> bool:
        """Whether to compile: where it is asked for and works; where it does not, the run says so and goes on."""
        if not self.loop_config.compile:
            return False
        reason = why_not_compile(self.accelerator.device)
        if reason is not None and self.is_main:
            Console().print(f"Training goes on without torch.compile, which does not work here: {reason}")
        return reason is None

    # -- what a subclass says -----------------------------------------------------------------------------------------

    def data(self) -> Any:
        """Batches by step: anything with a length and random access."""
        raise NotImplementedError

    def seed(self) -> int:
        """Of the random numbers that a step draws (dropout)."""
        raise NotImplementedError

    def compute_gradient(self, batch: Any) -> Gradient:
        """Forward and backward of a step."""
        raise NotImplementedError

    def apply_gradient(self, gradient: Gradient, meter: Any) -> None:
        """Update the weights by a gradient that is finite, and count the step."""
        raise NotImplementedError

    def name_samples(self, batch: Any) -> list[str]:
        """What a person finds the samples of a batch by."""
        raise NotImplementedError

    def datasets(self) -> Iterable[Dataset]:
        """Whose images a step opens: where one cannot be read, the others that cannot are looked for."""
        return ()

    def forget_step(self) -> None:
        """Undo what `compute_gradient` leaves behind: gradients, and whatever else a forward pass changes."""
        raise NotImplementedError

    def report(self, meter: Any) -> dict[str, float]:
        """Numbers since the last report; called by every rank at the same step."""
        raise NotImplementedError

    def before_steps(self, logbook: Logbook) -> None:
        """What the run left undone when it was stopped."""

    def after_step(self, logbook: Logbook) -> None:
        """Samples, validation: whatever else a step may be followed by; what takes long leaves early when `stop` is made."""

    # -- the loop -----------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.loop_config.budget.progress(self.step, self.seconds)

    def run(self, title: str, meter: StepMeter) -> None:
        """Steps to the end of the budget; always leaves a checkpoint behind, also when interrupted.

        Raises:
            DataError: what a step would learn from cannot be read.
            NotFiniteError: a loss or gradient is not finite, and no more steps may be skipped.
            SaveError: a checkpoint could not be written, which was the last or the third in a row.
        """
        logbook = Logbook(self.folder, self.is_main, self._trackers)
        logbook.rewind(self.step)
        line = ProgressLine(title, self.is_main)
        self.threads = settle_threads(self.threads, self.loop_config.num_workers, self.accelerator.device)
        try:
            with self.stop, computing_with(self.threads):
                try:
                    self._steps(logbook, line, meter)
                except NotFiniteError:
                    self.save()  # all is as it was before the step
                    raise
                self.save()
                self.say(self.bad.summary() if self.bad else [])
        finally:
            line.close()
            logbook.close()
        if self._is_stopped():  # a request that came with the last step counts too
            self.say([f"Step {self.step:,} is saved in {self.folder / CHECKPOINTS}: the same line goes on from there."])
            self.stop.obey()

    def _say_stopping(self, name: str, how: str) -> None:
        """At once, beside whatever is being written: a step may take long."""
        if self.is_main:
            line = f"\n{name}: {self._doing}, then saving; {how} to stop at once.\n"
            with suppress(OSError):  # standard error is closed
                os.write(STDERR, line.encode())

    def _steps(self, logbook: Logbook, line: ProgressLine, meter: StepMeter) -> None:
        with signals_blocked():
            batches = iter(self._loader()) if self.progress < 1.0 else iter(())
        saved_at = time.monotonic()
        self.before_steps(logbook)
        while self.progress < 1.0:
            ahead = self._next(batches)
            if self.bad is not None and ahead.batch is not None:
                ahead = ahead._replace(error=self.bad.meet(ahead.batch.bad, ahead.batch.num_samples))
            if self._is_stopped(ahead.error):
                break
            self._one_step(ahead, meter)
            self._doing = f"leaving what follows step {self.step:,}"
            line.update(self.progress, meter.note())
            if self.is_due(self.loop_config.report_every):
                skipped = {"optim/skipped_steps": float(self.guard.num_skipped)} if self.loop_config.max_skipped_steps else {}
                logbook.numbers(self.step, self.report(meter) | skipped | (self.bad.numbers() if self.bad else {}))
            try:
                self.after_step(logbook)
            except (ValueError, OSError):  # data that is held out, or drawn: what was learned is as good as ever
                if self.ranks.count == 1:
                    self.save_if_possible()
                raise
            is_late = self.ranks.any(time.monotonic() - saved_at > 60 * self.loop_config.save_minutes)
            if self.is_due(self.loop_config.save_every) or is_late:
                self.save_if_possible()
                saved_at = time.monotonic()

    def _next(self, batches: Any) -> "_Ahead":
        """What the next step learns from, or why it cannot be had; neither where a signal has come."""
        started, batch, error = time.monotonic(), None, None
        self._doing = f"waiting for the data of step {self.step + 1:,}"
        try:
            batch = None if self.stop.made else next(batches)
        except Exception as caught:  # of whatever kind, all processes leave together
            error = caught
        return _Ahead(batch, error, time.monotonic() - started)

    def _leave(self, error: Exception | None) -> NoReturn:
        """Save what was learned, and say why there is no next step."""
        if self.bad is not None:
            self.bad.is_over = True
        if self.step:
            self.save_if_possible()
        lost: Exception = DataError(f"Another process could not make step {self.step + 1:,}, and says why.")
        if error is not None:
            max_bad = 0.0 if self.bad is None else self.bad.max_bad
            lost = lost_step(error, self.step + 1, self.datasets(), self.folder, self.is_saved, max_bad)
        self.ranks.barrier()  # a launcher ends all processes when the first one leaves: all wait until the reason is logged
        raise lost from (None if lost is error else error)

    def _is_stopped(self, error: Exception | None = None) -> bool:
        """Whether a signal has come to any process; then all know which; one that comes meanwhile waits.

        error: why this process has no next step; it ends the run on all processes.
        """
        agreed = self.ranks.all_max(self.stop.number if error is None else NO_DATA)
        if agreed == NO_DATA:
            self._leave(error)
        if agreed:
            self.stop.number = agreed
        return agreed != 0

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; at the end everything does. 0 is never."""
        return every > 0 and (self.step % every == 0 or self.progress >= 1.0)

    def rate(self) -> float:
        """The schedule's factor for the next update."""
        return self.loop_config.schedule.factor(self.step, self.progress)

    def update(self, batch: Any, meter: Any) -> None:
        """One step of learning: its gradient, and the update, unless the gradient or the loss of any process is not finite.

        Raises:
            NotFiniteError: it is not, and no more steps may be skipped.
        """
        gradient = self.compute_gradient(batch)
        if self.guard.passes(gradient.norm, gradient.loss):
            self.apply_gradient(gradient, meter)
            return
        self.forget_step()
        self.guard.skip(self.step + 1, float(gradient.norm), float(gradient.loss), self.name_samples(batch))

    def _one_step(self, ahead: "_Ahead", meter: StepMeter) -> None:
        started = time.monotonic()
        self._doing = f"finishing step {self.step + 1:,}"
        with keyed_rng(self.seed(), self.step, self.ranks.number, self.accelerator.device):
            self.update(ahead.batch, meter)
        seconds = ahead.seconds + time.monotonic() - started
        self.step += 1
        # With a budget in minutes all ranks go by the first one's clock.
        self.seconds += self.ranks.broadcast(seconds) if self.loop_config.budget.max_minutes is not None else seconds
        meter.add_time(seconds, ahead.seconds)

    def _loader(self) -> DataLoader:
        data = self.data()
        ahead = Subset(data, range(self.step, len(data)))  # pyright: ignore[reportArgumentType]
        workers = loader_processes(self.loop_config.num_workers)
        return DataLoader(
            ahead,
            batch_size=None,
            sampler=SequentialSampler(ahead),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=init_worker,
            pin_memory=self.accelerator.device.type == "cuda",
        )


@contextmanager
def keyed_rng(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """In this context torch's generators give the same numbers whenever the key is the same (dropout, replaced codes), so that
    checkpoints need no generator's state; outside of it nothing has changed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 1024 + rank)
        yield
