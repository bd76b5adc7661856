"""Trackers are told what TensorBoard is told, under one id for life; whatever they do, the run goes on."""

import importlib.machinery
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from toy_trainings import interrupt_at, numbers
from toys import make_config, make_trainer

from unimm.cli.compose import build, compose_config
from unimm.training.checkpoint import load_checkpoint
from unimm.training.logbook import Logbook, read_numbers
from unimm.training.trackers import TrackingConfig, open_trackers

BOTH = TrackingConfig(["wandb", "trackio"], "toys", "first")


class Told(list):
    """Every call of a fake package, in order: (name, positional words, words by name)."""

    def __call__(self, name: str, result: Any = None) -> Any:
        return lambda *words, **named: (self.append((name, words, named)), result)[1]

    def named(self, name: str) -> list[tuple[tuple, dict[str, Any]]]:
        return [(words, named) for called, words, named in self if called == name]


def fake(patch: pytest.MonkeyPatch, package: str) -> Told:
    """Stands in for a package, with what we call of it and nothing else."""
    told = Told()
    run = SimpleNamespace(log=told("log"), finish=told("finish"))
    content: dict[str, Any] = {"init": told("init", run), "Image": lambda picture: ("picture", picture.size)}
    if package == "wandb":
        run.define_metric = told("define_metric")
        content["Html"] = lambda text: ("html", text)
    else:
        content["Markdown"] = lambda text: ("markdown", text)
    spec = importlib.machinery.ModuleSpec(package, None, origin="here")
    patch.setitem(sys.modules, package, SimpleNamespace(__spec__=spec, **content))  # pyright: ignore[reportArgumentType]
    return told


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Told]:
    return {package: fake(monkeypatch, package) for package in ("wandb", "trackio")}


def test_they_get_numbers_texts_and_pictures(tmp_path: Path, told: dict[str, Told]) -> None:
    folder = tmp_path / "run"
    book = Logbook(folder, trackers=open_trackers(BOTH, folder, {"seed": 3}))
    book.numbers(7, {"loss/text": 0.5, "loss/codes": 2.0})
    book.text(7, "captions", "a <red> square\n  -> a circle")
    book.picture(8, "drawings", Image.new("RGB", (6, 4)))
    book.close()
    identity = json.loads((folder / "trackers.json").read_text())["id"]
    wandb, trackio = told["wandb"], told["trackio"]
    own = {"project": "toys", "config": {"seed": 3}, "resume": "allow"}
    assert wandb.named("init") == [((), {**own, "name": "first", "id": identity, "dir": str(folder)})]
    assert trackio.named("init") == [((), {**own, "name": f"first-{identity}", "embed": False})]
    assert wandb.named("define_metric") == [(("step",), {}), (("*",), {"step_metric": "step"})]
    assert wandb.named("log") == [
        (({"loss/text": 0.5, "loss/codes": 2.0, "step": 7},), {}),
        (({"captions": ("html", "<pre>a &lt;red&gt; square\n  -&gt; a circle</pre>"), "step": 7},), {}),
        (({"drawings": ("picture", (6, 4)), "step": 8},), {}),
    ]
    assert trackio.named("log") == [
        (({"loss/text": 0.5, "loss/codes": 2.0},), {"step": 7}),
        (({"captions": ("markdown", "```\na <red> square\n  -> a circle\n```")},), {"step": 7}),
        (({"drawings": ("picture", (6, 4))},), {"step": 8}),
    ]
    assert wandb[-1] == trackio[-1] == ("finish", (), {})


def test_a_run_that_goes_on_goes_on_there(tmp_path: Path, told: dict[str, Told]) -> None:
    config = make_config(6, sample_every=3)
    first = make_trainer(tmp_path / "run", config, sample=interrupt_at(3))
    first.track(BOTH, {})
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    again = make_trainer(tmp_path / "run", config)
    again.track(BOTH, {})
    again.fit()
    for package in told.values():
        (_, one), (_, other) = package.named("init")
        assert one == other
    assert [words[0]["step"] for words, _ in told["wandb"].named("log")] == [1, 2, 3, 4, 5, 6]
    assert [named["step"] for _, named in told["trackio"].named("log")] == [1, 2, 3, 4, 5, 6]
    lines = read_numbers(tmp_path / "run" / "metrics.jsonl")
    assert [words[0] for words, _ in told["wandb"].named("log")] == lines
    another = make_trainer(tmp_path / "other", config)
    another.track(BOTH, {})
    assert told["wandb"].named("init")[-1][1]["id"] != told["wandb"].named("init")[0][1]["id"]
    assert told["trackio"].named("init")[-1][1]["name"] != told["trackio"].named("init")[0][1]["name"]


@pytest.mark.parametrize("trouble", [OSError("no route"), RuntimeError("the service is gone"), KeyError("step")])
def test_trouble_with_one_costs_nothing_but_its_lines(
    tmp_path: Path, told: dict[str, Told], caplog: pytest.LogCaptureFixture, trouble: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    trainer = make_trainer(tmp_path, make_config(4))
    trainer.track(BOTH, {})
    wandb = trainer._trackers[0]
    assert wandb.name == "wandb"
    wandb._run.log = wandb._run.finish = fail  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit()
    assert caplog.text.count("wandb of") == 1 and "goes on without" in caplog.text
    assert len(told["trackio"].named("log")) == len(numbers(tmp_path)) == 4
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept.step == 4


def test_one_that_is_missing_or_cannot_start_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb is not installed \(.*\): `pip install wandb`\.$"):
        TrackingConfig(["wandb"]).check()
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wandb").mkdir()  # as a run of wandb leaves it
    with pytest.raises(ValueError, match="wandb is not installed: `pip install wandb`"):
        TrackingConfig(["wandb"]).check()
    sys.modules.pop("wandb", None)
    fake(monkeypatch, "wandb")

    def refuse(**_: object) -> None:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    trainer = make_trainer(tmp_path / "run", make_config(1))
    with pytest.raises(ValueError, match=r"wandb cannot start \(api_key not configured\): log in by `wandb login`, or set"):
        trainer.track(TrackingConfig(["wandb"]), {})


def test_nothing_is_imported_or_written_where_none_is_asked_for(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_config(1))
    trainer.track(TrackingConfig(), {"seed": 0})
    trainer.fit()
    assert not (tmp_path / "trackers.json").exists()
    assert "wandb" not in sys.modules and "trackio" not in sys.modules


def test_the_words_of_a_command_line() -> None:
    for root, more in (("train", ["image_tokenizer=x", "codes=x"]), ("train_tokenizer", [])):
        assert build(compose_config(root, more).tracking) == TrackingConfig([])
        words = ["trackers=[wandb,trackio]", "tracking.project=mine", "tracking.run_name=one"]
        assert build(compose_config(root, [*more, *words]).tracking) == TrackingConfig(["wandb", "trackio"], "mine", "one")
    for trackers, told in (
        ("wandb", r"a list: write trackers=\[wandb\]"),
        ("[zebra]", "no tracker 'zebra': choose among wandb"),
    ):
        with pytest.raises(Exception, match=told):
            build(compose_config("train_tokenizer", [f"trackers={trackers}"]).tracking)
