"""What every objective offers, and the one that nearly all trainings use: the likelihood of everything that is learned (text,
codes, and what else the model's ports predict).

An objective wraps the model and turns a batch into named sums and counts. The trainer knows nothing else of it: it divides each
sum once by its global count and adds them up by weight.
"""

import torch
from torch import nn

from unimm.batch import Batch
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.training.flops import FlopCount


class Objective(nn.Module):
    """What every objective offers."""

    model: UnifiedModel

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        """The sums of a batch, by the name of what is learned."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What the sums will be divided by, known before the forward pass: float scalars by the same names."""
        raise NotImplementedError

    def check(self, batch: Batch) -> None:
        """Refuse a batch in main memory that the model was not made for, before any of it is computed; by default none.

        Raises:
            ValueError: it is such a batch.
        """

    def parts(self) -> dict[str, nn.Module]:
        """Everything with parameters that a stage can name: the model's parts and the objective's own."""
        return self.model.parts()

    def hidden_parts(self) -> tuple[str, ...]:
        """The parts whose matrices Muon may move: layers inside a network, no embeddings or heads."""
        return self.model.hidden_parts()

    def flop_count(self) -> FlopCount | None:
        """What counts the operations of a step, for what is trained now; None where there is no such count."""
        return None


class Likelihood(Objective):
    """The likelihood of every element that a batch says is learned."""

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
