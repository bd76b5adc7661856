"""What tests of trainings share: runs that are interrupted, compared, given adapters or held-out samples, or go wrong."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from toys import make_config, make_mixture, make_model, make_template

from unimm.batch import Batch
from unimm.data.holdout import hold_out
from unimm.data.mixture import Mixture, Source
from unimm.models.lora import LoraConfig, attach
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.training.logbook import Logbook, read_numbers
from unimm.training.objectives.likelihood import Likelihood, Objective
from unimm.training.optimizers import OptimizerConfig
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer

ADAMW = OptimizerConfig(lr=1e-3, weight_decay=0.1)
MUON = OptimizerConfig(lr=1e-3, muon_lr=0.02, weight_decay=0.1)


def interrupt_at(step: int, number: int = signal.SIGINT):
    """A sample callback that presses Ctrl-C."""

    def sample(model: UnifiedModel, now: int, logbook: Logbook) -> None:
        if now == step:
            signal.raise_signal(number)

    return sample


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def numbers(folder: Path) -> list[tuple]:
    """What was logged, without what depends on the clock."""
    names = ("step", "loss/text", "loss/codes", "accuracy/text", "accuracy/codes", "optim/grad_norm", "optim/rate_factor")
    return [tuple(line[name] for name in names) for line in read_numbers(folder / "metrics.jsonl")]


class Poisoned(Objective):
    """Likelihood with a loss that is no number from the third step on."""

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.inner, self.model, self.left = Likelihood(model), model, 2

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        self.left -= 1
        factor = 1.0 if self.left >= 0 else float("nan")
        return {name: tally._replace(loss=tally.loss * factor) for name, tally in self.inner(batch).items()}

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.inner.counts(batch)


class PoisonedOnce(Poisoned):
    """The third and the fifth step are not finite."""

    def forward(self, batch):
        self.left -= 1
        factor = float("inf") if self.left in (-1, -3) else 1.0
        return {name: tally._replace(loss=tally.loss * factor) for name, tally in self.inner(batch).items()}


ADAPTERS = Stage("adapters", {})
FAST = OptimizerConfig(lr=1e-2, muon_lr=0.02, weight_decay=0.1)


def make_lora_trainer(
    folder: Path, max_steps: int, lora: LoraConfig | None = None, sample: Callable[..., None] | None = None, **changes: Any
) -> Trainer:
    """A trainer of a tiny model with fresh adapters, the same ones every time."""
    torch.manual_seed(0)
    model = make_model()
    attach(model, lora or LoraConfig(rank=2, alpha=4.0))
    config = make_config(max_steps, **{"stage": ADAPTERS, "optimizer": FAST, **changes})
    return Trainer(Likelihood(model), make_mixture(), config, folder, "cpu", sample)


def halves() -> tuple[Mixture, Mixture]:
    """The toy mixture's views of what is learned, and of three records that are not."""
    mixture = make_mixture()
    parts = hold_out({source.name: source.dataset for source in mixture.sources}, 3)
    learned, held = (
        Mixture([Source(one.name, part[one.name], one.view, one.weight) for one in mixture.sources], make_template())
        for part in parts
    )
    return learned, held
