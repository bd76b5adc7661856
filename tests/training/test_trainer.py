"""The trainer: resumes to the bit, cuts batches without changing the loss, moves who learns and nobody else, stops cleanly."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from joint_toys import HEADS, make_mixture_of
from test_qformer_alignment import make_objective as make_qformer_alignment
from test_qformer_alignment import make_pairs as make_qformer_pairs
from toy_trainings import ADAMW, MUON, Poisoned, assert_equal, interrupt_at, numbers, weights_of
from toys import EVERYTHING, make_config, make_mixture, make_steps, make_trainer

from unimm.cli.compose import build, compose_config
from unimm.sequence import Kind
from unimm.training.checkpoint import load_checkpoint
from unimm.training.objectives.contrastive import Contrastive
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.objectives.vision_pretraining import VisionPretraining
from unimm.training.optimizers import Budget, OptimizerConfig, Schedule
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import TrainerConfig


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_k_steps_and_resume_are_2k_steps_to_the_bit(tmp_path: Path, optimizer: OptimizerConfig, num_workers: int) -> None:
    schedule = Schedule("cosine", warmup_steps=3)
    config = make_config(12, optimizer=optimizer, schedule=schedule, num_workers=num_workers, sample_every=6)
    whole = make_trainer(tmp_path / "whole", config)
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "parts", config, sample=interrupt_at(6)).fit()
    torch.manual_seed(1234)  # whatever a new process drew before
    resumed = make_trainer(tmp_path / "parts", config)
    assert (resumed.step, whole.step) == (6, 12)
    resumed.fit()
    assert_equal(weights_of(resumed), weights_of(whole))
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    last = [load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    assert last[0] is not None and last[1] is not None
    assert_equal(last[0].tensors, last[1].tensors)


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew(tmp_path: Path) -> None:
    """It would remove what may still be copied from elsewhere."""
    make_trainer(tmp_path, make_config(4, save_every=2)).fit()
    damaged = sorted((tmp_path / "checkpoints").iterdir())
    for folder in damaged:
        (folder / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"None of the checkpoints in .* is whole \(2 damaged\): copy them there"):
        make_trainer(tmp_path, make_config(4))
    assert sorted((tmp_path / "checkpoints").iterdir()) == damaged


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_between_two_steps(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    trainer = make_trainer(tmp_path, make_config(12, sample_every=1), sample=interrupt_at(4, number))
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        trainer.fit()
    assert signal.getsignal(number) == before
    checkpoint = load_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.step == trainer.step == 4
    prefix = "weights/model."
    kept = {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
    assert_equal(kept, weights_of(trainer))


def test_ctrl_c_from_outside(tmp_path: Path) -> None:
    """A process of its own, interrupted when it has written its first numbers; the same command goes on."""
    script = Path(__file__).with_name("train_toy.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.Popen([sys.executable, str(script), str(tmp_path), "1000000", "1"], env=environment)
    metrics = tmp_path / "metrics.jsonl"
    for _ in range(1200):
        if metrics.is_file() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) in (1, 130, -signal.SIGINT)
    checkpoint = load_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.step >= 1
    resumed = make_trainer(tmp_path, make_config(checkpoint.step + 2), make_mixture())
    assert resumed.step == checkpoint.step
    resumed.fit()
    assert [line[0] for line in numbers(tmp_path)] == list(range(1, checkpoint.step + 3))


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, make_config(3))
    first.fit()
    again = make_trainer(tmp_path, make_config(3))
    again.fit()
    assert again.step == 3 and len(numbers(tmp_path)) == 3
    assert_equal(weights_of(again), weights_of(first))


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    config = make_config(8, save_every=4)
    whole = make_trainer(tmp_path, config)
    whole.fit()
    newest = tmp_path / "checkpoints" / "step-00000008" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = make_trainer(tmp_path, config)
    assert resumed.step == 4
    resumed.fit()
    assert_equal(weights_of(resumed), weights_of(whole))
    assert [line[0] for line in numbers(tmp_path)] == list(range(1, 9))


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, make_config(1)).fit()
    with pytest.raises(ValueError, match="'everything', not 'align'"):
        make_trainer(tmp_path, make_config(2, stage=Stage("align", {"projector": 1.0})))
    with pytest.raises(ValueError, match="another model or stage"):
        make_trainer(tmp_path, make_config(2, stage=replace(EVERYTHING, lr_scales={"projector": 1.0})))


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_accumulation_changes_nothing(tmp_path: Path, num_micro_batches: int) -> None:
    """9 rows at once or 2 or 3 at a time: micro-batches hold different kinds, some none of one."""
    mixture = make_mixture()
    parts = make_steps(mixture, num_micro_batches=num_micro_batches)[0].batches
    assert len({tuple(float(batch.num_targets(kind)) for kind in (Kind.TEXT, Kind.CODES)) for batch in parts}) > 1
    whole = make_trainer(tmp_path / "whole", make_config(3), mixture)
    cut = make_trainer(tmp_path / "cut", make_config(3, num_micro_batches=num_micro_batches), mixture)
    for step in range(3):
        counts = [
            trainer.gradient.global_counts(make_steps(mixture, num_micro_batches=n)[step].batches)
            for trainer, n in ((whole, 1), (cut, num_micro_batches))
        ]
        assert counts[0] == counts[1]
    whole.fit()
    cut.fit()
    for one, other in zip(numbers(tmp_path / "whole"), numbers(tmp_path / "cut"), strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


STAGES = sorted(
    {path.stem for path in Path(__file__).resolve().parents[2].glob("conf/stage/*.yaml")} - {"adapters", "flow"}
)  # those two are of models with further parts

LEARNED_BY = {
    "vision": (VisionPretraining, None),
    "contrastive": (lambda model: Contrastive(model, HEADS), partial(make_mixture_of, "softmax")),
    "qformer": (lambda _: make_qformer_alignment(), make_qformer_pairs),
}
"""The objectives and data of stages that the likelihood is not made for."""


@pytest.mark.parametrize("name", STAGES)
def test_who_is_frozen_does_not_move_and_who_learns_does(tmp_path: Path, name: str) -> None:
    stage: Stage = build(compose_config("train", [f"stage={name}", "image_tokenizer=x", "codes=x"]).stage)
    assert stage.name == name
    config = make_config(2, stage=stage, optimizer=replace(MUON, lr=1e-2))
    objective, mixture = LEARNED_BY.get(name, (Likelihood, None))
    trainer = make_trainer(tmp_path, config, mixture and mixture(), objective)
    parts = trainer.objective.parts()
    before = {part: [p.clone() for p in module.parameters()] for part, module in parts.items()}
    trainer.fit()
    for part, module in parts.items():
        pairs = list(zip(module.parameters(), before[part], strict=True))
        if part in stage.lr_scales:
            assert any(not torch.equal(now, then) for now, then in pairs), part
        else:
            assert all(torch.equal(now, then) and now.grad is None for now, then in pairs), part


@pytest.mark.parametrize("max_grad_norm", [1.0, None])
def test_a_gradient_that_is_no_number_stops_before_the_update(tmp_path: Path, max_grad_norm: float | None) -> None:
    good = make_trainer(tmp_path / "good", make_config(2, optimizer=replace(ADAMW, max_grad_norm=max_grad_norm)))
    good.fit()
    bad = make_trainer(tmp_path / "bad", replace(good.config, budget=Budget(max_steps=5)), objective=Poisoned)
    with pytest.raises(FloatingPointError, match="step 3"):
        bad.fit()
    assert_equal(weights_of(bad), weights_of(good))


def test_weights_of_losses_scale_their_pull(tmp_path: Path) -> None:
    """With weight 0 on text, what only text pulls at stays; a loss that no weight names counts once."""
    optimizer = OptimizerConfig(weight_decay=0.0)
    trainer = make_trainer(tmp_path, make_config(2, weights={"text": 0.0}, optimizer=optimizer))
    head, codes = trainer.model.text.head.weight.clone(), trainer.model.codes.head[0].weight.clone()
    trainer.fit()
    assert torch.equal(trainer.model.text.head.weight, head)
    assert not torch.equal(trainer.model.codes.head[0].weight, codes)


def test_samples_are_drawn_in_evaluation_mode_and_training_goes_on(tmp_path: Path) -> None:
    seen: list[tuple[int, bool, bool]] = []
    trainer = make_trainer(tmp_path, make_config(5, sample_every=2))
    trainer.sample = lambda model, step, book: seen.append((step, model.training, torch.is_grad_enabled()))
    trainer.fit()
    assert seen == [(2, False, False), (4, False, False), (5, False, False)]
    quiet = make_trainer(tmp_path / "quiet", make_config(5))
    quiet.fit()
    assert_equal(weights_of(trainer), weights_of(quiet))


def test_bf16_learns_and_another_precision_may_follow_in_the_same_process(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "bf16", make_config(15, precision="bf16"))
    trainer.fit()
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    lines = numbers(tmp_path / "bf16")
    assert lines[-1][1] < 0.8 * lines[0][1]
    assert make_trainer(tmp_path / "fp32", make_config(1)).accelerator.mixed_precision == "no"
    with pytest.raises(ValueError, match="fp8"):
        make_config(1, precision="fp8")


def test_a_budget_of_minutes_ends(tmp_path: Path) -> None:
    config: TrainerConfig = replace(make_config(1), budget=Budget(max_minutes=0.02), report_every=0)
    trainer = make_trainer(tmp_path, config)
    trainer.fit()
    assert trainer.seconds >= 1.2 and trainer.step > 1
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept.step == trainer.step


def test_flex_attention_is_told_to_be_for_gpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FlexAttention learns on GPUs only"):
        make_trainer(tmp_path, make_config(1, attention="flex_attention"), device="cpu")
    with pytest.raises(ValueError, match="peak_tflops is a number above 0, not -1"):
        make_config(1, peak_tflops=-1)


def test_a_run_trains_where_it_is_told_wherever_the_one_before_did(tmp_path: Path) -> None:
    PartialState._reset_state()
    PartialState(cpu=True)
    PartialState._shared_state["device"] = torch.device("meta")
    assert make_trainer(tmp_path, make_config(1), device="cpu").accelerator.device.type == "cpu"
