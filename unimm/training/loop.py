"""The loop that all trainings share: steps until the budget is spent, reports, checkpoints, interruptions.

What a step does, what is reported and what is kept is a subclass' affair. With several processes, whatever depends on a clock,
on a signal, on a disk or on a number that is none is agreed on first, so that all of them do the same after the same step.

A checkpoint that cannot be written (a full disk) does not end the run, which may find room at the next one, but the third in a
row does, and so does the last one: computing what will be lost is worth nothing.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch.utils.data import DataLoader, SequentialSampler, Subset

from unimm.devices import PRECISIONS, choose_device, choose_precision, why_not_compile
from unimm.ranks import Ranks
from unimm.training.acceleration import make_accelerator
from unimm.training.chance import keyed_chance
from unimm.training.checkpoint import Checkpoint, SaveError, find_checkpoint, open_checkpoint, save_checkpoint
from unimm.training.interrupt import StopRequest, held_back, step_back
from unimm.training.logbook import Logbook, ProgressLine
from unimm.training.nonfinite import FiniteGuard, NotFiniteError
from unimm.training.schedule import Budget, Schedule
from unimm.training.sharding import gather
from unimm.training.trackers import Tracker, TrackingConfig, open_trackers

MAX_FAILED_SAVES = 3
"""So many checkpoints in a row that cannot be written end a run."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how fast, and what is written when.

    precision: "no" (fp32), "bf16" (autocast; master weights stay fp32), or "auto": which of them is faster on the device.
    compile: compile the heavy parts with torch.compile, where that works (on a CPU it needs a C++ compiler).
    report_every, save_every: in steps; 0 is never (a checkpoint at the end is always written).
    save_minutes: a checkpoint also after so many minutes since the last one.
    num_workers: processes that make batches ahead.
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
        if self.precision not in PRECISIONS:
            raise ValueError(f"Unknown precision '{self.precision}': use {', '.join(PRECISIONS)}.")


class Meter(Protocol):
    """Numbers between two reports."""

    def add_time(self, seconds: float, waited: float) -> None: ...

    def note(self) -> str: ...


class Loop:
    """One run in one folder. A subclass calls `resume` at the end of its constructor.

    `record` is what the caller wants kept in every checkpoint of the run, JSON-able; `unimm.cli.resuming` reads it.
    """

    def __init__(self, config: LoopConfig, folder: Path, device: str | None) -> None:
        self.loop_config = config
        self.folder = folder
        self.precision = choose_precision(config.precision, choose_device(device))
        self.accelerator = make_accelerator(choose_device(device), self.precision)
        self.is_main = self.accelerator.is_main_process
        self.ranks = Ranks(self.accelerator.process_index, self.accelerator.num_processes)
        self.stop = StopRequest()
        self.guard = FiniteGuard(self.ranks, config.max_skipped_steps)
        self.step = 0
        self.seconds = 0.0
        self.record: dict[str, Any] = {}
        self._saved_step, self._failed_saves = -1, 0
        self._trackers: list[Tracker] = []

    @property
    def muon_dtype(self) -> torch.dtype:
        """Of Muon's products: bfloat16 as its authors have it, but where a device would only emulate it."""
        return torch.bfloat16 if choose_precision("auto", self.accelerator.device) == "bf16" else torch.float32

    def track(self, config: TrackingConfig, settings: dict[str, Any]) -> None:
        """Tell trackers of this run, from now on; all processes ask for it.

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
        """Of what chance a step takes (dropout)."""
        raise NotImplementedError

    def update(self, batch: Any, meter: Any) -> None:
        """One step of learning, unless `may_update` forbids it."""
        raise NotImplementedError

    def name_samples(self, batch: Any) -> list[str]:
        """What a person finds the samples of a batch by."""
        raise NotImplementedError

    def forget_step(self) -> None:
        """Undo what a step leaves behind before its update: gradients, and whatever else a forward changes."""
        raise NotImplementedError

    def report(self, meter: Any) -> dict[str, float]:
        """Numbers since the last report; every rank is asked at the same step."""
        raise NotImplementedError

    def before_steps(self, logbook: Logbook) -> None:
        """What the run left undone when it was stopped."""

    def after_step(self, logbook: Logbook) -> None:
        """Samples, validation: whatever else a step may be followed by; what takes long leaves early when `stop` is made."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        raise NotImplementedError

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up what `tensors` and `state` kept."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors, step and clock; JSON-able."""
        return {}

    # -- the loop -----------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.loop_config.budget.progress(self.step, self.seconds)

    def run(self, title: str, meter: Meter) -> None:
        """Steps to the end of the budget; always leaves a checkpoint behind, also when interrupted.

        Raises:
            NotFiniteError: a loss or gradient is not finite, and no more steps may be skipped.
            SaveError: a checkpoint could not be written, which was the last or the third in a row.
        """
        logbook = Logbook(self.folder, self.is_main, self._trackers)
        logbook.rewind(self.step)
        line = ProgressLine(title, self.is_main)
        try:
            with self.stop:
                try:
                    self._steps(logbook, line, meter)
                except NotFiniteError:
                    self.save()  # all is as it was before the step
                    raise
                self.save()
        finally:
            line.close()
            logbook.close()
        if self._is_stopped():  # a request that came with the last step counts too
            self.stop.obey()

    def _steps(self, logbook: Logbook, line: ProgressLine, meter: Meter) -> None:
        with held_back():
            batches = iter(self._loader()) if self.progress < 1.0 else iter(())
        saved_at = time.monotonic()
        self.before_steps(logbook)
        while self.progress < 1.0 and not self._is_stopped():
            self._one_step(batches, meter)
            line.update(self.progress, meter.note())
            if self.is_due(self.loop_config.report_every):
                skipped = {"optim/skipped_steps": float(self.guard.num_skipped)} if self.loop_config.max_skipped_steps else {}
                logbook.numbers(self.step, self.report(meter) | skipped)
            self.after_step(logbook)
            is_late = self.ranks.any(time.monotonic() - saved_at > 60 * self.loop_config.save_minutes)
            if self.is_due(self.loop_config.save_every) or is_late:
                self._save_if_possible()
                saved_at = time.monotonic()

    def _is_stopped(self) -> bool:
        """Whether a signal has come to any process; then all know which; one that comes meanwhile waits."""
        agreed = self.ranks.largest(self.stop.number)
        if agreed:
            self.stop.number = agreed
        return agreed != 0

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; at the end everything does. 0 is never."""
        return every > 0 and (self.step % every == 0 or self.progress >= 1.0)

    def rate(self) -> float:
        """The schedule's factor for the next update."""
        return self.loop_config.schedule.factor(self.step, self.progress)

    def may_update(self, norm: torch.Tensor, loss: torch.Tensor, batch: Any) -> bool:
        """Whether the weights may follow this gradient: not where it, or the loss of any process, would ruin them.

        Args:
            norm, loss: scalars, of the gradient of all processes and of this process' share of the loss.
            batch: whose samples are named.

        Raises:
            NotFiniteError: they may not, and no more steps may be skipped.
        """
        if self.guard.passes(norm, loss):
            return True
        self.forget_step()
        self.guard.skip(self.step + 1, float(norm), float(loss), self.name_samples(batch))
        return False

    def _one_step(self, batches: Any, meter: Meter) -> None:
        started = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - started
        with keyed_chance(self.seed(), self.step, self.ranks.number, self.accelerator.device):
            self.update(batch, meter)
        seconds = time.monotonic() - started
        self.step += 1
        # With a budget in minutes all ranks go by the first one's clock.
        self.seconds += self.ranks.first(seconds) if self.loop_config.budget.max_minutes is not None else seconds
        meter.add_time(seconds, waited)

    def _loader(self) -> DataLoader:
        data = self.data()
        ahead = Subset(data, range(self.step, len(data)))  # pyright: ignore[reportArgumentType]
        workers = self.loop_config.num_workers
        return DataLoader(
            ahead,
            batch_size=None,
            sampler=SequentialSampler(ahead),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=step_back,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, on the first process, unless there is one; the others wait until it is whole.

        Raises:
            SaveError: it could not be written; raised on every process.
        """
        if self._saved_step == self.step:
            return
        failure: SaveError | None = None
        tensors = gather(self.tensors(), keep=self.is_main)
        if self.is_main:
            state = {"seconds": self.seconds, "skipped": self.guard.num_skipped, "record": self.record, **self.state()}
            try:
                save_checkpoint(self.folder / "checkpoints", Checkpoint(self.step, tensors, state))
            except SaveError as error:
                failure = error
        self.ranks.wait()
        if self.ranks.any(failure is not None):
            raise failure or SaveError(f"The first process could not write the checkpoint of step {self.step}.")
        self._saved_step = self.step

    def _save_if_possible(self) -> None:
        try:
            self.save()
        except SaveError as error:
            self._failed_saves += 1
            if self._failed_saves >= MAX_FAILED_SAVES:
                raise
            if self.is_main:
                logger.warning(f"{error} Training goes on; failure {self._failed_saves} of at most {MAX_FAILED_SAVES}.")
        else:
            self._failed_saves = 0

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run's folder, if there is one.

        Raises:
            ValueError: it is one of another run, or not every process finds it.
        """
        folder = self.folder / "checkpoints"
        found = find_checkpoint(folder) if self.is_main else None  # once for all, for it reads every byte
        step = int(self.ranks.first(-1 if found is None else found))
        if step < 0:
            return
        checkpoint = open_checkpoint(folder, step)
        if self.ranks.any(checkpoint is None):
            raise ValueError(f"Not every process finds the checkpoint of step {step} in {folder}: name one that they share.")
        assert checkpoint is not None
        try:
            self.restore(checkpoint)
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{self.folder} holds a run of another model or stage, or of other optimizers: name another folder."
            ) from error
        self.step = self._saved_step = checkpoint.step
        self.seconds, self.guard.num_skipped = checkpoint.state["seconds"], checkpoint.state.get("skipped", 0)
