"""A code is the signs of the latent's D numbers; gradients pass straight through."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unimm.models import Quantized, Quantizer


@dataclass(frozen=True)
class SignsConfig:
    """code_dim: D, so that there are 2**D codes. pull: how strongly latents are pulled to +-1."""

    code_dim: int = 4
    pull: float = 0.25

    @property
    def codebook_size(self) -> int:
        """2**D."""
        return 2**self.code_dim

    def build(self, sync: bool = False, learns: bool = True) -> "Signs":
        """Nothing here depends on the batch, and nothing is made for training alone."""
        return Signs(self)


class Signs(Quantizer):
    """Signs as a codebook: corners of a cube."""

    def __init__(self, config: SignsConfig) -> None:
        super().__init__(config)
        self.pull = config.pull
        self.register_buffer("powers_D", 2 ** torch.arange(config.code_dim), persistent=False)

    @property
    def codebook(self) -> Tensor:
        codes_K1 = torch.arange(2 ** len(self.powers_D), device=self.powers_D.device)[:, None]
        return (codes_K1 // self.powers_D % 2).float() * 2 - 1

    def _quantize(self, latents_NTD: Tensor) -> Quantized:
        codes_NT = self._nearest(latents_NTD)
        corners_NTD = self.lookup(codes_NT)
        loss = self.pull * (latents_NTD - corners_NTD).square().mean()
        return Quantized(latents_NTD + (corners_NTD - latents_NTD).detach(), codes_NT, loss)

    def _nearest(self, latents_NTD: Tensor) -> Tensor:
        return ((latents_NTD > 0).long() * self.powers_D).sum(-1)
