"""Objectives that compare sequences, on pairs of toy pictures, for `test_joint_objectives` and `test_samples_in_processes`."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unimm.batch import Batch
from unimm.data.mixture import Mixture, Source
from unimm.data.pairs import ImageText
from unimm.data.partners import WithPartners
from unimm.data.preferences import Preference
from unimm.data.records import DEFAULT_CODES, Record, RecordImage
from unimm.data.views import Drawing
from unimm.models.contrastive import ContrastiveConfig
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.models.vision.projectors import ProjectorConfig
from unimm.models.vision.qformer_text import QFormerTextConfig
from unimm.training.objectives.contrastive import Contrastive
from unimm.training.objectives.kto import KTO
from unimm.training.objectives.likelihood import Objective
from unimm.training.objectives.preferences import DPO, SimPO
from unimm.training.objectives.qformer_alignment import QFormerAlignment
from unimm.training.optimizers import OptimizerConfig
from unimm.training.sharding import Sharding, whole
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer, TrainerConfig

from pairs import PairView  # isort: skip
from toys import EVERYTHING, Squares, make_config, make_model, make_template  # isort: skip

HEADS = ContrastiveConfig(dim=16, text_width=32, text_layers=2, text_heads=2, text_positions=40)
SIGMOID = replace(HEADS, causal=False, text_pool="attention", logit_scale=10.0, logit_bias=-2.0)
ALIGN = Stage("contrastive", {"vision": 1.0, "text_tower": 1.0, "contrastive_head": 1.0})
QFORMER = ProjectorConfig("qformer", depth=2, num_queries=4, width=32, num_heads=4)
QFORMER_TEXT = QFormerTextConfig(dim=16, text_positions=40)
READ = Stage("qformer", {"projector": 1.0, "qformer_text": 1.0})
PREFERENCES: dict[str, Callable[[UnifiedModel], Objective]] = {
    "dpo": lambda model: DPO(model, beta={"text": 0.5, "codes": 0.3}, anchor=0.7, label_smoothing=0.1),
    "dpo_stored": lambda model: DPO(model, beta={"text": 0.5, "codes": 0.3}, anchor=0.7, label_smoothing=0.1),
    "simpo": lambda model: SimPO(model, gamma={"text": 0.5, "codes": 0.3}),
    "kto": lambda model: KTO(model, beta=0.4, anchor=0.5, desirable=1.5, mismatched=False),
    "kto_unpaired": lambda model: KTO(model, beta={"text": 0.4, "codes": 0.3}, anchor=0.5, desirable=1.5),
}
"""Objectives of answers and drawings in one batch, in float64."""
STORED = "dpo_stored"
"""What its reference says is read from a folder."""
STAGES = {**dict.fromkeys(PREFERENCES, EVERYTHING), "pairwise": EVERYTHING, "softmax": ALIGN, "sigmoid": ALIGN, "qformer": READ}
CASES = {
    **{"dpo": "ddp", STORED: "fsdp", "simpo": "fsdp", "kto": "ddp", "kto_unpaired": "fsdp"},
    **{"pairwise": "ddp", "softmax": "ddp", "sigmoid": "fsdp", "qformer": "fsdp"},
}
"""Objectives, and how two processes hold them."""


class Pairwise(Objective):
    """Of two sequences of a sample, the first gains more likelihood over a frozen reference than the second (DPO's form)."""

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model
        self.frozen["reference"] = copy.deepcopy(model)
        moved(self)

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        with torch.no_grad():
            told = likelihoods(self.frozen["reference"], batch)
        gains_S2 = 0.1 * (likelihoods(self.model, batch) - told)
        margins_S = gains_S2[:, 0] - gains_S2[:, 1]
        count = margins_S.new_tensor(float(len(margins_S)))
        return {"pairs": LossSums(-F.logsigmoid(margins_S).sum(), (margins_S > 0).sum().float(), count)}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"pairs": (batch.samples[:, 1] == 0).sum().float()}


def likelihoods(model, batch: Batch) -> Tensor:
    """(S, 2): the log-likelihood of both sequences of each sample."""
    documents_BT, log_probs_BT = batch.document_indices(), model.log_probs(batch)
    sums_D = log_probs_BT.new_zeros(len(batch.samples)).index_add(
        0, documents_BT.clamp(min=0).flatten(), log_probs_BT.flatten()
    )
    return sums_D.new_zeros(len(batch.samples) // 2, 2).index_put((batch.samples[:, 0], batch.samples[:, 1]), sums_D)


def make_objective(name: str) -> Objective:
    """The same one every time."""
    torch.manual_seed(0)
    model = make_model()
    if name == "pairwise":
        return Pairwise(model)
    if name in PREFERENCES:
        return moved(PREFERENCES[name](model.double()), -0.02 if name == "kto_unpaired" else 0.02)  # KTO's baseline is above 0
    if name == "qformer":
        return QFormerAlignment(UnifiedModel(replace(model.config, projector=QFORMER)), QFORMER_TEXT)
    return Contrastive(model, HEADS if name == "softmax" else SIGMOID, name)


def moved(objective: Objective, size: float = 0.02) -> Objective:
    """The same, with a reference that is not the model: else nothing has gained yet."""
    for reference in objective.frozen.values():
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in reference.parameters():
                parameter += size * torch.randn_like(parameter)
    return objective


class Preferred(Squares):
    """Answers and drawings of the squares in turn, with another square's as the rejected one; every third is no pair."""

    def __getitem__(self, index: int) -> Record:
        own, other = super().__getitem__(index), super().__getitem__((index + 5) % len(self))
        if index % 2:
            return replace(
                own,
                questions=tuple(
                    replace(one, rejected=no.answer) for one, no in zip(own.questions, other.questions, strict=True)
                ),
            )
        both = RecordImage(other.image, {DEFAULT_CODES: other.codes})
        return replace(own, questions=(), others=(both,))


class Labelled(Preferred):
    """Answers and drawings in turn, each by itself and labelled."""

    def __getitem__(self, index: int) -> Record:
        return replace(super().__getitem__(index), others=(), label=index % 4 < 2)


def make_mixture_of(name: str) -> Mixture:
    """Pairs of sequences, or of images and texts: 12 records, so that texts and images come twice in a step. Preferences with
    other data beside them."""
    if name == "kto_unpaired":
        view = Preference(0.3, mismatched=True)
        sources = [Source("labelled", WithPartners(Labelled()), view, 3.0), Source("draw", Squares(), Drawing(0.0), 1.0)]
        return Mixture(sources, make_template(), 4)  # its first step has good and bad ones of both kinds
    if name in PREFERENCES:
        sources = [Source("prefer", Preferred(), Preference(0.3), 3.0), Source("draw", Squares(), Drawing(0.0), 1.0)]
        return Mixture(sources, make_template(), 0)
    view = PairView() if name == "pairwise" else ImageText(max_positions=40)
    return Mixture([Source("pairs", Squares(), view)], make_template(), 0)


def make_joint_trainer(folder: Path, name: str, num_micro_batches: int = 1, device: str | None = "cpu", **changes) -> Trainer:
    """Without clipping: its gradients are what is compared. Without a Q-Former's match, whose wrong pairs are drawn from a
    micro-batch, by chance."""
    config = make_config(
        4,
        stage=STAGES[name],
        optimizer=OptimizerConfig(max_grad_norm=None),
        num_positions=64,
        num_rows=8,
        num_micro_batches=num_micro_batches,
        weights={"match": 0.0},
        sharding=Sharding(CASES[name]),
    )
    objective, mixture, config = make_objective(name), make_mixture_of(name), replace(config, **changes)
    if name == STORED:
        assert isinstance(objective, DPO)
        store_of_reference(objective, mixture, config, folder / "stored", device)
    return Trainer(objective, mixture, config, folder, device)


def store_of_reference(objective: DPO, mixture: Mixture, config: TrainerConfig, folder: Path, device: str | None) -> None:
    """Have a run that begins with the reference of an objective store what that says, and the objective read it."""
    reference = objective.frozen.pop("reference")
    assert isinstance(reference, UnifiedModel)
    before = DPO(copy.deepcopy(reference), reference=f"stored:{folder}")
    Trainer(before, mixture, config, folder.with_name("before"), device)
    store = before.store
    assert store is not None
    objective.is_stored, objective.begin = True, lambda run: setattr(objective, "store", store)


def first_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Of the first step, in one piece, and its loss; every process must call it."""
    trainer.objective.set_attention("documents")
    gradient = trainer.compute_gradient(trainer.data()[0])
    grads = {name: whole(p.grad).clone() for name, p in trainer.objective.named_parameters() if p.grad is not None}
    sums = trainer.accelerator.reduce(gradient.loss.detach().clone(), "sum")
    trainer.forget_step()
    return {**grads, "loss": sums}
