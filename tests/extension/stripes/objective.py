"""The likelihood, and a price for moving away from the weights that the training began with (L2-SP, arXiv 1802.01483)."""

import torch

from unimm.batch import Batch
from unimm.models import LossSums, UnifiedModel
from unimm.training import Likelihood


class Tethered(Likelihood):
    """strength: of the price. Of the projector alone, to keep it small."""

    def __init__(self, model: UnifiedModel, strength: float = 0.01) -> None:
        super().__init__(model)
        self.strength = strength
        for number, parameter in enumerate(model.pixels.projector.parameters()):
            self.register_buffer(f"start_{number}", parameter.detach().clone())

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        starts = (getattr(self, f"start_{number}") for number in range(len(list(self.model.pixels.projector.parameters()))))
        pairs = zip(self.model.pixels.projector.parameters(), starts, strict=True)
        moved = self.strength * torch.stack([(now - start).square().sum() for now, start in pairs]).sum()
        return {**super().forward(batch), "tether": LossSums(moved, moved.new_zeros(()), moved.new_ones(()))}

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {**super().counts(batch), "tether": torch.ones(())}
