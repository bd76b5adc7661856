"""Variants of an ablation: means over seeds, settings beside each other, a table and a plot from what evaluations leave."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.eval.report.ablation import MeanOverSeeds, columns_of, find_variants, group_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two variants, one of them with two seeds; drawings at three values of guidance."""
    for run, score in (("two-0", 0.5), ("two-1", 0.7), ("one-0", 0.1)):
        write(tmp_path / run / "scores", {"shapes_answers": score, "shapes_captions": score / 2})
        for guidance in ("1", "2.5", "10"):
            write(tmp_path / run / f"guidance-{guidance}", {"shapes_drawings": score / float(guidance)})
    return tmp_path


def write(folder: Path, scores: dict[str, float]) -> None:
    folder.mkdir(parents=True)
    tasks = {task: {"score": score, "count": 40} for task, score in scores.items()}
    (folder / "scores.json").write_text(json.dumps({"finished": True, "tasks": tasks}))


def test_seeds_are_one_variant_and_settings_are_not(runs: Path) -> None:
    variants, notes = find_variants(runs)
    assert not notes
    assert list(variants) == ["one", "two"]
    assert variants["two"]["shapes_answers"] == (pytest.approx(0.6), pytest.approx(0.1414, abs=1e-3), 2)
    assert variants["one"]["shapes_answers"] == MeanOverSeeds(0.1, 0.0, 1)
    assert variants["two"]["guidance-2.5 shapes_drawings"].mean == pytest.approx(0.24)
    assert variants["two"]["guidance-10 shapes_drawings"].mean == pytest.approx(0.06)


def test_columns_are_in_order(runs: Path) -> None:
    """As tasks are asked for, and then by the setting's value: ten comes after two and a half."""
    variants, _ = find_variants(runs)
    drawings = [f"guidance-{value} shapes_drawings" for value in ("1", "2.5", "10")]
    assert columns_of(variants, ["shapes_drawings", "shapes_answers"]) == [*drawings, "shapes_answers"]
    assert set(columns_of(variants, [])) == {"shapes_answers", "shapes_captions", *drawings}
    with pytest.raises(ValueError, match="No run has a score of 'poems': choose among"):
        columns_of(variants, ["poems"])


def test_what_does_not_match_is_said(runs: Path) -> None:
    """Evaluations that are not finished are left out; scores of other numbers of items are not hidden."""
    write(runs / "late-0" / "scores", {"shapes_answers": 0.9})
    (runs / "late-0/scores/scores.json").write_text(json.dumps({"finished": False, "tasks": {"a": {"score": 1.0}}}))
    (runs / "one-1/scores").mkdir(parents=True)
    (runs / "one-1/scores/scores.json").write_text(json.dumps({"tasks": {"shapes_answers": {"score": 0.3, "count": 2000}}}))
    variants, notes = find_variants(runs)
    assert "late" not in variants and variants["one"]["shapes_answers"].num_seeds == 2
    assert notes == [
        f"Left out, since they are not finished: {runs / 'late-0/scores'}.",
        "Scores of shapes_answers are not all of as many items (40, 2000).",
    ]


def test_one_value_written_in_two_ways_is_one_setting(runs: Path) -> None:
    (runs / "two-1/guidance-2.5").rename(runs / "two-1/guidance-2.50")
    variants, _ = find_variants(runs)
    assert variants["two"]["guidance-2.5 shapes_drawings"].num_seeds == 2


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("two-0/scores.json", {"tasks": {"shapes_answers": {"score": 0.5}}}, "are both the scores of two-0: keep one of them"),
        ("other/scores.json", {"answers": 0.5}, "holds no scores as `unimm eval` writes them"),
        ("other/scores.json", [1, 2], "holds no JSON object"),
        ("other/scores.json", {"tasks": {"shapes_answers": 0.5}}, "holds no scores as `unimm eval` writes them"),
        ("metrics.jsonl", {}, "is one run, and seeds are runs beside each other"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs: Path, path: str, content: object, message: str) -> None:
    (runs / path).parent.mkdir(exist_ok=True)
    (runs / path).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        find_variants(runs)


def test_an_evaluation_in_the_runs_folder_itself_is_a_variant_too() -> None:
    assert list(group_runs([("scores", {"answers": 0.5}), ("two-3", {"answers": 0.25})])) == ["scores", "two"]


@pytest.mark.parametrize("tasks", [[], ["shapes_answers"], ["shapes_drawings"]])
def test_the_verb_writes_a_table_and_a_plot(runs: Path, tmp_path: Path, tasks: list[str]) -> None:
    words = [word for task in tasks for word in ("--task", task)]
    told = CliRunner().invoke(app, ["compare", str(runs), "--out", str(tmp_path / "out"), *words])
    assert told.exit_code == 0, told.output
    assert ("shapes answers" in told.output) == ("shapes_drawings" not in tasks) and "0.600 ± 0.141" in told.output
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["one"]["shapes_answers"]["mean"] == 0.1
    with Image.open(tmp_path / "out" / "compare.png") as picture:
        assert picture.width > 400


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert told.exit_code != 0 and "holds no runs with scores" in told.output


def write_training(folder: Path, losses: list[float], **more: list[float]) -> None:
    folder.mkdir(parents=True)
    numbers = {"loss/codes": losses, **{name.replace("_", "/"): values for name, values in more.items()}}
    lines = [{"step": step, **{name: values[step] for name, values in numbers.items()}} for step in range(len(losses))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_trainings_without_scores_are_compared_by_their_losses(tmp_path: Path) -> None:
    write_training(tmp_path / "lr0.1-0", [9.0] * 18 + [2.0, 4.0], accuracy_codes=[0.5] * 20)
    write_training(tmp_path / "lr0.1-1", [5.0] * 20, accuracy_codes=[0.7] * 20)
    write_training(tmp_path / "lr1-0", [6.0] * 10, accuracy_codes=[0.1] * 10)
    result = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "4.000 ± 1.414" in result.stdout and "6.000" in result.stdout and "accuracy" not in result.stdout
    assert "No run was evaluated" in result.stderr and "not all of as many steps (9, 19)" in result.stderr
    told = json.loads((tmp_path / "compare.json").read_text())
    assert told["lr0.1"]["loss/codes"]["num_seeds"] == 2 and Image.open(tmp_path / "compare.png").size[0] > 100
    chosen = CliRunner().invoke(app, ["compare", str(tmp_path), "--metric", "accuracy/codes"])
    assert "0.600 ± 0.141" in chosen.stdout and "loss" not in chosen.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metric", "loss/poems"], "No run has reported 'loss/poems': choose among"),
        (["--metric", "loss/codes", "--task", "shapes_answers"], "one at a time"),
        (["--task", "shapes_answers"], "no runs with scores"),
    ],
)
def test_numbers_that_are_not_there(tmp_path: Path, words: list[str], told: str) -> None:
    write_training(tmp_path / "a-0", [1.0])
    result = CliRunner().invoke(app, ["compare", str(tmp_path), *words])
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1
