"""The likelihood of everything that is learned: text, codes, and what else the model's ports predict."""

import torch

from unimm.batch import Batch
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.training.flops import FlopCount
from unimm.training.objectives.base import Objective


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
