"""The average of the weights: what it is of, that a run resumes it to the bit, that it comes and goes without a trace."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_trainings import ADAMW, MUON, PoisonedOnce, assert_equal, interrupt_at, make_lora_trainer, numbers, weights_of
from toys import EVERYTHING, make_config, make_trainer

from unimm.cli.compose import build, compose_config
from unimm.models.lora import is_adapter
from unimm.training.checkpoint import load_checkpoint
from unimm.training.ema import Ema
from unimm.training.optimizers import OptimizerConfig
from unimm.training.trainer import Trainer

DECAY = 0.4


def kept(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The averages of the newest checkpoint, and how often they were updated."""
    checkpoint = load_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    averages = {name.removeprefix("ema/"): t for name, t in checkpoint.tensors.items() if name.startswith("ema/")}
    return averages, checkpoint.state.get("ema", {}).get("num_updates", 0)


def averages_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    with trainer.averaged():
        return weights_of(trainer)


def by_hand(decay: float, weights: list[torch.Tensor]) -> torch.Tensor:
    """In float64, of the first weights and those after each update."""
    average = weights[0].double()
    for number, new in enumerate(weights[1:]):
        now = min(decay, (1 + number) / (10 + number))
        average = now * average + (1 - now) * new.double()
    return average


def test_it_is_the_average_by_its_formula_of_what_learns(tmp_path: Path) -> None:
    config = make_config(8, ema_decay=DECAY, stage=replace(EVERYTHING, lr_scales={"trunk": 1.0, "code_head": 0.5}))
    trainer = make_trainer(tmp_path, config)
    seen = [weights_of(trainer)]
    step = trainer.optimizers.step
    trainer.optimizers.step = lambda norm: (step(norm), seen.append(weights_of(trainer)))
    trainer.fit()
    averages, num_updates = kept(tmp_path)
    assert num_updates == 8
    learns = {f"model.{name}" for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert averages.keys() == learns < {f"model.{name}" for name in seen[0]}
    assert {average.dtype for average in averages.values()} == {torch.float32}
    for name, average in averages.items():
        expected = by_hand(DECAY, [weights[name.removeprefix("model.")] for weights in seen])
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(average, seen[-1][name.removeprefix("model.")])


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
def test_k_steps_and_resume_are_2k_steps_to_the_bit(tmp_path: Path, optimizer: OptimizerConfig) -> None:
    config = make_config(12, optimizer=optimizer, sample_every=6, ema_decay=0.9)
    whole = make_trainer(tmp_path / "whole", config)
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "parts", config, sample=interrupt_at(6)).fit()
    torch.manual_seed(1234)
    resumed = make_trainer(tmp_path / "parts", config)
    assert resumed.step == 6 and resumed.ema is not None and resumed.ema.num_updates == 6
    resumed.fit()
    assert_equal(averages_of(resumed), averages_of(whole))
    assert_equal(weights_of(resumed), weights_of(whole))
    last = [load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    assert last[0] is not None and last[1] is not None
    assert_equal(last[0].tensors, last[1].tensors)
    assert last[0].state["ema"] == last[1].state["ema"] == {"num_updates": 12}


def test_the_training_is_the_same_with_it_and_without(tmp_path: Path) -> None:
    plain, with_it = (
        make_trainer(tmp_path / "plain", make_config(6)),
        make_trainer(tmp_path / "ema", make_config(6, ema_decay=0.9, sample_every=2), sample=lambda model, step, book: None),
    )
    plain.fit()
    with_it.fit()
    assert_equal(weights_of(with_it), weights_of(plain))
    assert numbers(tmp_path / "ema") == numbers(tmp_path / "plain")


@pytest.mark.parametrize("num_micro_batches", [1, 3])
def test_it_moves_once_a_step_however_many_passes_that_takes(tmp_path: Path, num_micro_batches: int) -> None:
    trainer = make_trainer(tmp_path, make_config(3, ema_decay=0.9, num_micro_batches=num_micro_batches))
    trainer.fit()
    assert kept(tmp_path)[1] == 3


def test_a_step_without_its_update_is_none_of_the_average_either(tmp_path: Path) -> None:
    make_trainer(tmp_path / "two", make_config(2, ema_decay=0.9), objective=PoisonedOnce).fit()
    trainer = make_trainer(tmp_path / "skips", make_config(3, ema_decay=0.9, max_skipped_steps=1), objective=PoisonedOnce)
    trainer.fit()
    assert trainer.guard.num_skipped == 1
    averages, num_updates = kept(tmp_path / "skips")
    assert num_updates == 2
    assert_equal(averages, kept(tmp_path / "two")[0])


def test_what_is_sampled_and_validated_has_the_averages(tmp_path: Path) -> None:
    seen: dict[str, dict[str, torch.Tensor]] = {}
    trainer: Trainer = make_trainer(
        tmp_path,
        make_config(5, ema_decay=0.9, sample_every=5, validate_every=5),
        sample=lambda model, step, book: seen.update(sampled=weights_of(trainer)),
        validate=lambda model, step, losses: seen.update(validated=weights_of(trainer)),
    )
    trainer.fit()
    averages = kept(tmp_path)[0]
    assert averages.keys() == {f"model.{name}" for name, _ in trainer.model.named_parameters()}
    for part in ("sampled", "validated"):
        assert_equal({name: seen[part][name.removeprefix("model.")] for name in averages}, averages)
    assert any(not torch.equal(tensor, averages[f"model.{name}"]) for name, tensor in trainer.model.named_parameters())


def test_the_weights_come_back_to_the_bit_also_after_an_error(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_config(3, ema_decay=0.9))
    trainer.fit()
    before, averages = weights_of(trainer), averages_of(trainer)
    places = [parameter.data_ptr() for parameter in trainer.model.parameters()]
    with pytest.raises(RuntimeError, match="trouble"), trainer.averaged():
        assert_equal(weights_of(trainer), averages)
        raise RuntimeError("trouble")
    assert_equal(weights_of(trainer), before)
    assert_equal(averages_of(trainer), averages)
    assert [parameter.data_ptr() for parameter in trainer.model.parameters()] == places


def test_a_run_may_begin_to_average_and_not_forget_that_it_did(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path, make_config(3)).fit()
    later = make_trainer(tmp_path, make_config(5, ema_decay=0.9))
    assert "had no EMA so far: it begins at step 3" in caplog.text
    assert_equal(averages_of(later), weights_of(later))
    later.fit()
    assert kept(tmp_path)[1] == 2
    with pytest.raises(ValueError, match=r"holds a run with an EMA of its weights.*add trainer\.ema_decay"):
        make_trainer(tmp_path, make_config(7))
    other = make_trainer(tmp_path, make_config(7, ema_decay=0.5))
    assert_equal(averages_of(other), averages_of(later))


def test_adapters_are_averaged_alone(tmp_path: Path) -> None:
    trainer = make_lora_trainer(tmp_path, 4, ema_decay=0.9)
    trainer.fit()
    averages, num_updates = kept(tmp_path)
    assert num_updates == 4 and all(is_adapter(name) for name in averages)
    before = weights_of(trainer)
    moved = {name for name, tensor in averages_of(trainer).items() if not torch.equal(tensor, before[name])}
    assert {f"model.{name}" for name in moved} == set(averages)


def test_a_decay_is_a_share() -> None:
    for decay in (2, 0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=f"ema_decay is a number above 0 and below 1, not {decay}"):
            make_config(1, ema_decay=decay)
    with pytest.raises(Exception, match="validate_every is a whole number"):
        build(compose_config("train", ["image_tokenizer=x", "codes=x", "trainer.validate_every=-1"]).trainer)


def test_with_constant_weights_it_stays_and_then_follows() -> None:
    parameter = nn.Parameter(torch.tensor([3.0]))
    ema = Ema([("a", parameter), ("frozen", nn.Parameter(torch.ones(2), requires_grad=False))], 0.99)
    ema.update()
    assert ema.tensors().keys() == {"ema/a"} and float(ema.tensors()["ema/a"]) == 3.0
    parameter.data.fill_(5.0)
    ema.update()
    assert float(ema.tensors()["ema/a"]) == pytest.approx(3.0 * 2 / 11 + 5.0 * 9 / 11)
    ema.restart()
    assert float(ema.tensors()["ema/a"]) == 5.0 and ema.num_updates == 0
    with pytest.raises(KeyError):
        ema.restore({"b": torch.zeros(1)}, 1)
