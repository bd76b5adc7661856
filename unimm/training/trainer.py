"""The trainer of unified models: batches -> weights, the same for one CPU and for many GPUs.

A step is: the step's batches, their global target counts, forward and backward with every sum divided once by its global
count, clip, update. `accelerate` launches, wraps and casts; data order, accumulation and checkpoints are ours, so that the loss
does not depend on how a global batch is cut into ranks and micro-batches, and a run resumes to the bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from unimm.data.mixture import Mixture
from unimm.data.packing import RowLayout
from unimm.data.plan import Plan, PlanCursor, StepBatch, Steps
from unimm.data.records import Dataset
from unimm.data.stored_plan import StoredPlan
from unimm.models import attention
from unimm.models.unified import UnifiedModel
from unimm.training.activation_checkpointing import checkpoint_activations
from unimm.training.bad_records import BadBudget
from unimm.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer, weights_of
from unimm.training.ema import Ema, resume_ema
from unimm.training.flops import peak_flops, warn_of_cost
from unimm.training.gradients import StepGradient
from unimm.training.held_out_loss import HeldOut
from unimm.training.logbook import Logbook, Meter
from unimm.training.loop import Gradient, Loop
from unimm.training.objectives.likelihood import Objective, Run
from unimm.training.optimizers import Optimizers
from unimm.training.own_parts import load_stored
from unimm.training.passes import keep_passes, kept_passes
from unimm.training.run_state import check_order, order_of_rows
from unimm.training.sharding import (
    HEAD,
    FullModelGatherer,
    check_context,
    let_go,
    num_groups,
    open_context,
    shard,
    whole,
    with_heads,
)
from unimm.training.trainable_parts import check_heads, current_name, factors, freeze, hold_frozen, show, stage_table
from unimm.training.trainer_config import TrainerConfig

VALIDATION = "validation/"
"""What the names of the numbers that a finished validation logs begin with."""

T = TypeVar("T")


class Trainer(Loop):
    """One run of one stage.

    Args:
        objective: what is learned, with the model inside it.
        mixture: what is learned, by step.
        config: how the run goes.
        folder: metrics, samples and checkpoints go below it; a checkpoint found there is resumed.
        device: where to train; default: the best that is here.
        sample, validate: called as sample(model, step, logbook) every `sample_every` steps, and validate(model, step, losses)
            every `validate_every`, on the first process, with the model in one piece and in eval mode, and its averaged weights
            where there are any; they should return early once `stop.made` of this trainer is true, and keep nothing of the
            model. validate gets the losses on held-out samples and returns scores to log, or None where it left early: it is
            called again when the run goes on.
        held_out: samples that are not trained on; every validation begins with their mean losses.
    """

    def __init__(
        self,
        objective: Objective,
        mixture: Mixture,
        config: TrainerConfig,
        folder: Path,
        device: str | None = None,
        sample: Callable[[UnifiedModel, int, Logbook], None] | None = None,
        validate: Callable[[UnifiedModel, int, dict[str, float]], dict[str, float] | None] | None = None,
        held_out: Mixture | None = None,
    ) -> None:
        super().__init__(config, folder, device)
        self.config = config
        self.mixture = mixture
        self.sample, self.validate = sample, validate
        check_context(objective, config.sharding, config.num_positions)
        self.context = open_context(config.sharding, self.ranks, self.accelerator.device)
        num_rows = max(1, config.num_rows // (config.num_micro_batches * num_groups(config.sharding, self.ranks.count)))
        self.held_out = held_out and HeldOut(held_out, config.num_positions, num_rows)
        if config.attention == "flex_attention" and self.accelerator.device.type == "cpu":
            raise ValueError("FlexAttention learns on GPUs only: leave trainer.attention at auto, or take documents or sdpa.")
        self.origin = PlanCursor()
        self.order = order_of_rows(mixture, config.num_positions, config.num_rows)
        self.objective = objective
        self.model = model = objective.model
        freeze(objective.parts(), config.stage)
        check_heads(objective.heads(), config.stage, objective.own_stage)
        hold_frozen(objective.frozen, objective, self.accelerator.device)
        num = sum(p.numel() for p in objective.parameters())
        show(stage_table(objective.parts(), config.stage, num, objective.frozen), self.is_main)
        self.flop_count = objective.flop_count()
        self.is_sharded = config.sharding.strategy != "ddp" and self.accelerator.num_processes > 1
        self.heads = objective.heads()
        self.gatherer = FullModelGatherer(with_heads(model, self.heads)) if self.is_sharded else None
        ways = (config.num_positions, num_rows, self.accelerator, self.ranks)
        objective.begin(Run([mixture, *([held_out] if held_out else [])], folder, *ways))
        checkpoint_activations(objective.layers(), config.activation_checkpointing)
        self.is_compiled = self.compiles()
        if self.is_compiled:
            # A GPU gains from knowing the sizes of rows, which do not change; for a CPU see recipes/LOG.md.
            model.compile_layers(dynamic=True if self.accelerator.device.type == "cpu" else None)
        self.wrapped = self._distribute()
        self.weights = {**objective.weights, **config.weights}
        self.gradient = StepGradient(objective, self.wrapped, self.accelerator, self.weights, self.flop_count)
        learning = factors(objective.parts(), config.stage)
        self.optimizers = Optimizers(objective.parts(), learning, config.optimizer, objective.hidden_parts(), self.muon_dtype)
        self.names = {id(p): name for name, p in objective.named_parameters()}
        self.ema = None if config.ema_decay is None else Ema(objective.named_parameters(), config.ema_decay)
        self._passes: dict[str, Any] = {}
        self.resume()
        keep_passes(mixture, folder, self.ranks, self._passes if self.step else None)
        lists = self.context is None or self.context.number == 0
        self.bad = BadBudget(folder, mixture, self.ranks, self.bad_bytes if self.step else 0, lists)

    def _distribute(self) -> nn.Module:
        """The objective as several processes hold it."""
        if not self.is_sharded:
            return self.accelerator.prepare(self.objective)
        device = self.accelerator.device
        shard(self.objective.to(device), self.config.sharding, self.ranks.count, device, self.precision == "bf16")
        return self.objective

    def run_on_rank0(self, function: Callable[[UnifiedModel], T], device: torch.device | None = None) -> T | None:
        """What a function returns for the model in one piece, on the first process; every process must call it, and the others
        get None at once. As long as it runs, `heads` are in one piece, too.

        device: where a model in shards is put together for as long; default: where it trains.
        """
        if self.gatherer is None:
            with self._whole_rows():
                return function(self.model) if self.is_main else None
        own = self.heads

        def run(gathered: nn.ModuleDict) -> T:
            self.heads = {name: gathered[HEAD + name] for name in own}
            return function(cast(UnifiedModel, gathered["model"]))

        try:
            both, where = with_heads(self.model, own), device or self.accelerator.device
            return self.gatherer.run_on_rank0(both, run, self.is_main, where)
        finally:
            self.heads = own

    @contextmanager
    def _whole_rows(self) -> Iterator[None]:
        """In this context the model of this process reads rows by itself."""
        context = self.model.context
        self.objective.set_context(None)
        try:
            yield
        finally:
            self.objective.set_context(context)

    def averaged(self) -> AbstractContextManager[None]:
        """In this context the model has its averaged weights, and after it its own again; without an average it has its own."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def fit(self) -> None:
        """Train to the end of the budget; always leaves a checkpoint behind, also when interrupted."""
        device, peak = self.accelerator.device, self.config.peak_tflops
        if self.progress < 1.0:
            positions = self.config.num_rows * self.config.num_positions // self.ranks.count
            has_muon = self.config.optimizer.muon_lr is not None
            self.say(warn_of_cost(self.flop_count, positions, self.precision, has_muon, device))
        self.objective.set_attention(self._attention())
        sources = [source.name for source in self.mixture.sources]
        self.objective.set_context(self.context)
        try:
            self.run(f"training ({self.config.stage.name})", Meter(1e12 * peak if peak else peak_flops(device), sources))
        finally:
            self.objective.set_attention("sdpa")
            self.objective.set_context(None)

    def _attention(self) -> str:
        if self.config.attention != "auto":
            return self.config.attention
        return attention.choose_attention(self.accelerator.device.type, self.is_compiled)

    def data(self) -> Steps:
        """This rank's steps, by number, the same where ranks share rows; says in which shares sources come."""
        self.say(self.mixture.tell_shares())
        config = self.config
        stored = config.plan and StoredPlan(config.plan, self.mixture, RowLayout(config.num_positions, config.num_rows))
        plan = Plan(self.mixture, config.num_positions, config.num_rows, self.origin, stored or None)
        group = self.ranks.number // config.sharding.context_parallel_degree
        return Steps(plan, config.num_micro_batches, group, num_groups(config.sharding, self.ranks.count))

    def seed(self) -> int:
        """The mixture's."""
        return self.mixture.seed

    def step_counts(self, batch: StepBatch) -> list[float]:
        """Of the targets of this process, by the objective's names."""
        return torch.stack(list(self.gradient.counts(batch.batches).values())).tolist()

    def compute_gradient(self, batch: StepBatch, totals: list[float] | None = None) -> Gradient:
        """Forward and backward over the micro-batches of this rank."""
        self.wrapped.train()
        loss, outcomes = self.gradient.backward(batch.batches, totals)
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        if self.config.optimizer.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(trained, self.config.optimizer.max_grad_norm)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        return Gradient(whole(norm), loss, outcomes)

    def apply_gradient(self, gradient: Gradient) -> None:
        """One optimizer step."""
        self.optimizers.scale(self.rate())
        self.optimizers.step(gradient.norm)
        self.objective.after_update()

    def count_step(self, gradient: Gradient, batch: StepBatch, meter: Meter, norm: float | None, step: int) -> None:
        """The place in the plan moves on; the average follows, and the numbers of the step are counted, where it counts."""
        self.origin = batch.origin
        if norm is None:
            return
        for read, sums in gradient.outcome:
            meter.add_batch(read, sums)
        meter.add_samples(name[0] for name in batch.samples if name is not None)
        meter.grad_norm = norm
        if self.ema is not None:
            self.ema.update()

    def datasets(self) -> list[Dataset]:
        """Of the sources that are learned from."""
        return [self.mixture.sources[source].dataset for source in self.mixture.used]

    def name_samples(self, batch: StepBatch, step: int) -> list[str]:
        """Source, number there and key of each sample."""
        return [self.mixture.name(sample) for sample in batch.samples]

    def forget_step(self) -> None:
        """Drop the gradients."""
        self.optimizers.clear()

    def report(self, meter: Meter) -> dict[str, float]:
        """Global means since the last report."""
        return meter.report(self.rate(), self.accelerator)

    def before_steps(self, logbook: Logbook) -> None:
        """The validation at the start, or one that a signal has cut short, when it stopped the run after this step."""
        is_cut_short = self.step > 0 and self._is_validated() and not self.ranks.any(logbook.has(self.step, VALIDATION))
        if is_cut_short or (self.step == 0 and self.config.validate_at_start):
            self._validate(logbook)

    def after_step(self, logbook: Logbook) -> None:
        """Sample captions and drawings, and validate, when they are due."""
        sample = self.sample
        if sample is not None and self.is_due(self.config.sample_every):
            with self.evaluating():
                self.run_on_rank0(lambda model: sample(model, self.step, logbook))
        if self._is_validated():
            self._validate(logbook)

    def _is_validated(self) -> bool:
        return (self.validate is not None or self.held_out is not None) and self.is_due(self.config.validate_every)

    def _validate(self, logbook: Logbook) -> None:
        """All processes compute the held-out losses; then the first one scores the model."""
        with self.evaluating():
            losses: dict[str, float] | None = {}
            if self.held_out is not None:
                stop = (lambda: self.ranks.any(self.stop.made),)
                losses = self.held_out.losses(self.objective, self.weights, self.accelerator, *stop)
            scores: dict[str, float] | None = {}
            validate = self.validate
            if validate is not None and losses is not None:
                scores = self.run_on_rank0(lambda model: validate(model, self.step, losses))
        # After everything: a run that is killed in between has not validated, and will.
        if self.is_main and losses is not None and scores is not None:
            found = {f"{VALIDATION}{name}": value for name, value in {**losses, **scores}.items()}
            logbook.numbers(self.step, found)
            self.validated(found)

    def validated(self, numbers: dict[str, float]) -> None:
        """Called on the first process with what a validation has found, by the names that it is logged by."""

    @contextmanager
    def evaluating(self, averaged: bool = True) -> Iterator[None]:
        """In this context the model, by its average where it is to be, is evaluated; it ends when all processes are here."""
        self.settle()
        self.objective.eval()
        self.objective.set_attention("sdpa")
        # Compiled layers would be compiled again for every length of a cache.
        with self.averaged() if averaged else nullcontext(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
            let_go(self.wrapped)
        self.objective.set_attention(self._attention())
        self.ranks.barrier()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, their average, and the optimizers' state."""
        tensors = {f"weights/{name}": tensor for name, tensor in self.objective.state_dict().items()}
        for prefix, optimizer in self.optimizers.all.items():
            tensors |= optimizer_tensors(optimizer, self.names, prefix)
        return tensors if self.ema is None else tensors | self.ema.tensors()

    def state(self) -> dict[str, Any]:
        """Stage and order of samples, which have to be the same to resume, the place in the plan, and the average's age."""
        ema = {} if self.ema is None else {"ema": {"num_updates": self.ema.num_updates}}
        return {
            "stage": self.config.stage.name,
            "order": self.order,
            "plan": asdict(self.origin),
            **ema,
            **kept_passes(self.mixture, self.folder),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of `tensors`.

        Raises:
            ValueError: the checkpoint is one of another stage or of other data, or has an average that this run is not to keep.
        """
        own = current_name(self.config.stage.name)
        kept = current_name(checkpoint.state.get("stage", own))
        if own != kept:
            raise ValueError(f"{self.folder} holds a run of the stage '{kept}', not '{own}': name another folder.")
        load_stored(self.objective, weights_of(checkpoint, "weights"))
        for prefix, optimizer in self.optimizers.all.items():
            restore_optimizer(optimizer, checkpoint.tensors, self.names, prefix)
        resume_ema(self.ema, checkpoint, self.folder, self.is_main)
        plan = checkpoint.state["plan"]
        began = checkpoint.state.get("order", plan)  # before there was a signature, the plan held the sizes of its rows
        self.accept(check_order(self.folder, began, self.order))
        self.origin, self._passes = PlanCursor.read(plan), checkpoint.state.get("passes", {})
