"""What a model knew before a training: kept over a resume, compared with later scores, and a fall warned of in one sentence."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from unimm.eval import validation as validations
from unimm.eval.kept_scores import BEFORE, KeptScores, largest_chance_drop
from unimm.eval.suites import TASKS, BuiltInTask
from unimm.eval.task import Result, Score
from unimm.eval.validation import Validation, ValidationConfig
from unimm.inference.engine import Engine
from unimm.runtime.atomic_files import read_json


def result(name: str, score: float, count: int = 200) -> Result:
    share = Score.share(score, count)
    return Result(name, share.value, share.count, share.interval, {}, [])


def compare(before: float, now: float, count: int = 200, max_drop: float = 0.02) -> bool:
    kept = KeptScores(Path("none") / BEFORE, ["a"], max_drop)
    kept.before = {"a": Score.share(before, count)}
    return bool(kept.losses({"a": result("a", now, count)}))


def test_a_fall_counts_beyond_the_tolerance_and_beyond_chance() -> None:
    """As Newcombe's example (1998, method 10) has it: 56 of 70 and 48 of 80 differ by 0.0524 to 0.3339."""
    before, now = (Score.share(share, count) for share, count in ((56 / 70, 70), (48 / 80, 80)))
    chance = largest_chance_drop(before, now)
    assert 56 / 70 - 48 / 80 - chance == pytest.approx(0.0524, abs=5e-5)
    assert compare(0.99, 0.90) and not compare(0.99, 0.97) and not compare(0.90, 0.99)
    assert not compare(0.99, 0.90, count=30), "chance explains it"
    assert compare(0.99, 0.97, count=20_000, max_drop=0.01) and not compare(0.99, 0.97, count=20_000, max_drop=0.03)


class Scripted:
    """Tasks that give one score after the other."""

    def __init__(self, patch: pytest.MonkeyPatch, **scores: list[float]) -> None:
        self.asked: list[str] = []
        for name, values in scores.items():
            run = self._make(name, iter(values))
            patch.setitem(TASKS, name, BuiltInTask(lambda items, run=run: cast(Any, SimpleNamespace(run=run)), 1, 1, 1, 1))

    def _make(self, name: str, values: Any) -> Any:
        def run(engine: Engine, progress: Any) -> Result:
            self.asked.append(name)
            return result(name, next(values))

        return run


def make(folder: Path, **settings: Any) -> Validation:
    def save(engine: Engine, place: Path, write_more: Any) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").touch()
        write_more(place)

    return Validation(ValidationConfig(**settings), folder / "best", save, lambda: False)


def test_a_training_warns_of_what_it_costs(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when it was resumed meanwhile; and it does not keep the model of step 0 as the best."""
    script = Scripted(
        monkeypatch,
        digits_drawings=[0.0, 0.5, 0.9, 0.9],
        shapes_answers=[0.99, 0.985, 0.80, 0.985],
        shapes_drawings=[0.96, 0.95, 0.90, 0.955],
    )
    settings = {"tasks": ["digits_drawings"], "keep": ["shapes_answers", "shapes_drawings"], "max_drop": 0.05}
    validation = make(tmp_path, **settings)
    scores = validation(tiny_engine, 0, {})
    assert scores is not None and scores["shapes_answers"] == 0.99 and scores["digits_drawings"] == 0.0
    assert script.asked == ["digits_drawings", "shapes_answers", "shapes_drawings"] and not (tmp_path / "best").exists()
    validation(tiny_engine, 10, {})
    assert not caplog.records
    again = make(tmp_path, **settings)
    again.resume()
    again(tiny_engine, 20, {})
    (line,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert line == (
        "At step 20 the model has lost some of what it could do before this training, shapes_answers from 0.990 to 0.800 "
        "(chance explains 0.056), shapes_drawings from 0.960 to 0.900 (chance explains 0.050): mix the old data in (replay), "
        "lower trainer.optimizer.lr, or train adapters alone (lora=default stage=adapters); see "
        "recipes/keep_what_was_known.md."
    )
    caplog.clear()
    again(tiny_engine, 30, {})
    assert not caplog.records, "what has come back is not warned of"


def test_the_precision_is_that_of_the_scores_before(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Scripted(monkeypatch, shapes_answers=[0.9, 0.9])
    monkeypatch.setattr(validations, "choose_precision", lambda *_: "bf16")
    monkeypatch.setattr(validations, "has_bf16", lambda device: True)
    settings = {"tasks": [], "keep": ["shapes_answers"], "precision": "auto"}
    make(tmp_path, **settings)(tiny_engine, 0, {})
    kept = read_json(tmp_path / BEFORE)
    assert kept is not None and kept["precision"] == "bf16" and kept["scores"]["shapes_answers"]["count"] == 200
    monkeypatch.setattr(validations, "choose_precision", lambda *_: pytest.fail("it is known"))
    again = make(tmp_path, **settings)
    again.resume()
    again(tiny_engine, 10, {})
    assert "takes bf16" in capsys.readouterr().out


def test_what_is_not_known_from_before_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, tasks=["shapes_answers"], keep=["shapes_answers"]).resume()
    assert "has no score of shapes_answers from before the training" in caplog.text
    caplog.clear()
    make(tmp_path, tasks=["shapes_answers"]).resume()
    assert not caplog.records


def test_a_disk_that_does_not_take_them_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out").touch()
    kept = KeptScores(tmp_path / "out" / BEFORE, ["a"], 0.02)
    kept.keep({"a": result("a", 0.9)}, "no")
    assert "cannot be written" in caplog.text
    assert kept.losses({"a": result("a", 0.5)})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"keep": ["zebra"]}, "no validation task 'zebra'"),
        ({"keep": "shapes_answers"}, "validation.keep is a list, such as"),
        ({"max_drop": 2}, "max_drop is a number from 0 to 1"),
    ],
)
def test_what_makes_no_sense_is_said(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ValidationConfig(**settings)
