"""From logits to ids: guidance, repetition penalty, bias, suppressed ids, temperature, top-k, top-p, min-p, as small functions
over rows.

They apply in this order, as in `transformers`. Every setting is one number a row, so rows of different requests share a step.

Noise has no state: what is drawn for (seed, image, step, code) is a hash of just these four numbers
(`unimm.runtime.counter_noise`). So a seed gives the same image alone, in any batch and under any admission.

Shapes: R rows, V vocabulary.
"""

import math
from dataclasses import dataclass, fields

import torch

from unimm.runtime.counter_noise import stream_key, uniform
from unimm.runtime.number_checks import real_number, whole_number
from unimm.sequence import Expected


@dataclass(frozen=True)
class Sampling:
    """How the elements of one open segment are chosen.

    temperature: 0.0 is greedy. top_k: keep the k most likely; 0 keeps all. top_p: keep the most likely that together reach p.
    seed, index: the key of the noise: image `index` of a request with `seed`.
    min_p: keep what is at least p times as likely as the likeliest (arXiv 2407.01082); 0 keeps all.
    repetition_penalty: logits of text that was given or written before are divided by it, or multiplied where they are
        negative (arXiv 1909.05858); 1 is off. Of text only.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    index: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):  # of NumPy's or PyTorch's numbers plain ones
            convert = whole_number if field.name in ("seed", "index", "top_k") else real_number
            object.__setattr__(self, field.name, convert(field.name, getattr(self, field.name)))
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or positive, not {self.temperature}.")
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k must be 0 (all) or positive, and below 2^31, not {self.top_k}.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is a probability in (0, 1], not {self.top_p}.")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p is a probability in [0, 1], not {self.min_p}.")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be positive (1 is off), not {self.repetition_penalty}.")


class Sampler:
    """The settings of R rows as tensors; calling it chooses one id a row.

    seen: for each row the ids that a repetition penalty is for; from then on the sampler notes what it chooses.
    expected: for each row what its elements may well be, by step; beyond its end, nothing.
    suppressed: for each row the ids that it never chooses.
    """

    def __init__(
        self,
        rows: list[Sampling],
        device: torch.device,
        seen: list[list[int]] | None = None,
        vocabulary_size: int = 0,
        expected: list[Expected | None] | None = None,
        suppressed: list[tuple[int, ...]] | None = None,
    ) -> None:
        self.keys = torch.tensor([stream_key(row.seed, row.index) for row in rows], device=device)
        self.temperature = torch.tensor([row.temperature for row in rows], device=device)
        self.top_k = torch.tensor([row.top_k for row in rows], device=device)
        self.top_p = torch.tensor([row.top_p for row in rows], device=device)
        self.min_p = torch.tensor([row.min_p for row in rows], device=device)
        self.penalty = torch.tensor([row.repetition_penalty for row in rows], device=device)
        self._greedy = all(row.temperature == 0.0 for row in rows)
        self._sorts = any(row.top_k > 0 or row.top_p < 1.0 for row in rows)
        self._has_least = any(row.min_p > 0.0 for row in rows)
        self.seen: torch.Tensor | None = None
        if seen is not None and any(row.repetition_penalty != 1.0 for row in rows):
            self.seen = torch.zeros(len(rows), vocabulary_size, dtype=torch.bool, device=device)
            for marks, ids in zip(self.seen, seen, strict=True):
                marks[torch.tensor(ids, dtype=torch.long, device=device)] = True
        biased = [None if one is None or not one.bias else one for one in expected or []]
        self.expected = None if not any(biased) else _expected_tables(biased, device)
        self.suppressed = _suppressed_tables(suppressed, device) if suppressed and any(suppressed) else None

    def __call__(self, logits_RV: torch.Tensor, steps_R: torch.Tensor) -> torch.Tensor:
        """logits (R, V), the step of each row (R,) -> ids (R,)."""
        logits_RV = logits_RV.float()
        if self.seen is not None:
            logits_RV = penalise(logits_RV, self.seen, self.penalty)
        if self.expected is not None:
            logits_RV = favour(logits_RV, *self.expected, steps_R)
        if self.suppressed is not None:
            logits_RV = logits_RV.scatter_add(1, *self.suppressed)
        chosen_R = self._choose(logits_RV, steps_R)
        if self.seen is not None:
            self.seen.scatter_(1, chosen_R[:, None], True)
        return chosen_R

    def _choose(self, logits_RV: torch.Tensor, steps_R: torch.Tensor) -> torch.Tensor:
        greedy_R = logits_RV.argmax(-1)
        if self._greedy:
            return greedy_R
        scaled_RV = logits_RV / self.temperature.clamp(min=1e-6)[:, None]
        if self._sorts:
            scaled_RV = keep_likely(scaled_RV, self.top_k, self.top_p)
        if self._has_least:
            scaled_RV = keep_at_least(scaled_RV, self.min_p)
        drawn_R = (scaled_RV + gumbel(self.keys, steps_R, logits_RV.shape[-1])).argmax(-1)
        return torch.where(self.temperature > 0, drawn_R, greedy_R)

    @property
    def settings(self) -> tuple[int, ...]:
        """What it does at all: samplers that agree in it run the same operations."""
        num_expected = 0 if self.expected is None else self.expected[0].shape[1]
        num_suppressed = 0 if self.suppressed is None else self.suppressed[0].shape[1]
        return (self._greedy, self._sorts, self._has_least, self.seen is not None, num_expected, num_suppressed)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Everything that differs between samplers of the same settings and number of rows."""
        tables = (*(self.expected or ()), *(self.suppressed or ()))
        plain = [self.keys, self.temperature, self.top_k, self.top_p, self.min_p, self.penalty, *tables]
        return plain if self.seen is None else [*plain, self.seen]


def guide(conditional_RV: torch.Tensor, unconditional_RV: torch.Tensor, scale_R: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance in float32: l = u + s (c - u), one scale a row."""
    unconditional = unconditional_RV.float()
    return unconditional + scale_R[:, None] * (conditional_RV.float() - unconditional)


def combine(logits: torch.Tensor, places_BR: torch.Tensor, weights_BR: torch.Tensor) -> torch.Tensor:
    """Guidance by any number of branches in float32: l = b + sum of w_i (l_i - b), b being a row's last branch.

    That is the weighted sum of all branches with weights that add up to 1, of which the last one's is not needed; for two
    branches it is `guide`, operation for operation.

    Args:
        logits: (R + ..., V) of R rows in their first branch, then of their other branches.
        places_BR: (B, R) long, where in `logits` the other branches are, the last one last; of a row with fewer branches the
            last one again, or the row itself.
        weights_BR: (B, R) of all branches but the last; 1 of the first and then 0 for a row without guidance.
    """
    rows_RV, base_RV = logits[: places_BR.shape[1]], logits[places_BR[-1]].float()
    combined_RV = guide(rows_RV, base_RV, weights_BR[0])
    for place_R, weight_R in zip(places_BR[:-1], weights_BR[1:], strict=True):
        combined_RV = combined_RV + weight_R[:, None] * (logits[place_R].float() - base_RV)
    return combined_RV


def penalise(logits_RV: torch.Tensor, seen_RV: torch.Tensor, penalty_R: torch.Tensor) -> torch.Tensor:
    """Logits of what was seen come nearer to nothing: divided by the penalty, multiplied where they are negative."""
    penalty_R1 = penalty_R[:, None]
    return torch.where(seen_RV, torch.where(logits_RV > 0, logits_RV / penalty_R1, logits_RV * penalty_R1), logits_RV)


def _expected_tables(rows: list[Expected | None], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and what is added to their logits, (R, N + 1) by row and step; nothing in the last column."""
    longest = max(len(row.ids) for row in rows if row is not None)
    ids_RN, biases_RN = torch.zeros(len(rows), longest + 1, dtype=torch.long), torch.zeros(len(rows), longest + 1)
    for number, row in enumerate(rows):
        if row is not None:
            ids_RN[number, : len(row.ids)] = torch.tensor(row.ids)
            biases_RN[number, : len(row.ids)] = row.bias
    return ids_RN.to(device), biases_RN.to(device)


def _suppressed_tables(rows: list[tuple[int, ...]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and what is added to their logits, (R, N): minus infinity; nothing where a row suppresses fewer than N."""
    most = max(map(len, rows))
    ids_RN = torch.tensor([[*row, *[0] * (most - len(row))] for row in rows])
    biases_RN = torch.tensor([[-math.inf] * len(row) + [0.0] * (most - len(row)) for row in rows])
    return ids_RN.to(device), biases_RN.to(device)


def favour(logits_RV: torch.Tensor, ids_RN: torch.Tensor, biases_RN: torch.Tensor, steps_R: torch.Tensor) -> torch.Tensor:
    """Logits with a bias on the one id that a row expects at its step; steps beyond N take the last column."""
    column_R1 = steps_R.clamp(max=ids_RN.shape[1] - 1)[:, None]
    return logits_RV.scatter_add(1, ids_RN.gather(1, column_R1), biases_RN.gather(1, column_R1))


def keep_likely(logits_RV: torch.Tensor, top_k_R: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    """Logits with everything below the k most likely, and then outside their nucleus of mass p, at minus infinity."""
    ordered_RV, order_RV = logits_RV.sort(dim=-1, descending=True)
    rank_V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)
    beyond_k = (rank_V[None] >= top_k_R[:, None]) & (top_k_R[:, None] > 0)
    likely_RV = ordered_RV.masked_fill(beyond_k, float("-inf")).softmax(-1)
    before_RV = likely_RV.cumsum(-1) - likely_RV
    # A rounded sum may reach 1 before the end: a row that keeps all must not lose its tail because of its neighbours.
    beyond_p = (
        (before_RV >= top_p_R[:, None]) & (top_p_R[:, None] < 1.0) & (rank_V > 0)
    )  # the likeliest stays, also for p near 0
    beyond = beyond_k | beyond_p
    return logits_RV.masked_fill(beyond.scatter(-1, order_RV, beyond), float("-inf"))


def keep_at_least(logits_RV: torch.Tensor, min_p_R: torch.Tensor) -> torch.Tensor:
    """Logits with everything less likely than p times the likeliest at minus infinity."""
    least_R1 = logits_RV.amax(-1, keepdim=True) + min_p_R[:, None].log()  # log 0 is minus infinity: all are kept
    return logits_RV.masked_fill(logits_RV < least_R1, float("-inf"))


def gumbel(keys_R: torch.Tensor, steps_R: torch.Tensor, vocabulary_size: int) -> torch.Tensor:
    """Standard Gumbel noise for one step of many rows.

    Args:
        keys_R: (R,) long, `stream_key` of each row.
        steps_R: (R,) long, how many elements each row has filled before.
        vocabulary_size: V.

    Returns:
        (R, V) float32; the argmax of logits plus this noise is a draw from softmax(logits).
    """
    return -torch.log(-torch.log(uniform(keys_R, steps_R, vocabulary_size)))  # never of 0 or 1, so both are finite
