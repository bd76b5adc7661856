"""The trainer: batches -> weights, one loop for one CPU and for many GPUs.

A step is: the step's batches, their global target counts, forward and backward with every sum divided once by its global
count, clip, update. `accelerate` launches, wraps and casts; data order, accumulation and checkpoints are ours, so that the loss
does not depend on how a global batch is cut into ranks and micro-batches, and a run resumes to the bit.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch.utils.data import DataLoader, SequentialSampler, Subset

from unimm.batch import Batch
from unimm.data.mixture import Mixture, StepBatches
from unimm.devices import choose_device
from unimm.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from unimm.training.interrupt import StopRequest, leave_to_parent
from unimm.training.logbook import Logbook, ProgressLine
from unimm.training.meter import Meter
from unimm.training.objectives import Objective
from unimm.training.optim import OptimizerConfig, Optimizers
from unimm.training.schedule import Budget, Schedule
from unimm.training.stages import Stage, freeze, show, stage_table


@dataclass(frozen=True)
class TrainerConfig:
    """How a run goes.

    budget, schedule, optimizer, stage: how long, how fast, by what, and who learns.
    num_positions: row length T that sequences are packed into.
    num_micro_batches: forward passes a rank takes for one update.
    weights: weight of each mean loss by name: of "text" and "codes", or of "words"; 1 where it is not named.
    precision: "no" (fp32) or "bf16" (autocast; master weights stay fp32).
    compile: compile trunk and vision tower with torch.compile.
    report_every, sample_every, save_every: in steps; 0 is never (a checkpoint at the end is always written).
    save_minutes: a checkpoint also after so many minutes since the last one.
    num_workers: processes that make batches ahead.
    """

    budget: Budget
    stage: Stage
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    num_positions: int = 512
    num_micro_batches: int = 1
    weights: dict[str, float] = field(default_factory=dict)
    precision: str = "no"
    compile: bool = False
    report_every: int = 20
    sample_every: int = 0
    save_every: int = 0
    save_minutes: float = 2.0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"Unknown precision '{self.precision}': use no or bf16.")


class Trainer:
    """One run of one stage.

    Args:
        objective: what is learned, with the model inside it.
        mixture: what is learned, by step.
        config: how the run goes.
        folder: metrics, samples and checkpoints go below it; a checkpoint found there is resumed.
        device: where to train; default: the best that is here.
        sample: called as sample(step, logbook) every `sample_every` steps on the first process, with the model in eval mode.
    """

    def __init__(
        self,
        objective: Objective,
        mixture: Mixture,
        config: TrainerConfig,
        folder: Path,
        device: str | None = None,
        sample: Callable[[int, Logbook], None] | None = None,
    ) -> None:
        self.config = config
        self.mixture = mixture
        self.folder = folder
        self.sample = sample
        self.objective = objective
        self.model = model = objective.model
        freeze(objective.parts(), config.stage)
        # Frozen parts make parameters without gradients, and a rank's step may hold no image: neither may stop DDP.
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
        # Unless told that it is a CPU, accelerate makes every process of a machine without GPUs a run of its own.
        is_cpu = choose_device(device).type == "cpu"
        self.accelerator = Accelerator(mixed_precision=config.precision, cpu=is_cpu, kwargs_handlers=[ddp])
        self.is_main = self.accelerator.is_main_process
        num_parameters = sum(p.numel() for p in objective.parameters())
        show(stage_table(objective.parts(), config.stage, num_parameters), self.is_main)
        if config.compile:
            model.trunk.compile(dynamic=True)
            model.pixels.tower.compile(dynamic=True)
        self.wrapped = self.accelerator.prepare(objective)
        self.optimizers = Optimizers(objective.parts(), config.stage.learns, config.optimizer)
        self.names = {id(p): name for name, p in objective.named_parameters()}
        self.step = 0
        self.seconds = 0.0
        self.resume()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the end of the budget; always leaves a checkpoint behind, also when interrupted."""
        logbook = Logbook(self.folder, self.is_main)
        logbook.rewind(self.step)
        line = ProgressLine(f"training ({self.config.stage.name})", self.is_main)
        meter = Meter()
        saved_at = time.monotonic()
        try:
            with StopRequest() as stop:
                batches = iter(self._loader()) if self.progress < 1.0 else iter(())
                while self.progress < 1.0 and not self._any_rank(stop.made):
                    started = time.monotonic()
                    micro_batches = next(batches)
                    waited = time.monotonic() - started
                    self._update(micro_batches, meter)
                    self._tick(time.monotonic() - started)
                    meter.add_time(time.monotonic() - started, waited)
                    line.update(self.progress, meter.note())
                    if self._due(self.config.report_every):
                        logbook.numbers(self.step, meter.report(self._rate(), self.accelerator))
                    if self._due(self.config.sample_every) and self.sample is not None:
                        self._sample(logbook)
                    is_late = self._any_rank(time.monotonic() - saved_at > 60 * self.config.save_minutes)
                    if self._due(self.config.save_every) or is_late:
                        self.save()
                        saved_at = time.monotonic()
            self.save()
        finally:
            line.close()
            logbook.close()
        if self.progress < 1.0:
            stop.obey()

    def _any_rank(self, says: bool) -> bool:
        """Whether any rank says so: clocks and signals differ between ranks, but all must do the same after the same step."""
        if self.accelerator.num_processes == 1:
            return says
        flag = torch.tensor([float(says)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.config.budget.progress(self.step, self.seconds)

    def _update(self, micro_batches: list[Batch], meter: Meter) -> None:
        """One optimizer step over the micro-batches of this rank."""
        self.wrapped.train()
        counts = self._global_counts(micro_batches)
        last = len(micro_batches) - 1
        for number, batch in enumerate(micro_batches):
            batch = batch.to(self.accelerator.device)
            with self.accelerator.no_sync(self.wrapped) if number < last else nullcontext():
                tallies = self.wrapped(batch)
                loss = sum(self.config.weights.get(name, 1.0) * tally.loss / counts[name] for name, tally in tallies.items())
                # DDP averages gradients over ranks; the sums are already divided by global counts.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            meter.add_batch(batch, tallies)
        learned = [p for p in self.objective.parameters() if p.requires_grad]
        if self.config.optimizer.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(learned, self.config.optimizer.max_grad_norm)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in learned if p.grad is not None])
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"The gradient of step {self.step + 1} is not finite; the weights are as they were before it. "
                f"Lower the learning rate or look at that step's samples."
            )
        meter.grad_norm = float(norm)
        self.optimizers.scale(self._rate())
        self.optimizers.step()

    def _global_counts(self, micro_batches: list[Batch]) -> dict[str, torch.Tensor]:
        """What each sum is divided by: its count over all micro-batches of all ranks, at least 1."""
        own = [self.objective.counts(batch) for batch in micro_batches]
        names = list(own[0])
        counts = torch.stack([torch.stack([counted[name] for counted in own]).sum() for name in names])
        total = self.accelerator.reduce(counts.to(self.accelerator.device), "sum")
        assert isinstance(total, torch.Tensor)
        return dict(zip(names, total.clamp(min=1.0), strict=True))

    def _rate(self) -> float:
        return self.config.schedule.factor(self.step, self.progress)

    def _tick(self, seconds: float) -> None:
        """Count one step; with a budget in minutes all ranks go by the first one's clock."""
        self.step += 1
        if self.config.budget.max_minutes is not None and self.accelerator.num_processes > 1:
            clock = torch.tensor([seconds if self.is_main else 0.0], device=self.accelerator.device)
            seconds = float(self.accelerator.reduce(clock, "sum"))  # pyright: ignore[reportArgumentType]
        self.seconds += seconds

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.progress >= 1.0)

    def _sample(self, logbook: Logbook) -> None:
        if self.is_main and self.sample is not None:
            self.model.eval()
            with torch.inference_mode():
                self.sample(self.step, logbook)
        self.accelerator.wait_for_everyone()

    def _loader(self) -> DataLoader:
        accelerator = self.accelerator
        steps = StepBatches(
            self.mixture,
            self.config.num_positions,
            self.config.num_micro_batches,
            accelerator.process_index,
            accelerator.num_processes,
        )
        ahead = Subset(steps, range(self.step, len(steps)))
        workers = self.config.num_workers
        return DataLoader(
            ahead,
            batch_size=None,
            sampler=SequentialSampler(ahead),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=leave_to_parent,
            pin_memory=accelerator.device.type == "cuda",
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, on the first process."""
        if self.is_main:
            tensors = {f"weights/{name}": tensor for name, tensor in self.objective.state_dict().items()}
            for prefix, optimizer in self.optimizers.all.items():
                tensors |= optimizer_tensors(optimizer, self.names, prefix)
            state = {"seconds": self.seconds, "stage": self.config.stage.name}
            save_checkpoint(self.folder / "checkpoints", Checkpoint(self.step, tensors, state))
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run's folder, if there is one.

        Raises:
            ValueError: it is one of another stage or of another model.
        """
        checkpoint = load_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        weights = {n.removeprefix("weights/"): t for n, t in checkpoint.tensors.items() if n.startswith("weights/")}
        own, kept = self.config.stage.name, checkpoint.state.get("stage", self.config.stage.name)
        if own != kept:
            raise ValueError(f"{self.folder} holds a run of the stage '{kept}', not '{own}': name another folder.")
        try:
            self.objective.load_state_dict(weights)
            for prefix, optimizer in self.optimizers.all.items():
                restore_optimizer(optimizer, checkpoint.tensors, self.names, prefix)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{self.folder} holds a run of another model or stage: name another folder.") from error
        self.step = checkpoint.step
        self.seconds = checkpoint.state["seconds"]
