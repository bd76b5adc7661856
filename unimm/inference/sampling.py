"""From logits to ids: guidance, temperature, top-k, top-p, as small pure functions over rows.

Shapes: R rows, V vocabulary. Every setting is one number a row, so rows of different requests share a step.
"""

import math
from dataclasses import dataclass

import torch

from unimm.inference.noise import gumbel, stream_key


@dataclass(frozen=True)
class Sampling:
    """How the elements of one open segment are chosen.

    temperature: 0.0 is greedy. top_k: keep the k most likely; 0 keeps all. top_p: keep the most likely that together reach p.
    seed, index: the key of the noise: image `index` of a request with `seed`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    index: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or positive, not {self.temperature}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or positive, not {self.top_k}.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is a probability in (0, 1], not {self.top_p}.")


class Sampler:
    """The settings of R rows as tensors; calling it chooses one id a row."""

    def __init__(self, rows: list[Sampling], device: torch.device) -> None:
        self.keys = torch.tensor([stream_key(row.seed, row.index) for row in rows], device=device)
        self.temperature = torch.tensor([row.temperature for row in rows], device=device)
        self.top_k = torch.tensor([row.top_k for row in rows], device=device)
        self.top_p = torch.tensor([row.top_p for row in rows], device=device)
        self._greedy = all(row.temperature == 0.0 for row in rows)
        self._filtered = any(row.top_k > 0 or row.top_p < 1.0 for row in rows)

    def __call__(self, logits_RV: torch.Tensor, steps_R: torch.Tensor) -> torch.Tensor:
        """logits (R, V), the step of each row (R,) -> ids (R,)."""
        logits_RV = logits_RV.float()
        greedy_R = logits_RV.argmax(-1)
        if self._greedy:
            return greedy_R
        scaled_RV = logits_RV / self.temperature.clamp(min=1e-6)[:, None]
        if self._filtered:
            scaled_RV = keep_likely(scaled_RV, self.top_k, self.top_p)
        drawn_R = (scaled_RV + gumbel(self.keys, steps_R, logits_RV.shape[-1])).argmax(-1)
        return torch.where(self.temperature > 0, drawn_R, greedy_R)


def guide(conditional_RV: torch.Tensor, unconditional_RV: torch.Tensor, scale_R: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance in float32: l = u + s (c - u), one scale a row."""
    unconditional = unconditional_RV.float()
    return unconditional + scale_R[:, None] * (conditional_RV.float() - unconditional)


def keep_likely(logits_RV: torch.Tensor, top_k_R: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    """Logits with everything below the k most likely, and then outside their nucleus of mass p, at minus infinity."""
    ordered_RV, order_RV = logits_RV.sort(dim=-1, descending=True)
    rank_V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)
    beyond_k = (rank_V[None] >= top_k_R[:, None]) & (top_k_R[:, None] > 0)
    likely_RV = ordered_RV.masked_fill(beyond_k, float("-inf")).softmax(-1)
    before_RV = likely_RV.cumsum(-1) - likely_RV
    # A rounded sum may reach 1 before the end: a row that keeps all must not lose its tail because of its neighbours.
    beyond_p = (before_RV >= top_p_R[:, None]) & (top_p_R[:, None] < 1.0)
    beyond = beyond_k | beyond_p
    return logits_RV.masked_fill(beyond.scatter(-1, order_RV, beyond), float("-inf"))
