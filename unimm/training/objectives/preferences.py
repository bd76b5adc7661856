"""Preference tuning: of two answers to a prompt, or two drawings of it, the chosen one gains over the rejected one.

    DPO      m = beta ((log p - log r)(chosen) - (log p - log r)(rejected)),   loss -log sigmoid(m)       arXiv 2305.18290
             r: the model before, which is not trained. loss="ipo": (m / beta - 1 / (2 beta))^2           arXiv 2310.12036
    SimPO    m = beta (mean log p(chosen) - mean log p(rejected)),             loss -log sigmoid(m - gamma)   arXiv 2405.14734
             the mean over a sequence's tokens; there is no reference
    KTO      every sequence by itself (`unimm.training.objectives.kto`)                                    arXiv 2402.01306
    anchor   the likelihood of what is chosen ("text", "codes"), as in fine-tuning: without it, both of a pair may become
             improbable as long as the rejected one does so faster (OSPO, arXiv 2506.02015, adds it with weight 2)

Texts and drawings stand in one batch; each kind has its own mean, beta and margin. A sample is (chosen, rejected), and may hold
a third sequence, which stands for the chosen one in the anchor: the same drawing with the null prompt, which guidance needs.
A sample of one sequence is learned by the anchor alone: other data, so that nothing else is forgotten. Log-probabilities are
conditional: of what follows the prompt, without guidance, as T2I-R1 has it.

What is observed, by kind: preference/margin_*, and the mean log-probability of a token in chosen and rejected sequences.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unimm.batch import Batch
from unimm.data.mixture import Mixture
from unimm.models.lora import adapted_layers, is_adapter, without_adapters
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.runtime.number_checks import check_number
from unimm.sequence import Kind
from unimm.training.held_out_loss import HeldOut
from unimm.training.objectives.likelihood import Likelihood, Run, no_rank
from unimm.training.objectives.sequences import KINDS, is_drawing, num_learned, of_kind, pairs_of, sum_by_sequence
from unimm.training.stored_reference import ReferencedBatch, StoredReference, store_reference

REFERENCES = ("auto", "copy", "adapters_off", "stored")
STORE = "reference"
"""The folder of a run where what the reference says is stored, where no other is named."""

CHOSEN, REJECTED, INSTEAD, MISMATCHED = 0, 1, 2, 3
"""Places in a sample."""

BATCHES_WITHOUT_PAIRS = 16
"""After so many batches without a pair, the data has none."""

ByKind = float | Mapping[str, float]
"""One number, or one for "text" and one for "codes"."""


class Scores(NamedTuple):
    """Of the documents of a batch, (D,) each: sums over what is learned of the log-probabilities, of what they gained over the
    reference (the same where there is none), and of weights."""

    log_probs: Tensor
    gains: Tensor
    sizes: Tensor


class Preferences(Likelihood):
    """What all of them share: the anchor, the reference, and how pairs are found.

    Args:
        model: what is trained.
        beta: how much of a margin is enough, of both kinds or by kind.
        anchor: weight of the likelihood of what is chosen.
        reference: "copy": a frozen copy of the model as it is now; "adapters_off": the model without its adapters, which takes
            no memory, where adapters alone are trained; "auto": the second where there are adapters; "stored": what the model
            says of all pairs before it learns, computed once and kept in the run's folder, or in another, "stored:FOLDER".

    Raises ValueError for a number that is none, or adapters_off without adapters.
    """

    has_reference, needs_both = True, True

    def __init__(self, model: UnifiedModel, beta: ByKind = 0.1, anchor: float = 0.0, reference: str = "auto") -> None:
        super().__init__(model)
        self.beta = by_kind("beta", beta)
        for name, value in self.beta.items():
            check_number({f"beta.{name}": value}, above=0)
        check_number({"anchor": anchor})
        self.anchor = anchor
        self.weights = dict.fromkeys((kind.name.lower() for kind in KINDS), anchor)
        self.num_batches, self.has_pairs = 0, False
        way, colon, named = reference.partition(":")
        if way not in REFERENCES or (colon and (way != "stored" or not named)):
            raise ValueError(f"Unknown reference '{reference}': use one of {', '.join(REFERENCES)}, stored:FOLDER.")
        has_adapters = bool(adapted_layers(model))
        if reference == "adapters_off" and not has_adapters:
            raise ValueError("There are no adapters to switch off: add lora=default, or take reference=copy.")
        self.is_stored, self.store_folder = way == "stored", Path(named) if named else None
        self.store: StoredReference | None = None
        self.is_off = has_adapters and way not in ("copy", "stored")
        if self.has_reference and not self.is_off and not self.is_stored:
            self.frozen["reference"] = copy.deepcopy(model)

    def begin(self, run: Run) -> None:
        """Store what the reference says of all pairs, where that is asked for and not done yet.

        Raises:
            ValueError: what is stored there is another model's.
        """
        if not self.is_stored:
            return
        folder = self.store_folder or run.folder / STORE
        self.store = StoredReference(folder, self.model, run.accelerator.mixed_precision)

        def batches(mixture: Mixture) -> Iterator[tuple[float, Batch]]:
            return HeldOut(mixture, run.row_length, run.num_rows).batches(run.ranks.number, run.ranks.count)

        store_reference(self.store, self.model, run.mixtures, batches, self.compared, (run.accelerator, run.ranks))

    def prepare(self, batch: Batch) -> Batch:
        """With what is stored of its pairs. Raises ValueError where nothing is of one."""
        return batch if self.store is None else self.store.look_up(batch, self.compared(batch))

    def compared(self, batch: Batch) -> list[int]:
        """The documents of a batch whose gain over the reference counts, as rows of `Batch.samples`."""
        return self.judged(batch).tolist()

    def judged(self, batch: Batch) -> Tensor:
        """(n,) long: the documents that are chosen or rejected."""
        both_n = torch.cat(list(pairs_of(batch))).sort().values
        return both_n[num_learned(batch)[both_n] > 0]

    def check(self, batch: Batch) -> None:
        """Raises ValueError where the two of a pair are of different kinds, or there are no pairs at all."""
        super().check(batch)
        pairs, drawn_D, sizes_D = pairs_of(batch), is_drawing(batch), num_learned(batch)
        is_whole_P = (sizes_D[pairs.first] > 0) & (sizes_D[pairs.second] > 0)
        if self.needs_both and not bool(is_whole_P.all()):
            raise ValueError("An answer or a drawing that is labelled by itself is no pair: take objective=kto for such data.")
        if bool(((drawn_D[pairs.first] != drawn_D[pairs.second]) & is_whole_P).any()):
            raise ValueError("The two of a pair are both answers or both drawings, and here they are one of each.")
        self.num_batches += 1
        self.has_pairs |= len(pairs.first) > 0
        if not self.has_pairs and self.num_batches >= BATCHES_WITHOUT_PAIRS:
            raise ValueError(
                f"This objective learns from pairs of a chosen and a rejected sequence, and {self.num_batches} batches had "
                f"none: use the view unimm.data.Preference, such as data=preferences."
            )

    def scores(self, batch: Batch) -> tuple[Scores, Tensor]:
        """Of all documents; and the log-probability of each target, (B, T)."""
        reference_BT = self._reference(batch) if self.has_reference else None
        log_probs_BT = self.model.log_probs(batch)
        gains_BT = (
            log_probs_BT if reference_BT is None else log_probs_BT - reference_BT
        )  # by token: less rounding than of two sums
        log_probs_D, gains_D = (sum_by_sequence(one * batch.weights, batch) for one in (log_probs_BT, gains_BT))
        return Scores(log_probs_D, gains_D, num_learned(batch)), log_probs_BT

    def anchored(self, batch: Batch, log_probs_BT: Tensor) -> dict[str, LossSums]:
        """The likelihood of what is chosen, and of samples of one sequence."""
        weights_BT = self._anchor_weights(batch)
        sums = {}
        for kind in KINDS:
            own_BT = weights_BT * (batch.target_kinds == kind)
            loss = -(own_BT * log_probs_BT).sum()
            sums[kind.name.lower()] = LossSums(loss, no_rank(loss), own_BT.sum())
        return sums

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        weights_BT = self._anchor_weights(batch)
        counts = {kind.name.lower(): (weights_BT * (batch.target_kinds == kind)).sum() for kind in KINDS}
        first_P = pairs_of(batch).first
        for kind in KINDS:
            number = of_kind(batch, kind)[first_P].sum().float()
            counts |= dict.fromkeys(self.names(kind), number)
        return counts

    def names(self, kind: Kind) -> tuple[str, ...]:
        """What is divided by the number of pairs of a kind."""
        own = kind.name.lower()
        return (f"preference_{own}", *(f"preference/{what}_{own}" for what in ("margin", "chosen", "rejected")))

    def observed(self, kind: Kind, margins_p: Tensor, chosen_p: Tensor, rejected_p: Tensor) -> dict[str, LossSums]:
        """Sums that are logged: of pairs of a kind the margin, and both means of log-probabilities."""
        values = dict(zip(self.names(kind)[1:], (margins_p, chosen_p, rejected_p), strict=True))
        count = margins_p.new_full((), len(margins_p))
        return {name: LossSums(one.detach().sum(), no_rank(margins_p), count) for name, one in values.items()}

    def _anchor_weights(self, batch: Batch) -> Tensor:
        """(B, T): the weights of what the anchor learns: not what is rejected, nor what another sequence stands for."""
        samples_D, places_D = batch.samples.unbind(1)
        is_instead_D = (places_D == INSTEAD) & (num_learned(batch) > 0)
        replaced_D = torch.isin(samples_D, samples_D[is_instead_D]) & (places_D == CHOSEN)
        learned_D = (places_D != REJECTED) & (places_D != MISMATCHED) & ~replaced_D
        learned_BT = torch.cat([learned_D, learned_D.new_zeros(1)])[batch.document_indices()]  # the last is padding's
        return batch.weights * learned_BT

    @torch.no_grad()
    def _reference(self, batch: Batch) -> Tensor:
        """(B, T): what the reference says of each target; of a stored one, of those of pairs."""
        if self.is_stored:
            assert isinstance(batch, ReferencedBatch)
            return batch.reference
        if self.is_off:
            self._check_adapters()
            with without_adapters(self.model):
                return self.model.log_probs(batch)
        reference = self.frozen["reference"]
        assert isinstance(reference, UnifiedModel)
        return reference.log_probs(batch)

    def _check_adapters(self) -> None:
        trained = [name for name, one in self.model.named_parameters() if one.requires_grad and not is_adapter(name)]
        if trained:
            raise ValueError(
                f"Without its adapters the model is no fixed reference where {trained[0]} is trained, too: take "
                f"objective.reference=copy, or stage=adapters."
            )


class DPO(Preferences):
    """Direct preference optimization, against a frozen reference.

    Args:
        loss: "sigmoid" or "ipo".
        label_smoothing: the share of pairs that may be the wrong way round (cDPO), of the sigmoid alone.
        model, beta, anchor, reference: as `Preferences` has them.
    """

    splits_rows: ClassVar[bool] = True

    def __init__(
        self,
        model: UnifiedModel,
        beta: ByKind = 0.1,
        anchor: float = 0.0,
        reference: str = "auto",
        loss: str = "sigmoid",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, beta, anchor, reference)
        if loss not in ("sigmoid", "ipo"):
            raise ValueError(f"Unknown loss '{loss}' of DPO: use sigmoid or ipo.")
        check_number({"label_smoothing": label_smoothing}, below=0.5)
        if label_smoothing and loss == "ipo":
            raise ValueError("label_smoothing is the sigmoid's: leave it out, or take loss=sigmoid.")
        self.loss, self.label_smoothing = loss, label_smoothing

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        scores, log_probs_BT = self.scores(batch)
        sums, pairs = self.anchored(batch, log_probs_BT), pairs_of(batch)
        for kind in KINDS:
            chosen_p, rejected_p = (one[of_kind(batch, kind)[pairs.first]] for one in pairs)
            beta = self.beta[kind.name.lower()]
            margins_p = beta * (scores.gains[chosen_p] - scores.gains[rejected_p])
            sums[self.names(kind)[0]] = _ranked(self._loss(margins_p, beta), margins_p)
            means_D = scores.log_probs / scores.sizes.clamp(min=1e-6)
            sums |= self.observed(kind, margins_p, means_D[chosen_p], means_D[rejected_p])
        return self.shared(sums)

    def _loss(self, margins_p: Tensor, beta: float) -> Tensor:
        if self.loss == "ipo":
            return (margins_p / beta - 1 / (2 * beta)).square()
        smooth = self.label_smoothing
        return -(1 - smooth) * F.logsigmoid(margins_p) - smooth * F.logsigmoid(-margins_p)


class SimPO(Preferences):
    """Simple preference optimization: without a reference, by mean log-probabilities, with a margin to reach and an anchor.

    Args:
        gamma: the margin of m that is enough, of both kinds or by kind.
        model, beta, anchor: as `Preferences` has them.
    """

    has_reference = False
    splits_rows: ClassVar[bool] = True

    def __init__(self, model: UnifiedModel, beta: ByKind = 5.0, gamma: ByKind = 2.5, anchor: float = 2.0) -> None:
        super().__init__(model, beta, anchor)
        self.gamma = by_kind("gamma", gamma)

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        scores, log_probs_BT = self.scores(batch)
        sums, pairs = self.anchored(batch, log_probs_BT), pairs_of(batch)
        means_D = scores.log_probs / scores.sizes.clamp(min=1e-6)
        for kind in KINDS:
            chosen_p, rejected_p = (means_D[one[of_kind(batch, kind)[pairs.first]]] for one in pairs)
            name = kind.name.lower()
            margins_p = self.beta[name] * (chosen_p - rejected_p)
            sums[self.names(kind)[0]] = _ranked(-F.logsigmoid(margins_p - self.gamma[name]), margins_p)
            sums |= self.observed(kind, margins_p, chosen_p, rejected_p)
        return self.shared(sums)


def by_kind(name: str, value: ByKind) -> dict[str, float]:
    """A number of each kind. Raises ValueError for other kinds."""
    known = {kind.name.lower() for kind in KINDS}
    if not isinstance(value, Mapping):
        return dict.fromkeys(sorted(known), float(value))
    if set(value) != known:
        raise ValueError(
            f"{name} is a number, or one for text and one for codes, not for {', '.join(map(str, value)) or 'none'}."
        )
    return {kind: float(one) for kind, one in value.items()}


def _ranked(losses_p: Tensor, margins_p: Tensor) -> LossSums:
    count = losses_p.new_full((), len(losses_p))
    return LossSums(losses_p.sum(), (margins_p.detach() > 0).sum().to(losses_p.dtype), count)
