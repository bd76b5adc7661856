"""Kahneman-Tversky optimization: every answer or drawing by itself gains or loses, as it is labelled (arXiv 2402.01306).

g = log p - log r                             of each sequence, r: the model before, which is not trained
1 - sigmoid(beta (g - z))  of chosen ones,    1 - sigmoid(beta (z - g))  of rejected ones
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unimm.batch import Batch
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.runtime.number_checks import check_number
from unimm.sequence import Kind
from unimm.training.objectives.likelihood import JointObjective, no_rank
from unimm.training.objectives.preferences import CHOSEN, REJECTED, ByKind, Preferences
from unimm.training.objectives.sequences import KINDS, is_drawing, num_learned, of_kind, pairs_of


class KTO(Preferences, JointObjective):
    """Kahneman-Tversky optimization: every sequence by itself, above or below a baseline of the whole step.

    The baseline of chosen sequences is the mean gain of the step's rejected ones of their kind, and the other way round; at
    least 0, as a KL divergence is, and without a gradient. (The paper takes mismatched prompts and answers for it.) So a sample
    need not have both: a sequence in which nothing is learned stands in the empty place.

    Args:
        desirable, undesirable: weights of chosen and rejected sequences.
        model, beta, anchor, reference: as `Preferences` has them.
    """

    def __init__(
        self,
        model: UnifiedModel,
        beta: ByKind = 0.1,
        anchor: float = 0.0,
        reference: str = "auto",
        desirable: float = 1.0,
        undesirable: float = 1.0,
    ) -> None:
        super().__init__(model, beta, anchor, reference)
        check_number({"desirable": desirable, "undesirable": undesirable})
        self.lambdas = {CHOSEN: desirable, REJECTED: undesirable}

    def forward(self, batch: Batch) -> Any:
        """dict[str, Tensor], of the sequences of pairs: gains, log_probs, sizes (n,); places and drawn (n,) long; anchor_*
        (1, 3)."""
        scores, log_probs_BT = self.scores(batch)
        compared_n = self._compared(batch)
        sums = self.anchored(batch, log_probs_BT)
        outputs = {name: one[compared_n] for name, one in scores._asdict().items()}
        outputs |= {"places": batch.samples[compared_n, 1], "drawn": is_drawing(batch)[compared_n].long()}
        return outputs | {f"anchor_{name}": torch.stack(list(one))[None] for name, one in sums.items()}

    def joint_loss(self, outputs: Mapping[str, Tensor], rows: Mapping[str, slice]) -> dict[str, LossSums]:
        own = rows["gains"]
        sums = {}
        for kind in KINDS:
            name = kind.name.lower()
            anchor = outputs[f"anchor_{name}"][rows[f"anchor_{name}"]].sum(0)
            sums[name] = LossSums(anchor[0], no_rank(anchor[0]), anchor[2])
            kind_N = outputs["drawn"] == int(kind == Kind.CODES)
            halves_N = {place: kind_N & (outputs["places"] == place) for place in (CHOSEN, REJECTED)}
            parts = [self._half(outputs, halves_N, place, own, self.beta[name]) for place in (CHOSEN, REJECTED)]
            sums[f"preference_{name}"] = LossSums(*(torch.stack(one).sum() for one in zip(*parts, strict=True)))
            for what, place in (("chosen", CHOSEN), ("rejected", REJECTED)):
                mine_n = halves_N[place][own]
                means_n = (outputs["log_probs"][own] / outputs["sizes"][own].clamp(min=1e-6)).detach()[mine_n]
                sums[f"preference/{what}_{name}"] = LossSums(means_n.sum(), no_rank(means_n), mine_n.sum().to(means_n.dtype))
        return sums

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        counts, compared_n = super().counts(batch), self._compared(batch)
        for kind in KINDS:
            own = self.names(kind)
            counts.pop(own[1])
            places_n = batch.samples[compared_n[of_kind(batch, kind)[compared_n]], 1]
            numbers = (places_n >= 0, places_n == CHOSEN, places_n == REJECTED)
            counts |= {name: one.sum().float() for name, one in zip((own[0], *own[2:]), numbers, strict=True)}
        return counts

    def _half(
        self, outputs: Mapping[str, Tensor], halves_N: Mapping[int, Tensor], place: int, own: slice, beta: float
    ) -> LossSums:
        """The sums of these rows' sequences in one place."""
        others_n = outputs["gains"].detach()[halves_N[REJECTED - place]]
        baseline = others_n.mean().clamp(min=0) if len(others_n) else 0.0
        sign = 1.0 if place == CHOSEN else -1.0
        above_n = sign * (outputs["gains"][own][halves_N[place][own]] - baseline)
        loss = self.lambdas[place] * (1 - torch.sigmoid(beta * above_n)).sum()
        return LossSums(loss, (above_n.detach() > 0).sum().to(loss.dtype), loss.new_tensor(float(len(above_n))))

    def _compared(self, batch: Batch) -> Tensor:
        """(n,) long: the documents of pairs in which something is learned."""
        both_n = torch.cat(list(pairs_of(batch))).sort().values
        return both_n[num_learned(batch)[both_n] > 0]
