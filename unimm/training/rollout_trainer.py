"""The trainer of rollouts: a step asks the policy, rewards what it made, and learns from that. All else is `Trainer`'s.

    prompts of the step --make(model)--> groups of rollouts --advantages--> rows --score--> old log-probabilities
    num_updates times: gradient (`GRPO`), update

Every process makes the rollouts of its own prompts, with the weights as they are: nothing is copied or sent. What is random in
them is keyed by (seed, number of the prompt, rollout), so a run resumes to the bit on a CPU, and several processes make the
same rollouts as one.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unimm.data.mixture import Mixture
from unimm.data.plan import PlanCursor, StepBatch
from unimm.data.prompts import Prompts, PromptSteps
from unimm.models.unified import UnifiedModel
from unimm.training.checkpoint import Checkpoint
from unimm.training.logbook import Logbook, Meter
from unimm.training.objectives.grpo import GRPO, RolloutBatch
from unimm.training.prompt_choice import PromptChoice
from unimm.training.rollouts import Chosen, Made, Rollout, RolloutConfig, choose, differs, diversity, pack
from unimm.training.trainer import Trainer, TrainerConfig
from unimm.training.watch import Watch

Make = Callable[[UnifiedModel, Prompts], Made]
"""The rollouts of prompts by a model in eval mode; rewarded."""

Show = Callable[[int, list[list[Rollout]], Logbook], None]
"""Writes the best and the worst rollouts of a step to the logbook."""

logger = logging.getLogger(__name__)


class RolloutTrainer(Trainer):
    """One run that learns from rollouts.

    Args:
        rollouts: how they are made. make: makes and rewards them. show: shows them, every `sample_every` steps.
        watch: rules that warn or end the training.
        more: as `Trainer` has it.

    Raises ValueError where the settings do not go with rollouts.
    """

    objective: GRPO

    def __init__(
        self,
        objective: GRPO,
        mixture: Mixture,
        config: TrainerConfig,
        folder: Path,
        rollouts: RolloutConfig,
        make: Make,
        watch: Watch | None = None,
        show: Show | None = None,
        **more: Any,
    ) -> None:
        if config.sharding.strategy != "ddp":
            raise ValueError("Rollouts are made by the whole model on every process: leave trainer.sharding.strategy at ddp.")
        self.rollouts, self.make, self.show, self.watch = rollouts, make, show, watch or Watch()
        self._sums: dict[str, list[float]] = {}
        self._shown: list[list[Rollout]] = []
        self.choice = PromptChoice(rollouts.num_prompts, mixture.seed) if rollouts.dynamic else None
        super().__init__(objective, mixture, config, folder, **more)
        self.objective = objective
        for module in objective.modules():  # else a ratio would be that of two draws of noise
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    @property
    def progress(self) -> float:
        """How much is done, 0 to 1; 1 where a rule has ended it."""
        return 1.0 if self.watch.stopped else super().progress

    def data(self) -> Any:
        """The prompts of this rank's steps."""
        if self.rollouts.dynamic:
            return PromptSteps(self.mixture, self.rollouts.num_prompts * self.rollouts.candidates)
        ranks = (self.accelerator.process_index, self.accelerator.num_processes)
        return PromptSteps(self.mixture, self.rollouts.num_prompts, *ranks)

    def name_samples(self, batch: Any, step: int) -> list[str]:
        """Source, number there and key of each prompt."""
        return [self.mixture.name(name) for name in batch.samples if name is not None]

    def step_counts(self, batch: Any) -> list[float]:
        """None: what is learned from is not made yet."""
        return []

    def update(self, batch: Any, meter: Any, totals: list[float] | None = None) -> None:
        """Make the rollouts of a step, and learn from them."""
        if self.choice is not None:
            batch = self.choice.choose(batch, self.ranks)
        started = time.monotonic()
        made = self._made(batch)
        seconds = time.monotonic() - started
        chosen = choose(made.groups, self.rollouts.normalize)
        if self.choice is not None:
            found = {group[0].prompt: differs(group) for group in made.groups if group}
            self.choice.learn({number: one for number, one in found.items() if one is not None}, self.ranks)
        self._count_rollouts(made, chosen, batch)
        self._shown = made.groups
        if self.ranks.any(bool(chosen.rollouts)):
            self._learn(batch, chosen, meter)
        else:
            self._add("rollout/empty_steps", 1.0, 1.0)
        self._add("rollout/seconds", seconds, 1.0)
        self._add("rollout/step_seconds", time.monotonic() - started, 1.0)

    def _made(self, batch: Prompts) -> Made:
        """The rollouts of a step. Where those of any process cannot be rewarded, all end, and what was learned is kept."""
        failure: ValueError | None = None
        made = Made([], {})
        with self.rolling():
            try:
                made = self.make(self.model, batch)
            except ValueError as error:
                failure = error
        if self.ranks.any(failure is not None):
            if self.step:
                self.save_if_possible()
            raise failure or ValueError("The rollouts of another process failed, which says why.")
        return made

    def rolling(self) -> Any:
        """In this context the model makes rollouts: its own weights, in eval mode, without gradients."""
        return self.evaluating(averaged=False)

    def _learn(self, batch: Prompts, chosen: Chosen, meter: Any) -> None:
        device = self.accelerator.device
        guided = self.rollouts.guided_log_probs and self.objective.guidance_scale != 1.0
        rows = (self.config.num_positions, self.config.num_micro_batches)
        packed = pack(chosen, *rows, self.mixture.template.tokenizer.special.pad, guided)
        self.wrapped.train()
        batches: list[RolloutBatch] = []
        for one in packed:
            with self.accelerator.autocast():
                batches.append(self.objective.score(one.to(device), keep_old=self.rollouts.num_updates > 1).to("cpu"))
        step = StepBatch(list(batches), list(batch.names), PlanCursor(self.step, 0))
        for _ in range(self.rollouts.num_updates):
            super().update(step, meter)
            if not self.settle():
                return

    # -- numbers ------------------------------------------------------------------------------------------------------

    def _count_rollouts(self, made: Made, chosen: Chosen, batch: Prompts) -> None:
        """What came of a step, as sums and counts."""
        every = [rollout for group in made.groups for rollout in group]
        self._add("rollout/per_second", float(len(every)), 0.0)
        for name in self.rollouts.rewards:
            values = [one.rewards[name] for one in every if name in one.rewards]
            self._add(f"reward/{name}", sum(values), len(values))
        for name in self.rollouts.judges:
            values = [one.judged[name] for one in every if name in one.judged]
            self._add(f"judge/{name}", sum(values), len(values))
        totals = [one.total for one in every if one.total is not None]
        self._add("reward/total", sum(totals), len(totals))
        for name, values in zip(("rollout/distinct", "rollout/difference"), diversity(made.groups), strict=True):
            self._add(name, sum(values), len(values))
        num_groups = self.rollouts.num_prompts / self.accelerator.num_processes
        self._add("rollout/equal_groups", chosen.num_equal, num_groups)
        self._add("rollout/differing_groups", sum(bool(differs(group)) for group in made.groups), num_groups)
        self._add("rollout/empty_steps", 0.0, 0.0)
        lost = {**made.lost}
        for reason in batch.unusable:
            lost[reason] = lost.get(reason, 0) + 1
        self._add("rollout/lost", float(sum(lost.values())), 0.0)
        for reason, count in lost.items():
            logger.warning(f"Step {self.step + 1}: {count} left out: {reason}")

    def _add(self, name: str, total: float, count: float) -> None:
        sums = self._sums.setdefault(name, [0.0, 0.0])
        sums[0] += float(total)
        sums[1] += float(count)

    def report(self, meter: Meter) -> dict[str, float]:
        """Global means since the last report: of rewards, judges, rollouts and the policy, beside those of every training."""
        values = super().report(meter)
        names = sorted(self._sums)
        own = torch.tensor([self._sums[name] for name in names], dtype=torch.float32, device=self.accelerator.device)
        together: Any = self.accelerator.reduce(own, "sum")
        sums = dict(zip(names, together.tolist(), strict=True))
        self._sums = {}
        seconds, of_steps = sums.pop("rollout/seconds")[0], sums.pop("rollout/step_seconds")[0]
        ranks = self.accelerator.num_processes
        values["rollout/share_of_step"] = seconds / max(of_steps, 1e-9)
        values["rollout/per_second"] = sums.pop("rollout/per_second")[0] * ranks / max(seconds, 1e-9)
        for name in ("rollout/lost", "rollout/empty_steps"):
            values[name] = sums.pop(name, [0.0])[0] / (ranks if name == "rollout/empty_steps" else 1)
        values |= {name: total / count for name, (total, count) in sums.items() if count}
        self.observe(values)
        return values

    def observe(self, numbers: dict[str, float]) -> None:
        """Compare numbers with the rules; all processes have the same numbers."""
        for told in self.watch.look(numbers):
            if self.is_main:
                logger.warning(told)

    def validated(self, numbers: dict[str, float]) -> None:
        """The scores are the first process' alone: what they end, they end for all."""
        self.observe(numbers)

    def after_step(self, logbook: Logbook) -> None:
        """Show rollouts when it is due, and validate."""
        if self.show is not None and self.is_main and self.is_due(self.config.sample_every):
            with suppress(OSError):
                self.show(self.step, self._shown, logbook)
        super().after_step(logbook)
        stops = self.ranks.any(bool(self.watch.stopped))
        if stops and not self.watch.stopped:
            self.watch.stopped = "another process ends it"

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As every training, what was watched, and what came of prompts."""
        chosen = {} if self.choice is None else {"prompts": self.choice.state()}
        return {**super().state(), "watch": self.watch.state(), **chosen}

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of `tensors` and `state`."""
        super().restore(checkpoint)
        if "watch" in checkpoint.state:
            self.watch.restore(checkpoint.state["watch"])
        if self.choice is not None:
            self.choice.restore(checkpoint.state["prompts"])
