"""The count of operations is what torch counts, for every choice of what learns."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toys import EVERYTHING, make_config, make_mixture, make_model, make_trainer

from unimm.batch import PADDING, Batch, collate
from unimm.models import unified
from unimm.native import library_beside
from unimm.training.flops import PEAKS, FlopCount
from unimm.training.logbook import read_numbers
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.trainable_parts import Stage, freeze


def samples(number: int = 8) -> list:
    mixture = make_mixture()
    return [mixture.sequence(sample) for sample in mixture.samples(0, number)]


STAGES = {
    "everything": EVERYTHING,
    "finetune without vision": Stage("a", {name: 1.0 for name in EVERYTHING.lr_scales if name != "vision"}),
    "align": Stage("b", dict.fromkeys(("projector", "code_embedding", "code_head"), 1.0)),
    "trunk": Stage("c", {"trunk": 1.0}),
    "heads": Stage("d", dict.fromkeys(("text_head", "code_head"), 1.0)),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())
def test_it_is_what_torch_counts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for masked pairs of attention and padding, which torch counts; and for what goes into the very first matrix, whose
    gradient depends on the order of layers: a twelfth of the backward pass here, nothing in a model of many layers.
    """
    monkeypatch.setenv("CXX", "no-such-compiler")  # what its own kernel does, torch cannot count
    library_beside.cache_clear()
    monkeypatch.setattr(unified, "ROUND_LOSS_POSITIONS", 1)
    model = make_model()
    objective = Likelihood(model)
    freeze(objective.parts(), stage)
    batch: Batch = collate([[sequence] for sequence in samples()])
    model.set_attention("documents")
    in_place = {torch.ops.aten.addmm_: lambda _, one, other, **__: 2 * one[0] * one[1] * other[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        torch.stack([tally.loss for tally in objective(batch).values()]).sum().backward()
    count = FlopCount(model)
    lengths = (batch.documents > 0).sum(1)
    hidden_pairs = int((lengths * (lengths - 1) // 2).sum())
    is_wanted = batch.target_kinds != PADDING
    hidden_of_wanted = int((lengths[:, None] - 1 - batch.positions)[is_wanted].sum())
    hidden = ((count.num_layers - 1) * hidden_pairs + hidden_of_wanted) * count.a_pair
    padding = (batch.documents.numel() - batch.num_elements) * (count.trunk.flops - count.behind.flops)
    assert count.of(batch) + hidden + padding == pytest.approx(counter.get_total_flops(), rel=0.025)
    library_beside.cache_clear()


def test_padding_and_packing_count_nothing() -> None:
    count = FlopCount(make_model())
    some = samples()
    assert count.of(collate([some], num_positions=512)) == count.of(collate([[one] for one in some]))
    assert count.of(collate([some[:3], [], some[3:]])) == sum(count.of(collate([[one]])) for one in some)


def test_a_run_reports_it(tmp_path) -> None:
    trainer = make_trainer(tmp_path, make_config(2, peak_tflops=0.5))
    trainer.fit()
    for line in read_numbers(tmp_path / "metrics.jsonl"):
        assert 0 < line["speed/tflops_per_second"] < 10
        assert line["speed/mfu"] == pytest.approx(line["speed/tflops_per_second"] / 0.5, rel=1e-4)


def test_the_longer_name_of_a_gpu_comes_first() -> None:
    names = list(PEAKS)
    assert all(short not in long for i, short in enumerate(names) for long in names[i + 1 :])
