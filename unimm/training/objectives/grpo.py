"""GRPO: a policy learns from groups of its own rollouts, by how good each is within its group (arXiv 2402.03300).

    r_t  = exp(log p(o_t) - log p_old(o_t))           of every element that was drawn or written
    loss = - min(r_t A, clip(r_t, 1 - low, 1 + high) A) + kl k3_t
    k3_t = q - log q - 1,  q = p_reference / p        an unbiased estimate of the KL divergence that is never negative

A is the advantage of the whole rollout (`unimm.training.rollouts`). What is named by flags:

    length      what each rollout's sum is divided by: "tokens": all elements of a step alike (T2I-R1, DAPO); "sequence": by its
                own length (GRPO's paper); a number: by this constant (Dr. GRPO, arXiv 2503.20783)
    ratio       "token", or "sequence": exp of the mean over a rollout (GSPO, arXiv 2507.18071)
    guidance    1.0: log-probabilities are those of the prompt alone (T2I-R1); else of the guided distribution
                u + s (c - u), from which drawings are sampled (UniRL). Temperature is always part of them.

Old and reference log-probabilities come from `score`: the same batches go through the same layers, teacher-forced, so before
the first update every ratio is 1. Those of the decode loop are not used: in reduced precision they differ, and guidance makes
that larger than a clip of 1e-2.

Shapes: B rows, T positions, D documents, n elements of rollouts, m of a chunk, W trunk width, V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unimm.batch import Batch
from unimm.models.lora import adapted_layers, adapters_off
from unimm.models.ports.base import LossSums
from unimm.models.ports.vocabulary import CHUNK_LOGITS, VocabularyPort
from unimm.models.unified import UnifiedModel
from unimm.training.flops import FlopCount
from unimm.training.objectives.likelihood import Objective, no_rank

LENGTHS, RATIOS = ("tokens", "sequence"), ("token", "sequence")
OBSERVED = ("policy/entropy", "policy/clipped", "policy/ratio_error")
"""Numbers that are not learned from: mean entropy; the share of elements beyond the clip; the mean of |r - 1|."""

ROLLOUT, NULL = 0, 1
"""Places of a sample: a rollout, and the same elements behind its null prompt, where guidance is part of log-probabilities."""


@dataclass(frozen=True)
class RolloutBatch(Batch):
    """Rollouts in rows.

    advantages: (D,) float, of every document. old, reference: (B, T) float, log-probabilities at the positions that predict;
    without rows where they are not known.
    """

    advantages: Tensor
    old: Tensor
    reference: Tensor

    @classmethod
    def of(cls, batch: Batch, advantages_D: Tensor) -> "RolloutBatch":
        """One that was not scored."""
        empty = torch.zeros(0, batch.tokens.shape[1])
        return cls(**vars(batch), advantages=advantages_D, old=empty, reference=empty)


class Policy(NamedTuple):
    """What a policy says of the elements of a batch's rollouts, in reading order.

    positions_n: counted over all rows. documents_n: of each. entropy_n: of the distribution at its place, without a graph.
    """

    positions_n: Tensor
    documents_n: Tensor
    log_probs_n: Tensor
    entropy_n: Tensor


class GRPO(Objective):
    """See the module. A batch is a `RolloutBatch`.

    Args:
        clip_low, clip_high: how far ratios count; None for the second: as the first.
        kl: weight of the divergence from a frozen reference; 0: there is none.
        ratio, length, guidance_scale: see the module; temperature: that of sampling.

    With adapters the reference is the model without them; else it is a copy. Raises ValueError for settings that make no sense.
    """

    why_whole: ClassVar[str] = "every process makes rollouts of its own, with the whole model"

    def __init__(
        self,
        model: UnifiedModel,
        clip_low: float = 0.2,
        clip_high: float | None = None,
        kl: float = 0.0,
        ratio: str = "token",
        length: str | float = "tokens",
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if ratio not in RATIOS:
            raise ValueError(f"Unknown ratio '{ratio}': use one of {', '.join(RATIOS)}.")
        if isinstance(length, str) and length not in LENGTHS:
            raise ValueError(f"Unknown length '{length}': use one of {', '.join(LENGTHS)}, or a number.")
        bounds = {"clip_low": clip_low, "clip_high": clip_low if clip_high is None else clip_high, "temperature": temperature}
        for name, value in {**bounds, "length": 1.0 if isinstance(length, str) else length}.items():
            if not value > 0:
                raise ValueError(f"objective.{name} is a number above 0, not {value}.")
        if kl < 0:
            raise ValueError(f"objective.kl is a weight of at least 0, not {kl}.")
        self.model, self.kl, self.ratio, self.length = model, kl, ratio, length
        self.low, self.high = bounds["clip_low"], bounds["clip_high"]
        self.guidance_scale, self.temperature = guidance_scale, temperature
        self.weights = {"kl": kl}
        if kl and not adapted_layers(model):
            self.frozen["reference"] = copy.deepcopy(model)

    def check(self, batch: Batch) -> None:
        self.model.check(batch)

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        """policy, kl; and, not learned from, those of `OBSERVED`."""
        assert isinstance(batch, RolloutBatch)
        found = self.policy(self.model, batch)
        log_probs_n, old_n = found.log_probs_n, self._at(batch.old, found)
        logs_n = log_probs_n - (log_probs_n.detach() if old_n is None else old_n)
        lengths_D = _sums(torch.ones_like(logs_n), found.documents_n, len(batch.samples))
        if self.ratio == "sequence":
            means_D = _sums(logs_n, found.documents_n, len(batch.samples)) / lengths_D.clamp(min=1)
            logs_n = means_D[found.documents_n]
        ratio_n = logs_n.exp()
        gains_n = batch.advantages.to(ratio_n)[found.documents_n]
        clipped_n = ratio_n.clamp(1 - self.low, 1 + self.high)
        shares_n = self._shares(lengths_D[found.documents_n])
        loss_n = -torch.minimum(ratio_n * gains_n, clipped_n * gains_n)
        beyond_n = ((ratio_n > 1 + self.high) & (gains_n > 0)) | ((ratio_n < 1 - self.low) & (gains_n < 0))
        counts = {name: count.to(loss_n) for name, count in self.counts(batch).items()}
        seen = dict(zip(OBSERVED, (found.entropy_n, beyond_n.to(loss_n), (ratio_n - 1).abs()), strict=True))
        sums = {"policy": (loss_n * shares_n).sum(), **{name: values_n.detach().sum() for name, values_n in seen.items()}}
        if (reference_n := self._at(batch.reference, found)) is not None:
            away_n = reference_n - log_probs_n
            sums["kl"] = ((away_n.exp() - away_n - 1) * shares_n).sum()
        return {name: LossSums(one, no_rank(one), counts[name]) for name, one in sums.items()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        documents_BT = batch.document_indices()
        is_learned_BT = (batch.weights > 0) & (documents_BT >= 0)
        is_own_D = batch.samples[:, 1] == ROLLOUT
        num_elements = (is_learned_BT & is_own_D[documents_BT.clamp(min=0)]).sum().float() if len(is_own_D) else torch.zeros(())
        num = num_elements if self.length == "tokens" else is_own_D.sum().float()
        names = ("policy", "kl") if self.kl else ("policy",)
        return {**dict.fromkeys(names, num), **dict.fromkeys(OBSERVED, num_elements)}

    @torch.no_grad()
    def score(self, batch: RolloutBatch, keep_old: bool = True) -> RolloutBatch:
        """The batch with its log-probabilities as they are now, where they are to be kept, and those of the reference."""
        zeros_BT = torch.zeros(batch.tokens.shape, device=batch.tokens.device)

        def placed(found: Policy) -> Tensor:
            values = zeros_BT.to(found.log_probs_n).flatten()
            return values.index_put((found.positions_n,), found.log_probs_n).view(zeros_BT.shape)

        scored = replace(batch, old=placed(self.policy(self.model, batch))) if keep_old else batch
        if not self.kl:
            return scored
        with self._reference() as reference:
            return replace(scored, reference=placed(self.policy(reference, batch)))

    def policy(self, model: UnifiedModel, batch: Batch) -> Policy:
        """What a model says of the rollouts of a batch."""
        return policy_of(model, batch, self.temperature, self.guidance_scale)

    def flop_count(self) -> FlopCount:
        return FlopCount(self.model)

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        frozen = self.frozen.get("reference")
        with nullcontext() if frozen is not None else adapters_off(self.model):
            yield self.model if frozen is None else frozen

    def _at(self, values_BT: Tensor, found: Policy) -> Tensor | None:
        return values_BT.flatten()[found.positions_n] if len(values_BT) else None

    def _shares(self, lengths_n: Tensor) -> Tensor:
        """What the loss of every element is divided by, of its rollout's length, as factors."""
        if self.length == "tokens":
            return torch.ones_like(lengths_n)
        return 1 / lengths_n if self.length == "sequence" else torch.full_like(lengths_n, 1 / float(self.length))


def policy_of(model: UnifiedModel, batch: Batch, temperature: float = 1.0, guidance_scale: float = 1.0) -> Policy:
    """The log-probabilities of what was chosen in rollouts, as it was sampled: with temperature, and with guidance where the
    batch holds the same elements behind the null prompt (`NULL`)."""
    positions_M, hidden_MW, is_read = model.hidden_of_targets(batch)
    documents_M = batch.document_indices().flatten()[positions_M]
    parts: list[Policy] = []
    for kind, port in model.vocabulary_ports.items():
        where_n = is_read[kind].nonzero().squeeze(1)
        places_n2 = batch.samples[documents_M[where_n]]
        own_n, null_n = where_n[places_n2[:, 1] == ROLLOUT], where_n[places_n2[:, 1] == NULL]
        samples_n, twins_n = batch.samples[documents_M[own_n], 0], batch.samples[documents_M[null_n], 0]
        is_guided_n = torch.isin(samples_n, twins_n)
        for is_guided in (False, True):
            chosen_n = own_n[is_guided_n == is_guided]
            order_n = samples_n[is_guided_n == is_guided].argsort(stable=True)
            # Both are in reading order: sorted by sample, an element and its twin have the same place.
            chosen_n, twin_n = chosen_n[order_n], null_n[twins_n.argsort(stable=True)] if is_guided else None
            others_nW = None if twin_n is None else hidden_MW[twin_n]
            targets_n = batch.targets.flatten()[positions_M[chosen_n]]
            told = _log_probs(port, hidden_MW[chosen_n], others_nW, targets_n, temperature, guidance_scale)
            parts.append(Policy(positions_M[chosen_n], documents_M[chosen_n], *told))
    joined = [torch.cat(columns) for columns in zip(*parts, strict=True)]
    order_n = joined[0].argsort()
    return Policy(*(column[order_n] for column in joined))


def _log_probs(
    port: VocabularyPort,
    hidden_nW: Tensor,
    others_nW: Tensor | None,
    targets_n: Tensor,
    temperature: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(n,) of the targets, and the entropies (n,), in chunks whose logits are computed again for the backward pass."""
    hidden_nW, last = port.before_last(hidden_nW)
    others_nW = hidden_nW[:0] if others_nW is None else port.before_last(others_nW)[0]

    def of_chunk(hidden_mW: Tensor, others_mW: Tensor, targets_m: Tensor) -> tuple[Tensor, Tensor]:
        logits_mV = _precise(F.linear(hidden_mW, last.weight, last.bias))
        if len(others_mW):
            null_mV = _precise(F.linear(others_mW, last.weight, last.bias))
            logits_mV = null_mV + scale * (logits_mV - null_mV)
        logs_mV = (logits_mV / temperature).log_softmax(-1)
        entropy_m = -(logs_mV.detach().exp() * logs_mV.detach()).sum(-1)
        return logs_mV.gather(1, targets_m[:, None])[:, 0], entropy_m

    most = CHUNK_LOGITS.get(hidden_nW.device.type, CHUNK_LOGITS["cpu"])
    size = max(1, most // (2 * port.vocabulary_size))
    others = others_nW.split(size) if len(others_nW) else [others_nW] * max(1, -(-len(hidden_nW) // size))
    chunks = zip(hidden_nW.split(size), others, targets_n.split(size), strict=True)
    found: list[Any] = [checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks]
    log_probs, entropy = (torch.cat(column) for column in zip(*found, strict=True))
    return log_probs, entropy


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _sums(values_n: Tensor, documents_n: Tensor, num_documents: int) -> Tensor:
    """(D,): over the elements of each document."""
    return values_n.new_zeros(num_documents).index_add(0, documents_n, values_n)
