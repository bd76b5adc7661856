"""What a training needs, estimated without weights, is what its passes allocate."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from toys import EVERYTHING, make_config, make_mixture, make_model, make_steps

from unimm.batch import Batch
from unimm.models import context_parallel
from unimm.models.context_parallel import ContextGroup
from unimm.models.unified import UnifiedModel
from unimm.training.memory import AllocationPeak, Machine, Memory, PassSizes, estimate, measure_passes
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import OptimizerConfig
from unimm.training.sharding import Sharding
from unimm.training.trainable_parts import freeze

ALONE = Machine(1, "cpu", is_bf16=False)


@cache
def batch() -> Batch:
    return make_steps(make_mixture())[0].batches[0]


def on_meta() -> Likelihood:
    config = make_model().config
    with torch.device("meta"):
        objective = Likelihood(UnifiedModel(config))
    freeze(objective.parts(), EVERYTHING)
    return objective


def needed(machine: Machine = ALONE, **changes: Any) -> Memory:
    objective = on_meta()
    return estimate(objective, make_config(1, **changes), PassSizes.of(batch(), objective.model), machine)


def test_what_passes_are_estimated_to_take_is_what_they_take() -> None:
    objective = Likelihood(make_model())
    freeze(objective.parts(), EVERYTHING)
    objective.set_attention("documents")
    with AllocationPeak() as counted:
        sums = objective(batch())
        torch.stack([one.loss for one in sums.values()]).sum().backward()
    meta = on_meta()
    before = torch.get_rng_state()
    found = measure_passes(meta, PassSizes.of(batch(), meta.model), 1, "none", ALONE)
    assert found == pytest.approx(counted.peak, rel=0.15)
    assert torch.equal(before, torch.get_rng_state()) and all(one.is_meta for one in meta.parameters())


def test_what_a_process_that_shares_rows_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its passes, with something in place of what the others would send; of long rows about half, where two share them: of two
    layers, what an exchange holds for a moment is still a tenth."""
    monkeypatch.setattr(
        context_parallel, "all_to_all", lambda x_n, sent, received, group: x_n.new_zeros(sum(received), *x_n.shape[1:])
    )
    objective = Likelihood(make_model())
    freeze(objective.parts(), EVERYTHING)
    objective.set_attention("documents")
    objective.set_context(ContextGroup(None, 0, 2))
    with AllocationPeak() as counted:
        torch.stack([one.loss for one in objective(batch()).values()]).sum().backward()
    meta, degree = on_meta(), Sharding(context_parallel_degree=2)
    sizes = PassSizes.of(batch(), meta.model, 2)
    assert measure_passes(meta, sizes, 1, "none", ALONE, 2) == pytest.approx(counted.peak, rel=0.15)
    few, long = Machine(2, "cpu", is_bf16=False), replace(PassSizes.of(batch(), meta.model), num_positions=2**13)
    whole, half = (estimate(meta, make_config(1, sharding=one), long, few) for one in (Sharding(), degree))
    assert 0.45 < half.activations / whole.activations < 0.65 and half.weights == whole.weights


def test_parts_add_up_and_each_setting_costs_what_it_holds() -> None:
    """Counted by hand: a copy in float32 a kind of state; of four shards a quarter."""
    plain = needed()
    learned = sum(4 * one.numel() for one in on_meta().parameters())
    assert (plain.weights, plain.gradients, plain.optimizer) == (learned, learned, 2 * learned)
    assert plain.peak == plain.weights + plain.optimizer + plain.gradients + plain.activations
    averaged = needed(ema_decay=0.9)
    assert averaged.averages == learned and averaged.peak == plain.peak + learned
    muon = needed(optimizer=OptimizerConfig(muon_lr=0.02))
    assert learned < muon.optimizer < 2 * learned and muon.update > 0
    cut = needed(replace(ALONE, num_processes=4), sharding=Sharding("fsdp"))
    assert (cut.weights, cut.gradients, cut.optimizer) == (learned // 4, learned // 4, 2 * learned // 4) and cut.gathered > 0
    assert needed(replace(ALONE, num_processes=4)).peak == plain.peak, "whole in each"
    assert needed(activation_checkpointing="full").activations < plain.activations
    assert needed(num_micro_batches=2).peak > plain.peak, "gradients stay while the second pass goes on"
