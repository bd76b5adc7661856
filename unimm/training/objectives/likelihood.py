"""What every objective offers, and the one that nearly all trainings use: the likelihood of everything that is learned (text,
codes, and what else the model's ports predict).

An objective wraps the model and turns a batch into named sums and counts. The trainer knows nothing else of it: it divides each
sum once by its global count and adds them up by weight. One whose sums do not add up over micro-batches, since every sample is
compared with all others of a step, is a `JointObjective`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from unimm.batch import Batch
from unimm.data.mixture import Mixture
from unimm.models.context_parallel import ContextGroup
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.runtime.rank_sync import Ranks
from unimm.training.flops import FlopCount


class Run(NamedTuple):
    """What an objective gets of the run that begins.

    mixtures: what is learned, and what is held out, where something is. folder: of the run. row_length, num_rows: of a forward
    pass. accelerator, ranks: its device, precision and processes.
    """

    mixtures: list[Mixture]
    folder: Path
    row_length: int
    num_rows: int
    accelerator: Accelerator
    ranks: Ranks


class Objective(nn.Module):
    """What every objective offers.

    is_additive: whether the sums of a step are those of its micro-batches, added up.
    splits_rows: whether `forward` takes rows that a group of processes shares (`unimm.models.context_parallel`): what the
        processes of a group give of the same batch then adds up to its sums. The class that has the `forward` says so.
    why_whole: why it takes whole rows only, as the end of a sentence.
    own_stage: the stage that was made for it (conf/stage), which an error names; None: there is none.
    weights: of its mean losses by name, where the trainer's settings name no other; 1 where neither does.
    frozen: networks that it needs and that nothing changes, such as a reference model, by name. The trainer moves them to its
        device; they are no part of the objective's modules, so they are not trained, cut into shards, averaged or written.
    """

    model: UnifiedModel
    is_additive: ClassVar[bool] = True
    splits_rows: ClassVar[bool] = False
    why_whole: ClassVar[str] = "its class does not say that a group of processes may share them (splits_rows)"
    own_stage: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.frozen: dict[str, nn.Module] = {}

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        """The sums of a batch, by the name of what is learned. One with a slash in its name ("preference/margin_text") is
        observed: its mean is logged under that name, and nothing learns from it."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What the sums will be divided by, known before the forward pass: float scalars by the same names."""
        raise NotImplementedError

    def check(self, batch: Batch) -> None:
        """Refuse a batch in main memory that the model was not made for, before any of it is computed; by default none.

        Raises:
            ValueError: it is such a batch.
        """

    def begin(self, run: "Run") -> None:
        """Called once, with the weights that the run begins with, before those of an earlier part of it are restored, and
        before anything is cut into shards; by every process. Here what depends on the model as it began is computed."""

    def prepare(self, batch: Batch) -> Batch:
        """A batch in main memory with what else its forward pass needs, such as what is stored of its samples."""
        return batch

    def parts(self) -> dict[str, nn.Module]:
        """Everything with parameters that a stage can name: the model's parts and the objective's own."""
        return self.model.parts()

    def hidden_parts(self) -> tuple[str, ...]:
        """The parts whose matrices Muon may move: layers inside a network, no embeddings or heads."""
        return self.model.hidden_parts()

    def layers(self) -> list[nn.Module]:
        """The repeated layers of the model, and of the objective's own modules: what takes most memory."""
        return self.model.layers()

    def heads(self) -> dict[str, nn.Module]:
        """The modules of its own that are saved with the model, by their names in the bundle; each has a `config` that builds
        it (`unimm.checkpoints.further_modules`)."""
        return {}

    def load_heads(self, heads: Mapping[str, nn.Module]) -> None:
        """Start from the heads that the bundle to start from holds, where they are this objective's.

        Raises:
            ValueError: they are, and of other sizes.
        """

    def set_attention(self, backend: str) -> None:
        """Sets the attention backend of the model, and of the frozen modules that have one."""
        self.model.set_attention(backend)
        for module in self.frozen.values():
            if isinstance(module, UnifiedModel):
                module.set_attention(backend)

    def set_context(self, context: ContextGroup | None) -> None:
        """Sets the processes that share the rows of the model, and of the frozen modules that read rows."""
        for module in (self.model, *self.frozen.values()):
            if isinstance(module, UnifiedModel):
                module.context = context

    def shared(self, sums: dict[str, LossSums]) -> dict[str, LossSums]:
        """Sums that all processes of a group compute alike, of whole rows, as the share of each."""
        context = self.model.context
        if context is None:
            return sums
        return {name: LossSums(*(one / context.count for one in term)) for name, term in sums.items()}

    def after_update(self) -> None:
        """Called after every update of the weights, such as to keep one in its bounds."""

    def flop_count(self) -> FlopCount | None:
        """What counts the operations of a step, for what is trained now; None where there is no such count."""
        return None


def is_observed(name: str) -> bool:
    """Whether a sum of an objective is logged and not learned from."""
    return "/" in name


def no_rank(loss: torch.Tensor) -> torch.Tensor:
    """The `correct` of sums where nothing is ranked and no share of it is logged: not a number."""
    return loss.new_full((), float("nan"))


class JointObjective(Objective):
    """An objective that compares samples with all others of a step: its loss reads what all micro-batches of all processes
    give, and is none of a micro-batch alone.

    `forward` computes what a micro-batch gives; `joint_loss` reads all of it and has no parameters: what is learned there, such
    as a temperature, `forward` gives too, of one row, and `joint_loss` takes the mean of its rows. The gradients are those of a
    single batch (`unimm.training.gradients`).
    """

    is_additive: ClassVar[bool] = False
    why_whole: ClassVar[str] = "it compares every sample with all others of the step, of which each is one process' own"

    def forward(self, batch: Batch) -> Any:
        """Tensors by name, each with a first dimension that differs from batch to batch: dict[str, Tensor]."""
        raise NotImplementedError

    def joint_loss(self, outputs: Mapping[str, torch.Tensor], rows: Mapping[str, slice]) -> dict[str, LossSums]:
        """The share of some rows in the loss of all.

        outputs: of all micro-batches, one after another. rows: by name, those of one of them. The sums of disjoint rows add up.
        """
        raise NotImplementedError


class Likelihood(Objective):
    """The likelihood of every element that a batch says is learned."""

    splits_rows: ClassVar[bool] = True

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model
        self.max_positions = model.config.max_positions

    def check(self, batch: Batch) -> None:
        self.model.check(batch)
        longest = int(batch.positions.max()) + 1
        if longest > self.max_positions:
            raise ValueError(
                f"A sequence takes {longest} positions, and the model was made for {self.max_positions}: cut texts "
                f"(data.max_characters), ask less in a conversation (num_turns of its view), or make a model for more "
                f"(model.trunk.max_position_embeddings)."
            )

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        return {kind.name.lower(): sums for kind, sums in self.model(batch).items()}

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {kind.name.lower(): port.num_targets(batch) for kind, port in self.model.predicted_ports.items()}

    def flop_count(self) -> FlopCount:
        return FlopCount(self.model)
