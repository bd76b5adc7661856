"""Kahneman-Tversky optimization: every answer or drawing by itself gains or loses, as it is labelled (arXiv 2402.01306).

    g = log p - log r                             of each sequence, r: the model before, which is not trained
    1 - sigmoid(beta (g - z))  of good ones,      1 - sigmoid(beta (z - g))  of bad ones

z is how far the model has moved from the reference as a whole, an estimate of their KL divergence: the mean gain of mismatched
sequences, each a prompt of the step with the answer or drawing of another record (`unimm.data.partners`; TRL shifts a batch by
one for it), or of what is labelled the other way; at least 0, and without a gradient. All of a step count, of all micro-batches
and processes, so that loss and gradients do not depend on how it is cut.

Shapes: D documents of a batch, n of them that are judged, m mismatched ones, N and M those of a step.
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
from unimm.training.objectives.preferences import BATCHES_WITHOUT_PAIRS, CHOSEN, MISMATCHED, REJECTED, ByKind, Preferences
from unimm.training.objectives.sequences import KINDS, is_drawing, of_kind


class KTO(Preferences, JointObjective):
    """See the module. A sample is a pair, or one answer or drawing by itself: a sequence in which nothing is learned stands in
    the other place then. Texts and drawings have a baseline each; of a step without mismatched sequences it is 0.

    Args:
        desirable, undesirable: weights of good and bad ones. Where there are n and m of them, the paper wants n * desirable
            between 1 and 4/3 of m * undesirable.
        mismatched: whether the baseline is the mean over mismatched sequences, which the samples then hold. Else that of good
            ones is the mean gain of the step's bad ones, and the other way round.
        model, beta, anchor, reference: as `Preferences` has them.
    """

    needs_both = False

    def __init__(
        self,
        model: UnifiedModel,
        beta: ByKind = 0.1,
        anchor: float = 0.0,
        reference: str = "auto",
        desirable: float = 1.0,
        undesirable: float = 1.0,
        mismatched: bool = True,
    ) -> None:
        super().__init__(model, beta, anchor, reference)
        check_number({"desirable": desirable, "undesirable": undesirable})
        self.lambdas = {CHOSEN: desirable, REJECTED: undesirable}
        self.mismatched, self.has_mismatched = mismatched, False

    def check(self, batch: Batch) -> None:
        """As every preference has it; and raises ValueError where the baseline is of mismatched sequences, and none are."""
        super().check(batch)
        self.has_mismatched |= bool((batch.samples[:, 1] == MISMATCHED).any())
        if self.mismatched and not self.has_mismatched and self.num_batches >= BATCHES_WITHOUT_PAIRS:
            raise ValueError(
                f"The baseline of KTO is a mean over prompts with the answers of other records, and {self.num_batches} batches "
                f"had none: take data=preferences, or unimm.data.WithPartners and Preference(mismatched=true) for data of your "
                f"own, or objective.mismatched=false."
            )

    def forward(self, batch: Batch) -> Any:
        """dict[str, Tensor], of the sequences of pairs: gains, log_probs, sizes (n,); places and drawn (n,) long; anchor_*
        (1, 3)."""
        scores, log_probs_BT = self.scores(batch)
        compared_n, others_m = self.judged(batch), self._mismatched(batch)
        sums = self.anchored(batch, log_probs_BT)
        outputs = {name: one[compared_n] for name, one in scores._asdict().items()}
        outputs |= {"places": batch.samples[compared_n, 1], "drawn": is_drawing(batch)[compared_n].long()}
        outputs["mismatched"] = scores.gains.detach()[others_m]
        outputs["mismatched_drawn"] = is_drawing(batch)[others_m].long()
        return outputs | {f"anchor_{name}": torch.stack([torch.stack(list(one))]) for name, one in sums.items()}

    def joint_loss(self, outputs: Mapping[str, Tensor], rows: Mapping[str, slice]) -> dict[str, LossSums]:
        own = rows["gains"]
        sums = {}
        for kind in KINDS:
            name = kind.name.lower()
            anchor = outputs[f"anchor_{name}"][rows[f"anchor_{name}"]].sum(0)
            sums[name] = LossSums(anchor[0], no_rank(anchor[0]), anchor[2])
            kind_N = outputs["drawn"] == int(kind == Kind.CODES)
            halves_N = {place: kind_N & (outputs["places"] == place) for place in (CHOSEN, REJECTED)}
            baselines = self._baselines(outputs, halves_N, kind)
            if self.mismatched:
                mine = rows["mismatched"]
                values_m = outputs["mismatched"][mine][outputs["mismatched_drawn"][mine] == int(kind == Kind.CODES)].detach()
                count = values_m.new_full((), len(values_m))
                sums[f"preference/baseline_{name}"] = LossSums(values_m.sum(), no_rank(values_m.sum()), count)
            parts = [self._half(outputs, halves_N, place, own, baselines) for place in (CHOSEN, REJECTED)]
            sums[f"preference_{name}"] = LossSums(*(torch.stack(one).sum() for one in zip(*parts, strict=True)))
            for what, place in (("chosen", CHOSEN), ("rejected", REJECTED)):
                mine_n = halves_N[place][own]
                means_n = (outputs["log_probs"][own] / outputs["sizes"][own].clamp(min=1e-6)).detach()[mine_n]
                sums[f"preference/{what}_{name}"] = LossSums(means_n.sum(), no_rank(means_n), mine_n.sum().to(means_n.dtype))
        return sums

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        counts, compared_n = super().counts(batch), self.judged(batch)
        for kind in KINDS:
            own = self.names(kind)
            counts.pop(own[1])
            places_n = batch.samples[compared_n[of_kind(batch, kind)[compared_n]], 1]
            numbers = (places_n >= 0, places_n == CHOSEN, places_n == REJECTED)
            counts |= {name: one.sum().float() for name, one in zip((own[0], *own[2:]), numbers, strict=True)}
            if self.mismatched:
                of_kind_m = of_kind(batch, kind)[self._mismatched(batch)]
                counts[f"preference/baseline_{kind.name.lower()}"] = of_kind_m.sum().float()
        return counts

    def _baselines(self, outputs: Mapping[str, Tensor], halves_N: Mapping[int, Tensor], kind: Kind) -> dict[int, Any]:
        """By place: of the whole step."""
        gains_N = outputs["gains"].detach()
        means = {place: gains_N[halves_N[REJECTED - place]] for place in (CHOSEN, REJECTED)}
        if self.mismatched:
            of_kind_M = outputs["mismatched_drawn"] == int(kind == Kind.CODES)
            means = dict.fromkeys(means, outputs["mismatched"].detach()[of_kind_M])
        return {place: one.mean().clamp(min=0) if len(one) else 0.0 for place, one in means.items()}

    def _half(
        self, outputs: Mapping[str, Tensor], halves_N: Mapping[int, Tensor], place: int, own: slice, baselines: dict[int, Any]
    ) -> LossSums:
        """The sums of these rows' sequences in one place."""
        is_own_n = halves_N[place][own]
        sign = 1.0 if place == CHOSEN else -1.0
        above_n = sign * (outputs["gains"][own][is_own_n] - baselines[place])
        betas_n = torch.where(outputs["drawn"][own][is_own_n] == 1, self.beta["codes"], self.beta["text"])
        loss = self.lambdas[place] * (1 - torch.sigmoid(betas_n * above_n)).sum()
        return LossSums(loss, (above_n.detach() > 0).sum().to(loss.dtype), loss.new_full((), len(above_n)))

    def compared(self, batch: Batch) -> list[int]:
        return sorted([*super().compared(batch), *self._mismatched(batch).tolist()])

    def _mismatched(self, batch: Batch) -> Tensor:
        """(m,) long: the mismatched documents, where they count."""
        found_m = (batch.samples[:, 1] == MISMATCHED).nonzero().squeeze(1)
        return found_m if self.mismatched else found_m[:0]
