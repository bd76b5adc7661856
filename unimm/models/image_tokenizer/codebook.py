"""Codebooks as points on the unit sphere: rows of length 1, and points that lie evenly.

Shapes: K codes of D numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SPREAD_STEPS, SPREAD_SHARPNESS, SPREAD_STRIDE = 1500, 60.0, 0.02
"""How `spread_points` moves: 512 points in 4 dimensions end 18 to 20 degrees from their nearest neighbour."""

UNIT_TOLERANCE = 1e-6
"""So far from 1 a length may be that division by it has given: a few times what float32 rounds."""


@torch.no_grad()
def unit_rows(codebook_KD: Tensor) -> Tensor:
    """A codebook's rows at length 1, float32 (K, D). Rows that have it stay as they are, to the bit: divided once more, they
    would change their last digits at every save, and codes that are stored would be refused as another tokenizer's.
    """
    codebook_KD = codebook_KD.float()
    lengths_K1 = codebook_KD.norm(dim=-1, keepdim=True)
    return torch.where((lengths_K1 - 1).abs() < UNIT_TOLERANCE, codebook_KD, F.normalize(codebook_KD, dim=-1))


@torch.no_grad()
def spread_points(num_points: int, dim: int, seed: int = 0) -> Tensor:
    """Points (num_points, dim) on the unit sphere, about evenly spread: each step moves every one away from the others.

    A codebook that follows its latents puts most codes where most latents are. Codes that lie like this and stay
    (`Quantizer.spread`) leave one to everything that looks alike, however much of it there is.
    """
    generator = torch.Generator().manual_seed(seed)
    points_KD = F.normalize(torch.randn(num_points, dim, generator=generator), dim=-1)
    itself_KK = torch.eye(num_points, dtype=torch.bool)
    for step in range(SPREAD_STEPS):
        closeness_KK = (points_KD @ points_KD.T).masked_fill(itself_KK, -torch.inf)
        # The downhill direction of sum(exp(SPREAD_SHARPNESS * cos)): nearly all of it comes from the nearest neighbours.
        away_KD = -(SPREAD_SHARPNESS * (closeness_KK - closeness_KK.max())).exp() @ points_KD
        away_KD -= (away_KD * points_KD).sum(-1, keepdim=True) * points_KD
        length = away_KD.norm(dim=-1).mean().clamp(min=1e-12)
        points_KD = F.normalize(points_KD + SPREAD_STRIDE * (1 - step / SPREAD_STEPS) * away_KD / length, dim=-1)
    return points_KD
