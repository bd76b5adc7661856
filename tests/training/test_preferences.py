"""Preference tuning beside its gradients (`test_joint_objectives`): references, what is observed, what is refused, and a run
that learns to prefer."""

import copy
from pathlib import Path

import pytest
import torch
from joint_toys import make_joint_trainer, make_mixture_of
from toys import EVERYTHING, make_mixture, make_model

from unimm.batch import Batch
from unimm.data.plan import Plan, Steps
from unimm.models.lora import LoraConfig, attach, is_adapter
from unimm.training.logbook import read_numbers
from unimm.training.objectives.kto import KTO
from unimm.training.objectives.preferences import DPO, SimPO
from unimm.training.optimizers import Budget, OptimizerConfig
from unimm.training.trainable_parts import freeze


def a_batch() -> Batch:
    (batch,) = Steps(Plan(make_mixture_of("dpo"), 64, 8))[0].batches
    return batch


def test_adapters_switched_off_are_the_reference() -> None:
    """The same sums and gradients as against a copy made before the adapters, and they are on again after it."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = make_model()
    before = copy.deepcopy(model)
    attach(model, LoraConfig(4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter += 0.05 * torch.randn_like(parameter)
    batch, found = a_batch(), []
    for reference in ("auto", "copy"):
        objective = DPO(model, beta=0.5, reference=reference)
        if reference == "copy":
            objective.frozen["reference"] = before
        assert ("reference" in objective.frozen) == (reference == "copy")
        model.zero_grad()
        sums = objective(batch)
        sum(sums[f"preference_{name}"].loss for name in ("text", "codes")).backward()  # pyright: ignore
        grads = [p.grad.clone() for name, p in model.named_parameters() if is_adapter(name) and p.grad is not None]
        found.append([*(sums[f"preference/margin_{name}"].loss for name in ("text", "codes")), *grads])
    assert found[0][0] != 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    freeze(model.parts(), EVERYTHING)
    with pytest.raises(ValueError, match="is no fixed reference"):
        DPO(model)(batch)


def test_a_run_learns_to_prefer_and_says_so(tmp_path: Path) -> None:
    """Both kinds, seen on one batch; the reference is where the run began, also after a resume."""
    words = {"optimizer": OptimizerConfig(lr=2e-3), "budget": Budget(max_steps=6)}
    start = make_joint_trainer(tmp_path, "dpo", **{**words, "budget": Budget(max_steps=3)})
    batch = a_batch()
    before = start.objective(batch)
    start.fit()
    trainer = make_joint_trainer(tmp_path, "dpo", **words)
    assert trainer.step == 3
    trainer.fit()
    after, last = trainer.objective(batch), read_numbers(tmp_path / "metrics.jsonl")[-1]
    for kind in ("text", "codes"):
        assert after[f"preference/margin_{kind}"].loss > before[f"preference/margin_{kind}"].loss
        assert {f"loss/preference_{kind}", f"accuracy/preference_{kind}", f"preference/chosen_{kind}"} <= last.keys()
        assert f"accuracy/{kind}" not in last and last[f"loss/{kind}"] > 0


def test_the_anchor_and_observed_numbers_have_their_weights(tmp_path: Path) -> None:
    trainer = make_joint_trainer(tmp_path, "dpo", weights={"codes": 3.0})
    assert trainer.weights == {"text": 0.7, "codes": 3.0}


def test_what_is_refused() -> None:
    model = make_model()
    for make, said in (
        (lambda: DPO(model, beta={"text": 1.0}), "beta is a number, or one for text and one for codes, not for text"),
        (lambda: DPO(model, reference="adapters_off"), "There are no adapters to switch off"),
        (lambda: DPO(model, reference="ema"), "Unknown reference 'ema'"),
        (lambda: DPO(model, loss="ipo", label_smoothing=0.1), "label_smoothing is the sigmoid's"),
        (lambda: KTO(model, beta=-1.0), "beta"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
    (batch,) = Steps(Plan(make_mixture_of("kto_unpaired"), 64, 8))[0].batches
    with pytest.raises(ValueError, match="labelled by itself is no pair: take objective=kto"):
        DPO(model).check(batch)
    (batch,) = Steps(Plan(make_mixture_of("kto"), 64, 8))[0].batches
    objective = KTO(model)
    with pytest.raises(ValueError, match=r"16 batches had none: take data=preferences, or unimm.data.WithPartners"):
        for _ in range(16):
            objective.check(batch)
    objective, (batch,) = SimPO(model), Steps(Plan(make_mixture(), 64, 8))[0].batches
    with pytest.raises(ValueError, match=r"16 batches had none: use the view unimm.data.Preference"):
        for _ in range(16):
            objective.check(batch)
