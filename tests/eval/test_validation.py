"""Validation during training: on other items than a suite's, kept whole or not at all, without a trace in the training."""

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer
from toys import make_config, make_mixture, make_model, make_template

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.checkpoints.folder import load_model
from unimm.eval import validation as validations
from unimm.eval.suites import TASKS, VALIDATION_TASKS, BuiltInTask, build_suite
from unimm.eval.validation import Validation, ValidationConfig, make_task
from unimm.inference.decode.scheduler import Stopped
from unimm.inference.engine import Engine
from unimm.models.unified import UnifiedModel
from unimm.runtime.atomic_files import read_json
from unimm.training.checkpoint import load_checkpoint
from unimm.training.logbook import Logbook, read_numbers
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.trainer import Trainer


def script(patch: pytest.MonkeyPatch, **scores: list[float]) -> None:
    """Tasks that give these scores, one after the other."""
    for name, values in scores.items():
        left = iter(values)
        task = SimpleNamespace(
            run=lambda engine, progress, left=left: SimpleNamespace(score=next(left), unit="share", higher_is_better=True)
        )
        patch.setitem(TASKS, name, BuiltInTask(lambda items, task=task: task, 1, 1, 1, 1))


def save(engine: Engine, folder: Path, write_more: Callable[[Path], None]) -> None:
    engine.save(folder, write_more=write_more)


def make(folder: Path, **settings: Any) -> Validation:
    config = ValidationConfig(**{"tasks": ["shapes_answers", "digits_answers"], **settings})
    return Validation(config, folder, save, lambda: False)


def record(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "validation.json")
    assert content is not None
    return content


def test_the_best_is_kept_with_what_it_was_chosen_by(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, shapes_answers=[0.2, 0.6, 0.4], digits_answers=[0.4, 0.5, 0.7])
    best = tmp_path / "best"
    validation = make(best)
    steps, told = [], []
    for step in (10, 20, 30):
        told.append(validation(tiny_engine, step, {"loss": 1.0}))
        steps.append(record(best)["step"])
    assert steps == [10, 20, 20], "0.55 again is no better"
    assert record(best) == {
        "step": 20,
        "score": 0.55,
        "scores": {"loss": 1.0, "shapes_answers": 0.6, "digits_answers": 0.5, "mean": 0.55},
        "tasks": ["shapes_answers", "digits_answers"],
        "num_items": 100,
        "monitor": "mean",
        "precision": "no",
    }
    assert load_model(best).config["model_type"] == "janus"
    assert [scores and scores["mean"] for scores in told] == [pytest.approx(0.3), 0.55, 0.55]


def test_the_best_may_be_that_of_the_lowest_loss(tiny_engine: Engine, tmp_path: Path) -> None:
    """Without any task, too."""
    validation = make(tmp_path / "best", tasks=[], monitor="loss")
    for step, loss in ((10, 2.0), (20, 1.5), (30, 1.5), (40, 1.6)):
        assert validation(tiny_engine, step, {"loss": loss, "loss_text": loss}) == {}
    assert (record(tmp_path / "best")["step"], record(tmp_path / "best")["score"]) == (20, 1.5)


def test_a_copy_is_scored_in_the_precision_that_is_faster(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which the best is kept with, on a machine of another kind, too; the model itself stays in float32."""
    dtypes: list[torch.dtype] = []

    def run(engine: Engine, progress: Any) -> SimpleNamespace:
        dtypes.append(next(engine.model.parameters()).dtype)
        return SimpleNamespace(score=float(len(dtypes)), unit="share", higher_is_better=True)

    monkeypatch.setitem(TASKS, "shapes_answers", BuiltInTask(lambda items: SimpleNamespace(run=run), 1, 1, 1, 1))
    settings: dict[str, Any] = {"tasks": ["shapes_answers"], "precision": "auto"}
    for is_faster, expected in ((True, [torch.bfloat16]), (False, [torch.bfloat16, torch.bfloat16])):
        monkeypatch.setattr(validations, "choose_precision", lambda *_, is_faster=is_faster: "bf16" if is_faster else "no")
        monkeypatch.setattr(validations, "has_bf16", lambda device: True)
        validation = make(tmp_path / "best", **settings)
        validation.resume()
        validation(tiny_engine, 10, {})
        assert dtypes == expected and record(tmp_path / "best")["precision"] == "bf16"
    assert capsys.readouterr().out == "validation.precision=auto takes bf16 on this cpu device.\n"
    assert {parameter.dtype for parameter in load_model(tmp_path / "best").model.parameters()} == {torch.float32}
    monkeypatch.setattr(validations, "has_bf16", lambda device: False)
    emulated = make(tmp_path / "best", **settings)
    emulated.resume()
    emulated(tiny_engine, 20, {})
    assert dtypes[-1] == torch.float32 and "takes float32 on this cpu device" in capsys.readouterr().out


def test_a_logbook_knows_what_it_has(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    book.numbers(20, {"validation/mean": 0.5})
    assert book.has(20, "validation/") and not book.has(15, "validation/") and not book.has(20, "loss/")


def test_a_run_that_goes_on_does_not_overwrite_a_better_one(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    best = tmp_path / "best"
    script(monkeypatch, shapes_answers=[0.9, 0.8, 0.1, 0.2], digits_answers=[0.1, 0.3, 0.0, 0.0])
    make(best, monitor="shapes_answers")(tiny_engine, 10, {})
    again = make(best, monitor="shapes_answers")
    again.resume()
    again(tiny_engine, 20, {})
    assert record(best)["step"] == 10 and record(best)["score"] == 0.9
    other = make(best, monitor="mean")
    other.resume()
    assert "was chosen by other scores" in caplog.text
    other(tiny_engine, 30, {})
    assert record(best)["step"] == 30
    make(best)(tiny_engine, 40, {})  # a new run in the folder: it does not `resume`
    assert record(best)["step"] == 40


def test_a_best_model_without_room_costs_a_warning(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    best = tmp_path / "best"
    script(monkeypatch, shapes_answers=[0.5, 0.7, 0.6], digits_answers=[0.5, 0.7, 0.6])
    validation = make(best)
    validation(tiny_engine, 10, {})
    with monkeypatch.context() as patch:
        patch.setattr(
            "unimm.runtime.atomic_files.os.fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        validation(tiny_engine, 20, {})
    assert "cannot be written" in caplog.text and "No space left" in caplog.text
    assert record(best)["step"] == 10 and load_model(best)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    validation(tiny_engine, 30, {})
    assert record(best)["step"] == 30


def test_items_are_not_those_of_the_suites() -> None:
    suite = {task.name: task for task in build_suite("quick")}
    for name in VALIDATION_TASKS:
        own, theirs = make_task(name, 12), suite[name]
        assert own.num_items == 12
        for part in ("dataset", "items"):
            if hasattr(own, part):
                mine, others = getattr(own, part), getattr(theirs, part)
                if part == "dataset":
                    assert (mine.split, others.split) == ("validation", "test")
                else:
                    assert own.settings.seed != theirs.settings.seed
    drawn = (make_task("shapes_drawings", 60), suite["shapes_drawings"])
    prompts = [[one.prompt.text for one in task.items] for task in drawn]
    assert sum(a == b for a, b in zip(*prompts, strict=False)) < 20


def test_what_makes_no_sense_is_said() -> None:
    for settings, told in (
        ({"tasks": ["zebra"]}, "no validation task 'zebra': choose among shapes_answers, "),
        ({"tasks": []}, "validation.tasks is a list of some of .*; empty only with validation.monitor=loss"),
        ({"tasks": "shapes_answers"}, "validation.tasks is a list of some of"),
        ({"num_items": 0}, "num_items is a whole number of at least 1, not 0"),
        ({"monitor": "luck"}, "monitor is mean, loss or one of shapes_answers, .*, not 'luck'"),
    ):
        with pytest.raises(ValueError, match=told):
            ValidationConfig(**settings)


def test_another_folder_in_the_place_is_said_at_once(tiny_engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "photo.png").touch()
    with pytest.raises(ValueError, match="is not a model folder"):
        make(tmp_path / "best")


# -- in a training --------------------------------------------------------------------------------------------------------


def make_trainer(folder: Path, max_steps: int, watch: Callable[[int], None] = lambda count: None, **changes: Any) -> Trainer:
    """A trainer of the toy mixture that validates on real tasks, every second step. watch: is told of every decoding step."""
    torch.manual_seed(0)
    count = 0

    def is_stopped() -> bool:
        nonlocal count
        count += 1
        watch(count)
        return trainer.stop.made

    def validate(model: UnifiedModel, step: int, losses: dict[str, float]) -> dict[str, float] | None:
        bundle = ModelBundle(model, {DEFAULT: tiny_image_tokenizer()}, make_template().tokenizer)
        return validation(Engine(bundle, is_stopped=is_stopped), step, losses)

    validation = Validation(ValidationConfig(num_items=3), folder / "best", save, lambda: trainer.stop.made)
    settings = make_config(max_steps, **{"validate_every": 2, "ema_decay": 0.5, **changes})
    trainer = Trainer(Likelihood(make_model()), make_mixture(), settings, folder, "cpu", validate=validate)
    if trainer.step:
        validation.resume()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, 6).fit()
    return folder


def timeless(folder: Path) -> list[dict[str, float]]:
    """What was logged, without what depends on the clock."""
    lines = read_numbers(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint.tensors


def test_it_leaves_no_trace_in_the_training(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trainer(tmp_path, 6, validate_every=0).fit()
    ours, theirs = tensors(whole), tensors(tmp_path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [line for line in timeless(whole) if "validation/mean" not in line] == timeless(tmp_path)
    assert [line["step"] for line in timeless(whole) if "validation/mean" in line] == [2, 4, 6]
    assert not (tmp_path / "best").exists()

    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    seen: list[tuple] = []
    call = Validation.__call__

    def watched(self: Validation, *words: Any) -> None:
        seen.append(states())
        call(self, *words)
        assert states() == seen[-1]

    monkeypatch.setattr(Validation, "__call__", watched)
    make_trainer(tmp_path / "watched", 2).fit()
    assert len(seen) == 1


def test_the_best_is_the_average_of_its_step(whole: Path) -> None:
    validated = {line["step"]: line["validation/mean"] for line in timeless(whole) if "validation/mean" in line}
    chosen = record(whole / "best")
    assert chosen["score"] == max(validated.values()) == validated[chosen["step"]]
    shorter = make_trainer(whole / "again", chosen["step"])
    shorter.fit()
    with shorter.averaged():
        expected = {name: tensor.clone() for name, tensor in shorter.model.named_parameters()}
    kept = dict(load_model(whole / "best").model.named_parameters())
    assert all(torch.equal(kept[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("last", [4, 6], ids=["in the middle", "at the end"])
def test_a_signal_in_the_middle_of_it(whole: Path, tmp_path: Path, number: signal.Signals, last: int) -> None:
    """It is left at once, and done when the run goes on; then all is as if nothing had been."""
    counts: list[tuple[int, int]] = []

    def interrupt(count: int) -> None:
        if trainer.step == last:
            counts.append((count, trainer.step))
            if len(counts) == 5:
                signal.raise_signal(number)

    trainer = make_trainer(tmp_path, 6, interrupt)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    with pytest.raises(SystemExit):
        trainer.fit()
    assert len(counts) == 5, "not one step of decoding more"
    assert [line["step"] for line in timeless(tmp_path) if "validation/mean" in line] == list(range(2, last, 2))
    checkpoint = load_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.step == last
    for name, parameter in trainer.model.named_parameters():  # the weights, not their averages
        assert torch.equal(parameter, checkpoint.tensors[f"weights/model.{name}"]) and not torch.equal(parameter, before[name])
    make_trainer(tmp_path, 6).fit()
    assert timeless(tmp_path) == [*timeless(whole)]
    ours, theirs = tensors(tmp_path), tensors(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert record(tmp_path / "best") == record(whole / "best")


def test_a_finished_run_validates_no_more(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = timeless(whole)
    monkeypatch.setattr(validations.Validation, "_score", lambda *_: pytest.fail("once is enough"))
    make_trainer(whole, 6).fit()
    assert timeless(whole) == before


def test_a_stopped_decoder_is_as_new(tiny_engine: Engine, picture: Any) -> None:
    answers: Iterator[bool] = iter([False, False, True])
    engine = Engine(tiny_engine.bundle, is_stopped=lambda: next(answers, False))
    with pytest.raises(Stopped):
        engine.generate_images(["a red square", "a blue circle"])
    stats = engine.decoder.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_rows) == (0, 0, 0)
    assert engine.answer(picture, "What is it?", max_new_tokens=5) == tiny_engine.answer(
        picture, "What is it?", max_new_tokens=5
    )
