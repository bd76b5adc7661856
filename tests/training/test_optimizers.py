"""Optimizers: every learning parameter in one group, of the right optimizer, rate and decay."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import EVERYTHING, make_model

from unimm.models.unified import UnifiedModel
from unimm.training.optimizers import OptimizerConfig, Optimizers

CONFIG = OptimizerConfig(lr=1e-3, muon_lr=0.02, weight_decay=0.1)


def groups_of(model: UnifiedModel, config: OptimizerConfig, factors: dict[str, float] | None = None) -> dict[str, tuple]:
    """Parameter name -> (optimizer, rate, decay); fails where one is moved twice."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, tuple] = {}
    for optimizer, one in Optimizers(model.parts(), factors or EVERYTHING.lr_scales, config, model.hidden_parts()).all.items():
        for group in one.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                assert name not in found
                found[name] = (optimizer, group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("muon_lr", [None, 0.02])
@pytest.mark.parametrize("tied", [False, True])
def test_everything_that_learns_is_moved_once(muon_lr: float | None, tied: bool) -> None:
    model = make_model()
    if tied:
        model = UnifiedModel(replace(model.config, trunk={**model.config.trunk, "tie_word_embeddings": True}))
    found = groups_of(model, replace(CONFIG, muon_lr=muon_lr))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert {optimizer for optimizer, _, _ in found.values()} == ({"adamw", "muon"} if muon_lr else {"adamw"})


def test_muon_moves_hidden_matrices_and_norms_and_embeddings_do_not_decay() -> None:
    model = make_model()
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, (optimizer, rate, decay) in groups_of(model, CONFIG).items():
        parameter = model.get_parameter(name)
        is_matrix = parameter.dim() == 2 and id(parameter) not in embeddings
        hidden = is_matrix and name.startswith(("trunk.", "pixels."))
        assert (optimizer, rate) == (("muon", 0.02) if hidden else ("adamw", 1e-3)), name
        assert decay == (0.1 if is_matrix or "patch_embed.proj.weight" in name else 0.0), name


def test_factors_scale_rates_and_what_is_not_named_stays_out() -> None:
    found = groups_of(make_model(), CONFIG, {"projector": 0.5, "code_head": 2.0})
    assert all(name.startswith(("pixels.projector", "codes.head")) for name in found)
    assert {rate for optimizer, rate, _ in found.values() if optimizer == "muon"} == {0.01}
    assert {rate for optimizer, rate, _ in found.values() if optimizer == "adamw"} == {5e-4, 2e-3}


def test_scale_goes_from_the_base_rate() -> None:
    optimizers = Optimizers(make_model().parts(), {"trunk": 0.5}, CONFIG, ["trunk"])
    for factor in (0.5, 0.1, 1.0):
        optimizers.scale(factor)
        rates = {name: {group["lr"] for group in one.param_groups} for name, one in optimizers.all.items()}
        assert rates == {"adamw": {5e-4 * factor}, "muon": {0.01 * factor}}


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, muon_lr=None)])
def test_a_step_moves_by_about_the_rate_and_clears_the_gradients(config: OptimizerConfig) -> None:
    model = make_model()
    optimizers = Optimizers(model.parts(), EVERYTHING.lr_scales, replace(config, weight_decay=0.0), model.hidden_parts())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers.step(torch.tensor(1.0))
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).abs().mean()
        assert 1e-4 < moved < 1e-2, name
        assert parameter.grad is None


@pytest.mark.parametrize("muon_lr", [None, 0.01])
def test_a_step_counts_as_a_change_of_every_parameter(muon_lr: float | None) -> None:
    """An engine of the model that is trained knows by the versions that its copies of the weights are old."""
    model = make_model()
    optimizers = Optimizers(model.parts(), EVERYTHING.lr_scales, OptimizerConfig(muon_lr=muon_lr), model.hidden_parts())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [parameter._version for parameter in model.parameters()]
    optimizers.step(torch.tensor(1.0))
    assert all(after._version > version for after, version in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_changes_nothing_and_a_finite_one_all(norm: float) -> None:
    """Neither weights nor what the optimizers keep, also where they have kept nothing yet; and it is no step of theirs."""
    torch.manual_seed(0)
    ours, plain = (nn.ModuleDict({"a": nn.Linear(4, 3)}) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    optimizers = [Optimizers({"a": one["a"]}, {"a": 1.0}, CONFIG, ("a",)) for one in (ours, plain)]
    for step in range(3):
        for one in (ours, plain):
            torch.manual_seed(step)
            for parameter in one.parameters():
                parameter.grad = torch.randn_like(parameter)
        if step != 1:
            for one in optimizers:
                one.step(torch.tensor(1.0))
        else:
            for parameter in ours.parameters():
                parameter.grad = torch.full_like(parameter, norm)
            optimizers[0].step(torch.tensor(norm))
            optimizers[1].clear()
        assert all(parameter.grad is None for parameter in ours.parameters())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
        for name, one in optimizers[0].all.items():
            kept, other = one.state_dict()["state"], optimizers[1].all[name].state_dict()["state"]
            assert kept.keys() == other.keys() and kept
            for place, state in kept.items():
                assert all(torch.equal(tensor, other[place][key]) for key, tensor in state.items())
