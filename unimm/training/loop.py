"""The loop that all trainings share: steps until the budget is spent, reports, checkpoints, interruptions.

What a step does, what is reported and what is kept is a subclass' affair. With several processes, whatever depends on a clock
or on a signal is agreed on first, so that all of them do the same after the same step.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from rich.console import Console
from torch.utils.data import DataLoader, SequentialSampler, Subset

from unimm.devices import choose_device, keep_memory, why_not_compile
from unimm.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from unimm.training.interrupt import StopRequest, step_back
from unimm.training.logbook import Logbook, ProgressLine
from unimm.training.schedule import Budget, Schedule


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how fast, and what is written when.

    precision: "no" (fp32) or "bf16" (autocast; master weights stay fp32).
    compile: compile the heavy parts with torch.compile, where that works (on a CPU it needs a C++ compiler).
    report_every, save_every: in steps; 0 is never (a checkpoint at the end is always written).
    save_minutes: a checkpoint also after so many minutes since the last one.
    num_workers: processes that make batches ahead.
    """

    budget: Budget
    schedule: Schedule = field(default_factory=Schedule)
    precision: str = "no"
    compile: bool = False
    report_every: int = 20
    save_every: int = 0
    save_minutes: float = 2.0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"Unknown precision '{self.precision}': use no or bf16.")


class Meter(Protocol):
    """Numbers between two reports."""

    def add_time(self, seconds: float, waited: float) -> None: ...

    def note(self) -> str: ...


class Loop:
    """One run in one folder. A subclass calls `resume` at the end of its constructor."""

    def __init__(self, config: LoopConfig, folder: Path, device: str | None) -> None:
        self.loop_config = config
        self.folder = folder
        # Frozen parts make parameters without gradients, and a rank's step may hold no image: neither may stop DDP.
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
        # Unless told that it is a CPU, accelerate makes every process of a machine without GPUs a run of its own.
        is_cpu = choose_device(device).type == "cpu"
        if is_cpu:
            keep_memory()
        self.accelerator = Accelerator(mixed_precision=config.precision, cpu=is_cpu, kwargs_handlers=[ddp])
        self.is_main = self.accelerator.is_main_process
        self.step = 0
        self.seconds = 0.0

    def compiles(self) -> bool:
        """Whether to compile: where it is asked for and works; where it does not, the run says so and goes on."""
        if not self.loop_config.compile:
            return False
        reason = why_not_compile()
        if reason is not None and self.is_main:
            Console().print(f"Training goes on without torch.compile, which does not work here: {reason}")
        return reason is None

    # -- what a subclass says -----------------------------------------------------------------------------------------

    def data(self) -> Any:
        """Batches by step: anything with a length and random access."""
        raise NotImplementedError

    def update(self, batch: Any, meter: Any) -> None:
        """One step of learning."""
        raise NotImplementedError

    def report(self, meter: Any) -> dict[str, float]:
        """Numbers since the last report; every rank is asked at the same step."""
        raise NotImplementedError

    def after_step(self, logbook: Logbook) -> None:
        """Samples, validation: whatever else a step may be followed by."""

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
        """Steps to the end of the budget; always leaves a checkpoint behind, also when interrupted."""
        logbook = Logbook(self.folder, self.is_main)
        logbook.rewind(self.step)
        line = ProgressLine(title, self.is_main)
        saved_at = time.monotonic()
        try:
            with StopRequest() as stop:
                batches = iter(self._loader()) if self.progress < 1.0 else iter(())
                while self.progress < 1.0 and not self._any_rank(stop.made):
                    self._one_step(batches, meter)
                    line.update(self.progress, meter.note())
                    if self.is_due(self.loop_config.report_every):
                        logbook.numbers(self.step, self.report(meter))
                    self.after_step(logbook)
                    is_late = self._any_rank(time.monotonic() - saved_at > 60 * self.loop_config.save_minutes)
                    if self.is_due(self.loop_config.save_every) or is_late:
                        self.save()
                        saved_at = time.monotonic()
            self.save()
        finally:
            line.close()
            logbook.close()
        if stop.made or self.progress < 1.0:  # a request that came with the last step counts too
            stop.obey()

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; at the end everything does. 0 is never."""
        return every > 0 and (self.step % every == 0 or self.progress >= 1.0)

    def rate(self) -> float:
        """The schedule's factor for the next update."""
        return self.loop_config.schedule.factor(self.step, self.progress)

    def check_finite(self, norm: torch.Tensor) -> None:
        """Stop before an update that would ruin the weights.

        Raises:
            FloatingPointError: the norm of the gradient is infinite or not a number.
        """
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"The gradient of step {self.step + 1} is not finite; the weights are as they were before it. "
                f"Lower the learning rate or look at that step's samples."
            )

    def _one_step(self, batches: Any, meter: Meter) -> None:
        started = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - started
        self.update(batch, meter)
        seconds = time.monotonic() - started
        self.step += 1
        self.seconds += self._first_clock(seconds)
        meter.add_time(seconds, waited)

    def _first_clock(self, seconds: float) -> float:
        """With a budget in minutes all ranks go by the first one's clock."""
        if self.loop_config.budget.max_minutes is None or self.accelerator.num_processes == 1:
            return seconds
        clock = torch.tensor([seconds if self.is_main else 0.0], device=self.accelerator.device)
        return float(self.accelerator.reduce(clock, "sum"))  # pyright: ignore[reportArgumentType]

    def _any_rank(self, says: bool) -> bool:
        """Whether any rank says so: clocks and signals differ between ranks, but all must do the same after the same step."""
        if self.accelerator.num_processes == 1:
            return says
        flag = torch.tensor([float(says)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))

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
        """Write a checkpoint of this step, on the first process."""
        if self.is_main:
            state = {"seconds": self.seconds, **self.state()}
            save_checkpoint(self.folder / "checkpoints", Checkpoint(self.step, self.tensors(), state))
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run's folder, if there is one.

        Raises:
            ValueError: it is one of another run.
        """
        checkpoint = load_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        try:
            self.restore(checkpoint)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{self.folder} holds a run of another model or stage: name another folder.") from error
        self.step, self.seconds = checkpoint.step, checkpoint.state["seconds"]


def weights_of(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under `prefix/`, without it."""
    return {n.removeprefix(f"{prefix}/"): t for n, t in checkpoint.tensors.items() if n.startswith(f"{prefix}/")}
