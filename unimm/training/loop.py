"""The loop that all trainings share: steps until the budget is spent, reports, checkpoints, signals.

A step is a batch, one exchange between the processes (`step_exchange`), its gradient (`compute_gradient`, a subclass'), and the
update (`apply_gradient`, a subclass'), which a gradient that is not finite does not make. Whatever depends on a clock, a signal
or a disk is agreed on in the exchange, so that all processes do the same after the same step. Nothing of a step waits for the
device: what it has computed is heard when the next gradient is on its way (`settle`), or before it is reported or saved.
"""

import logging
import math
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from unimm.data.records import Dataset
from unimm.runtime.devices import choose_device, has_bf16, why_not_compile
from unimm.training.acceleration import computing_with, make_accelerator, meet, settle_precision, settle_threads
from unimm.training.bad_records import DataError, lost_step
from unimm.training.checkpoint import CHECKPOINTS
from unimm.training.finite import NotFiniteError, ScalarsOnTheirWay
from unimm.training.logbook import Logbook, ProgressLine
from unimm.training.loop_config import LoopConfig
from unimm.training.run_state import Resumable
from unimm.training.signals import StopRequest, signals_blocked
from unimm.training.step_exchange import Told, exchange
from unimm.training.step_inputs import Ahead, keyed_rng, loader_of
from unimm.training.trackers import Tracker, TrackingConfig, open_trackers

STDERR = 2
logger = logging.getLogger(__name__)


class Gradient(NamedTuple):
    """What a step has computed, before any weight has moved: the gradients themselves lie in the parameters.

    norm, loss: scalars, of the gradient of all processes, and of this process' share of the loss; where the loss of any is not
    finite, the norm is not. outcome: what else the subclass wants to report once the step counts.
    """

    norm: torch.Tensor
    loss: torch.Tensor
    outcome: Any = None


class _Unsettled(NamedTuple):
    """A step whose update is on its way to the device, which the host has not yet heard to be finite. step: those before it."""

    step: int
    gradient: Gradient
    batch: Any
    meter: Any
    norm_and_loss: ScalarsOnTheirWay


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
        super().__init__(folder, ranks, config.max_skipped_steps, precision, config.checkpoint)
        self.say(lines)
        self.accelerator = make_accelerator(choose_device(device), precision)
        self.stop = StopRequest(self._say_stopping)
        self._doing = "starting"
        self._unsettled: _Unsettled | None = None
        self._unshared_seconds = 0.0
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

    def step_counts(self, batch: Any) -> list[float]:
        """What this process adds to numbers that the gradient needs from all; at most `step_exchange.MOST_COUNTS`."""
        return []

    def compute_gradient(self, batch: Any, totals: list[float] | None = None) -> Gradient:
        """Forward and backward of a step. totals: `step_counts` of all processes, added up."""
        raise NotImplementedError

    def apply_gradient(self, gradient: Gradient) -> None:
        """Update the weights; where the gradient's norm is not finite, change nothing. No number may be waited for here."""
        raise NotImplementedError

    def count_step(self, gradient: Gradient, batch: Any, meter: Any, norm: float | None, step: int) -> None:
        """A step is over; called before the next one updates anything. norm: None where it was skipped. step: those before."""
        raise NotImplementedError

    def name_samples(self, batch: Any, step: int) -> list[str]:
        """What a person finds the samples of a batch by; so many steps came before it."""
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
            self.close()
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
            batches = iter(self._loader() if self.progress < 1.0 else ())
        saved_at = time.monotonic()
        self.before_steps(logbook)
        while self.progress < 1.0:
            self._doing = f"waiting for the data of step {self.step + 1:,}"
            ahead = Ahead.of(batches, self.stop)
            if self.bad is not None and ahead.batch is not None:
                ahead = ahead._replace(error=self.bad.meet(ahead.batch.bad, ahead.batch.num_samples, ahead.batch.drawn))
            agreed = self._agree(ahead, time.monotonic() - saved_at > 60 * self.loop_config.save_minutes)
            if agreed.signal:
                break
            if agreed.is_late:
                self.begin_save()
                saved_at = time.monotonic()
            self._one_step(ahead, meter, agreed.counts)
            if self.bad is not None:
                self.bad.is_ahead = False
            self._doing = f"leaving what follows step {self.step:,}"
            line.update(self.progress, lambda: (self.settle(), meter.note())[1])
            if self.is_due(self.loop_config.report_every):
                self.settle()
                skipped = {"optim/skipped_steps": float(self.guard.num_skipped)} if self.loop_config.max_skipped_steps else {}
                logbook.numbers(self.step, self.report(meter) | skipped | (self.bad.numbers() if self.bad else {}))
            try:
                self.after_step(logbook)
            except (ValueError, OSError):  # data that is held out, or drawn: what was learned is as good as ever
                if self.ranks.count == 1:
                    self.save_if_possible()
                raise
            if self.is_due(self.loop_config.save_every):
                self.begin_save()
                saved_at = time.monotonic()
        self.settle()

    def _leave(self, error: Exception | None) -> NoReturn:
        """Save what was learned, and say why there is no next step."""
        if self.step:
            self.save_if_possible()
        lost: Exception = DataError(f"Another process could not make step {self.step + 1:,}, and says why.")
        if error is not None:
            max_bad = 0.0 if self.bad is None else self.bad.max_bad
            lost = lost_step(error, self.step + 1, self.datasets(), self.folder, self.is_saved, max_bad)
        self.ranks.barrier()  # a launcher ends all processes when the first one leaves: all wait until the reason is logged
        raise lost from (None if lost is error else error)

    def _agree(self, ahead: Ahead, is_late: bool) -> Told:
        """What all processes say before a step; a signal to any is then known to all, and one that comes meanwhile waits.

        Raises:
            Exception: what ends the run where a process has no next step.
        """
        counts = self.step_counts(ahead.batch) if ahead.batch is not None and ahead.error is None else []
        flags = (ahead.error is not None, is_late, self.writer.has_failed)
        agreed = exchange(self.ranks, Told(self.stop.number, *flags, self._unshared_seconds, counts))
        self._unshared_seconds = 0.0
        self.seconds += agreed.seconds
        if agreed.is_lost:
            self._leave(ahead.error)
        self.stop.number = agreed.signal or self.stop.number
        if self.writer.has_finished or (agreed.has_failed and not agreed.signal):
            self.finish_save()
        return agreed

    def _is_stopped(self) -> bool:
        """Whether a signal has come to any process; then all know which."""
        agreed = self.ranks.all_max(self.stop.number)
        self.stop.number = agreed or self.stop.number
        return agreed != 0

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; at the end everything does. 0 is never."""
        return every > 0 and (self.step % every == 0 or self.progress >= 1.0)

    def rate(self) -> float:
        """The schedule's factor for the next update."""
        return self.loop_config.schedule.factor(self.step, self.progress)

    def update(self, batch: Any, meter: Any, totals: list[float] | None = None) -> None:
        """One step of learning: its gradient, and the update, unless the gradient or the loss of any process is not finite,
        which `settle` finds out.

        Raises:
            NotFiniteError: the step before was not, and no more steps may be skipped.
        """
        gradient = self.compute_gradient(batch, totals)
        try:
            self.settle()
        except NotFiniteError:
            self.forget_step()
            raise
        self.apply_gradient(gradient)
        numbers = ScalarsOnTheirWay(gradient.norm, gradient.loss)
        self._unsettled = _Unsettled(self.step, gradient, batch, meter, numbers)

    def settle(self) -> bool:
        """Wait for what the last step has computed, and count it, or report that it was skipped; before anything is read or
        written that it changes. Says whether it counts; True where all is settled.

        Raises:
            NotFiniteError: it does not, and no more steps may be skipped; all is as it was before it.
        """
        last, self._unsettled = self._unsettled, None
        if last is None:
            return True
        norm, loss = last.norm_and_loss.read()
        is_finite = math.isfinite(norm)
        if not is_finite:
            try:
                self.guard.skip(last.step + 1, norm, loss, self.name_samples(last.batch, last.step))
            except NotFiniteError:
                self.step = last.step
                raise
        self.count_step(last.gradient, last.batch, last.meter, norm if is_finite else None, last.step)
        return is_finite

    def save(self) -> None:
        """As `Resumable.save`, of all steps so far."""
        self.settle()
        super().save()

    def begin_save(self) -> None:
        """As `Resumable.begin_save`, of all steps so far."""
        self.settle()
        super().begin_save()

    def _one_step(self, ahead: Ahead, meter: StepMeter, totals: list[float]) -> None:
        started = time.monotonic()
        self._doing = f"finishing step {self.step + 1:,}"
        with keyed_rng(self.seed(), self.step, self.ranks.number, self.accelerator.device):
            self.update(ahead.batch, meter, totals)
        seconds = ahead.seconds + time.monotonic() - started
        self.step += 1
        if self.ranks.count == 1:
            self.seconds += seconds
        else:  # all go by the first one's clock, which they hear before their next step
            self._unshared_seconds += seconds
        meter.add_time(seconds, ahead.seconds)

    def _loader(self) -> DataLoader:
        return loader_of(self.data(), self.step, self.loop_config.num_workers, self.accelerator.device)
