"""Evaluation tasks of other packages: in the shell, in a program and in validation, with nothing changed here."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.compose import build
from unimm.eval import Example, ItemTask, Result, ValidationConfig, evaluate, load_task, summarize
from unimm.eval.kept_scores import KeptScores
from unimm.eval.suites import TASKS, choose_tasks
from unimm.eval.tasks.drawings import Drawings
from unimm.eval.validation import Validation
from unimm.inference.engine import Engine
from unimm.runtime import plugins

MODULE = '''
"""A task of one's own, and things that are none."""

import numpy as np

from unimm.eval import Example, Result, collect, summarize


class Greys:
    """Is anything said of a grey picture? As many of them as asked for."""

    def __init__(self, num_items: int = 2, level: int = 128, name: str = "greys") -> None:
        self.name, self.num_items, self.level = name, num_items, level

    def run(self, engine, progress) -> Result:
        return summarize(self.name, collect(self.examples(engine), progress))

    def examples(self, engine):
        for number in range(self.num_items):
            image = np.full((8, 8, 3), self.level, np.uint8)
            answer = engine.answer(image, "What is it?", max_new_tokens=3)
            yield Example(str(number), "What is it?", "anything", answer, correct=number % 2 == 0, image=image)


def make(level: int) -> Greys:
    return Greys(1, level, "made")


class Namespace:
    Inner = Greys


ready = Greys(1, name="ready")
number = 7


class Bad:
    name = "a/b"
    num_items = 1

    def run(self, engine, progress):
        ...
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's module, in which a command runs."""
    (tmp_path / "own_tasks.py").write_text(MODULE)
    (tmp_path / "half.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_trusted", {"unimm"})
    yield tmp_path
    for name in ("own_tasks", "half"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("own_tasks:Greys", ("greys", 2, 128)),
        ("own_tasks:Greys?num_items=5&level=0", ("greys", 5, 0)),
        ("own_tasks:Greys?name=a%26b.c", None),
        ("own_tasks:Greys?name=12a", ("12a", 2, 128)),
        ("own_tasks:make?level=9", ("made", 1, 9)),
        ("own_tasks:Namespace.Inner", ("greys", 2, 128)),
        ("own_tasks:ready", ("ready", 1, 128)),
    ],
)
def test_a_class_a_factory_or_a_task_is_named(here: Path, name: str, expected: tuple[str, int, int] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"names files, too: .* not 'a&b.c'"):
            load_task(name)
        return
    task = load_task(name)
    assert (task.name, task.num_items, getattr(task, "level", None)) == expected


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.tasks:Greys", "cannot be imported .*nowhere.*: install its package, or run this in the folder that holds it"),
        ("half:Greys", "cannot be imported .*no_such_package"),
        ("own_tasks:Grays", "'own_tasks' has no 'Grays': did you mean 'Greys'"),
        ("own_tasks:", "names no task: write pkg.module:Task"),
        ("own_tasks:make", r"does not take these arguments \(missing a required argument: 'level'\): it takes \(level: int\)"),
        ("own_tasks:Greys?size=3", "got an unexpected keyword argument 'size'.*num_items: int = 2"),
        ("own_tasks:Greys?3", "Cannot read '3' in .*: arguments are written as pkg.module:Task.n=100&split=test"),
        ("own_tasks:ready?level=3", "is no class or function, so it takes no arguments: leave '.level=3' out"),
        ("own_tasks:number", "is no task: it is of type int, without name and num_items and run"),
        ("own_tasks:Bad", "use letters, digits, '_', '-' and '.', not 'a/b'"),
    ],
)
def test_what_is_no_task_is_said_in_a_sentence(here: Path, name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_task(name)
    with pytest.raises(ValueError, match=told):
        Validation(ValidationConfig([name]), here / "best", lambda *_: None, lambda: False)


def test_they_stand_beside_a_suite_or_instead_of_it(here: Path) -> None:
    def names(*named: str, suite: str | None = None) -> list[str]:
        return [task.name for task in choose_tasks([*named], suite)]

    assert names("own_tasks:Greys") == ["greys"]
    assert names("own_tasks:Greys", suite="brief") == [*TASKS, "greys"]
    assert names("own_tasks:Greys", "digits_answers") == ["digits_answers", "greys"]
    assert names("digits_drawings", "shapes_answers") == ["digits_drawings", "shapes_answers"]
    assert names() == [*TASKS]
    with pytest.raises(ValueError, match=r"no task 'greys': choose among .*, or name one of your own as pkg.module:Task"):
        names("greys")


def test_the_shell_runs_them(here: Path, tiny_folder: Path) -> None:
    words = ["--task", "own_tasks:Greys?num_items=3", "--task", "own_tasks:ready", "--model", str(tiny_folder), "--out", "out"]
    result = CliRunner().invoke(app, ["eval", *words])
    assert result.exit_code == 0, result.output
    scores = json.loads((here / "out/scores.json").read_text())["tasks"]
    assert {name: (one["score"], one["count"]) for name, one in scores.items()} == {"greys": (2 / 3, 3), "ready": (1.0, 1)}
    assert (here / "out/images/greys-00000.png").is_file()
    refused = CliRunner().invoke(app, ["eval", "--task", "own_tasks:number", "--model", str(tiny_folder)])
    assert refused.exit_code == 2 and refused.stderr.startswith("unimm: ") and refused.stderr.count("\n") == 1


def test_a_program_runs_them(here: Path, tiny_engine: Engine) -> None:
    task = load_task("own_tasks:Greys")
    report = evaluate(tiny_engine, [task], here / "scores", progress=False)
    assert report["greys"].score == 0.5 and (here / "scores/answers.jsonl").is_file()
    for other, told in (
        (type(task), "is a class: evaluate an object of it, such as Greys"),
        (7, "is no task: it is of type int"),
    ):
        with pytest.raises(ValueError, match=told):
            evaluate(tiny_engine, [other], progress=False)  # pyright: ignore[reportArgumentType]


def test_a_training_is_validated_by_them(here: Path, tiny_engine: Engine) -> None:
    config = ValidationConfig(["own_tasks:Greys?num_items=4", "own_tasks:ready"], monitor="greys")
    saved = []
    validation = Validation(config, here / "best", lambda engine, folder, write_more: saved.append(folder), lambda: False)
    assert validation(tiny_engine, 10, {}) == {"greys": 0.5, "ready": 1.0, "mean": 0.75}
    assert saved == [here / "best"] and validation.best == 0.5
    for tasks, monitor, told in (
        (["own_tasks:Greys"], "zebra", "monitor is mean, loss or one of greys, not 'zebra'"),
        (["own_tasks:Greys", "own_tasks:Greys?level=1"], "mean", "Two scores of the validation are called 'greys'"),
        (["own_tasks:Greys?name=mean"], "mean", "Two scores of the validation are called 'mean'"),
    ):
        with pytest.raises(ValueError, match=told):
            Validation(ValidationConfig(tasks, monitor=monitor), here / "best", lambda *_: None, lambda: False)


class Errors(ItemTask):
    """A score where less is better, as `_target_` makes it; it falls with every validation."""

    name, num_items = "errors", 2

    def __init__(self, first: float = 9.0) -> None:
        self.left = first

    def ask(self, engine: Any, items: list[int]) -> Iterator[Example]:
        self.left -= 1
        yield from (Example(str(item), "", "", "", False, value=self.left + item) for item in items)

    def score(self, examples: list[Example]) -> Result:
        return summarize(self.name, examples, unit="errors", higher_is_better=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shapes_answers?n=7&seed=2", ("shapes_answers", 7)),
        ("shapes_captions?num_items=3&split=held_out", ("shapes_captions_held_out", 3)),
        ("shapes_drawings?n=7&guidance_scale=2.5&best_of=2", ("shapes_drawings", 12)),
        ("digits_reconstruction", ("digits_reconstruction", 500)),
        ("figures_names?n=5", ("figures_names", 5)),
        ("unimm.eval:FiguresDrawings?n=6", ("figures_drawings", 6)),
    ],
)
def test_one_registry_knows_all_names(name: str, expected: tuple[str, int]) -> None:
    task = load_task(name)
    assert (task.name, task.num_items) == expected
    assert choose_tasks([name], None)[0].name == task.name
    if "drawings?n=7" in name:
        assert isinstance(task, Drawings) and (task.settings.guidance_scale, task.settings.best_of) == (2.5, 2)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("zebra?n=2", "There is no task 'zebra': choose among shapes_answers, .*figures_names"),
        ("shapes_answers?best_of=2", "'shapes_answers' takes n, seed, split, not best_of"),
        ("digits_answers?n=0", "n of digits_answers is a whole number of at least 1, not 0"),
        ("digits_answers?n", "Cannot read 'n' in"),
        ("figures_names?size=2", "does not take these arguments"),
    ],
)
def test_names_and_arguments_that_it_does_not_know(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_task(name)


def test_a_task_that_yaml_makes_is_validated_by_its_direction(tmp_path: Path, tiny_engine: Engine) -> None:
    """The lowest is the best, and it is no part of the mean of shares."""
    content = {
        "_target_": "unimm.eval.ValidationConfig",
        "tasks": ["digits_answers?n=3", {"_target_": f"{__name__}.Errors", "first": 5.0}],
        "monitor": "errors",
        "precision": "fp32",
    }
    config = build(OmegaConf.create(content))
    saved: list[float] = []
    validation = Validation(config, tmp_path / "best", lambda *_: saved.append(1.0), lambda: False)
    for step, expected in ((10, 4.5), (20, 3.5)):
        scores = validation(tiny_engine, step, {})
        assert scores is not None and scores["errors"] == expected == validation.best
        assert scores["mean"] == scores["digits_answers"]
    assert len(saved) == 2
    kept = KeptScores(tmp_path / "before.json", ["errors"], 0.02)
    before = Errors(5.0).run(tiny_engine, lambda example: None)
    kept.keep({"errors": before}, "no")
    again = KeptScores(tmp_path / "before.json", ["errors"], 0.02)
    again.resume()
    assert again.before == {"errors": before.total} and not again.losses({"errors": Errors(4.0).run(tiny_engine, print)})
    (loss,) = again.losses({"errors": Errors(50.0).run(tiny_engine, lambda example: None)})
    assert (loss.before, loss.now) == (4.5, 49.5)
