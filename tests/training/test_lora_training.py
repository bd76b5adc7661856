"""Training with adapters: these learn, what they are attached to does not, and a run resumes to the bit."""

import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toy_trainings import ADAPTERS, assert_equal, interrupt_at, make_lora_trainer, numbers, weights_of
from toys import EVERYTHING, make_config, make_mixture, make_model

from unimm.models.lora import LoraConfig, adapted_layers, attach, is_adapter
from unimm.training.checkpoint import load_checkpoint
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.trainable_parts import Stage, stage_table
from unimm.training.trainer import Trainer


@pytest.mark.parametrize("targets", [["trunk"], ["trunk.q_proj", "vision"]])
@pytest.mark.parametrize("learns", [{}, {"projector": 1.0, "code_head": 0.5}, EVERYTHING.lr_scales])
def test_adapters_move_and_other_parts_that_the_stage_names(tmp_path: Path, targets: list[str], learns: dict) -> None:
    trainer = make_lora_trainer(tmp_path, 2, LoraConfig(targets=targets), stage=Stage("some", learns))
    parts = trainer.objective.parts()
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    trainer.fit()
    for part, module in parts.items():
        adapted = any(is_adapter(name) for name, _ in module.named_parameters())
        assert adapted == any(target.startswith(part) for target in targets)
        for name, parameter in module.named_parameters():
            moved = not torch.equal(parameter, before[names[id(parameter)]])
            if is_adapter(name):
                assert moved, f"{part}: {name}"
            elif adapted or part not in learns:
                assert not moved and parameter.grad is None, f"{part}: {name}"
        assert adapted or part not in learns or any(not torch.equal(p, before[names[id(p)]]) for p in module.parameters())


def test_adapters_are_adamws_at_the_stages_rate(tmp_path: Path) -> None:
    trainer = make_lora_trainer(tmp_path, 1, LoraConfig(targets=["trunk", "vision"]), stage=Stage("some", {"trunk": 0.5}))
    assert list(trainer.optimizers.all) == ["adamw"]
    rates = {trainer.names[id(p)]: g["base_lr"] for g in trainer.optimizers.all["adamw"].param_groups for p in g["params"]}
    assert all(is_adapter(name) for name in rates)
    assert {rate for name, rate in rates.items() if ".trunk." in name} == {5e-3}
    assert {rate for name, rate in rates.items() if ".pixels." in name} == {1e-2}


def test_the_table_says_what_learns_through_lora_and_adds_up() -> None:
    model = make_model()
    plain = sum(p.numel() for p in model.parameters())
    attach(model, LoraConfig(rank=2))
    total = sum(p.numel() for p in model.parameters())
    console = Console(record=True, width=100)
    console.print(stage_table(model.parts(), Stage("some", {"trunk": 0.5, "projector": 1.0}), total))
    lines = [line.split("│")[1:4] for line in console.export_text().splitlines() if line.count("│") > 3]
    table = {name.strip(): [count.strip(), rate.strip()] for name, count, rate in lines}
    adapters = sum(2 * sum(layer.base_layer.weight.shape) for layer in adapted_layers(model).values())
    assert table["trunk, LoRA"] == [f"{adapters:,}", "x 0.5"] and table["trunk"][1] == "frozen"
    assert table["projector"][1] == "x 1" and table["all"][0] == f"{plain + adapters:,}"
    assert sum(int(row[0].replace(",", "")) for name, row in table.items() if name != "all") == plain + adapters


def test_k_steps_and_resume_are_2k_steps_to_the_bit(tmp_path: Path) -> None:
    """Also where the weights that a new process drew at first are other ones."""
    stage = Stage("some", {"projector": 1.0})
    whole = make_lora_trainer(tmp_path / "whole", 8, stage=stage, sample_every=4)
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        make_lora_trainer(tmp_path / "parts", 8, stage=stage, sample_every=4, sample=interrupt_at(4, signal.SIGINT)).fit()
    resumed = make_lora_trainer(tmp_path / "parts", 8, stage=stage, sample_every=4)
    assert resumed.step == 4
    resumed.fit()
    assert_equal(weights_of(resumed), weights_of(whole))
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    last = [load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    assert last[0] is not None and last[1] is not None
    assert_equal(last[0].tensors, last[1].tensors)


def test_a_run_with_other_adapters_or_none_is_refused(tmp_path: Path) -> None:
    make_lora_trainer(tmp_path, 1).fit()
    with pytest.raises(ValueError, match="another model or stage"):
        make_lora_trainer(tmp_path, 2, LoraConfig(rank=4))
    with pytest.raises(ValueError, match="another model or stage"):
        make_lora_trainer(tmp_path, 2, LoraConfig(rank=2, targets=["vision"]))
    with pytest.raises(ValueError, match="Nothing learns in this stage"):
        Trainer(Likelihood(make_model()), make_mixture(), make_config(1, stage=ADAPTERS), tmp_path / "none", "cpu")


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"compile": True}])
def test_adapters_learn_in_bf16_and_compiled(tmp_path: Path, changes: dict) -> None:
    plain = make_lora_trainer(tmp_path / "plain", 12)
    plain.fit()
    other = make_lora_trainer(tmp_path / "other", 12, **changes)
    other.fit()
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}
    tolerance = 0.02 if "precision" in changes else 1e-4
    for one, two in zip(numbers(tmp_path / "plain"), numbers(tmp_path / "other"), strict=True):
        assert two[1:3] == pytest.approx(one[1:3], rel=tolerance)
    assert numbers(tmp_path / "other")[-1][1] < 0.95 * numbers(tmp_path / "other")[0][1]


def test_dropout_is_of_training_alone(tmp_path: Path) -> None:
    trainer = make_lora_trainer(tmp_path, 2, LoraConfig(rank=2, dropout=0.5))
    trainer.fit()
    embeddings_BTD = torch.randn(1, 5, trainer.model.width)
    mask, positions = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(), torch.arange(5)[None]
    for training in (True, False):
        trainer.model.train(training)
        one, other = (trainer.model.hidden(embeddings_BTD, mask, positions) for _ in range(2))
        assert torch.equal(one, other) != training
