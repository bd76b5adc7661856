"""`unimm eval`: several processes, one folder; what was chosen is written down and kept; names of tasks are listed."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from unimm.cli import evaluate as command
from unimm.cli.app import app
from unimm.eval.suites import FURTHER_TASKS, TASKS


def call(*words: Any) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def refuse(*words: Any) -> str:
    result = call(*words)
    assert result.exit_code == 2 and result.stderr.startswith("unimm: ") and result.stderr.count("\n") == 1, result.output
    return result.stderr


def scores(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "scores.json").read_text())
    for task in content["tasks"].values():
        del task["seconds"]
    return content


def test_two_processes_give_what_one_gives(tiny_folder: Path, tmp_path: Path) -> None:
    tasks = ("--task", "shapes_answers?n=9", "--task", "shapes_drawings?n=6&seed=2", "--precision", "fp32", "--device", "cpu")
    words = ("--model", tiny_folder, *tasks)
    done = call(*words, "--num-processes", 2, "--out", tmp_path / "two")
    assert done.exit_code == 0, done.output
    assert "ended with" not in done.output and "shapes_drawings" in done.output
    assert call(*words, "--batch-size", 1, "--out", tmp_path / "one").exit_code == 0
    assert scores(tmp_path / "one") == scores(tmp_path / "two")
    assert scores(tmp_path / "two")["settings"]["precision"] == "fp32"
    answers = [(tmp_path / name / "answers.jsonl").read_bytes() for name in ("one", "two")]
    assert answers[0] == answers[1] and answers[0].count(b"\n") == 15
    assert not [*(tmp_path / "two").glob("*-of-*")]
    assert "holds answers of another precision (fp32, now bf16): name another folder" in refuse(
        *words[:-3], "bf16", *words[-2:], "--out", tmp_path / "one"
    )


def test_the_precision_that_a_folder_was_begun_in_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluation.json").write_text('{"model": "a", "precision": "bf16", "tasks": {}}')
    assert command.choose_dtype("auto", "cpu", tmp_path) == "bf16"
    assert command.choose_dtype("fp32", "cpu", tmp_path) == "float32" == command.choose_dtype("no", "cpu", None)
    assert capsys.readouterr().err == ""
    assert command.choose_dtype("auto", "cpu", tmp_path / "new") in ("float32", "bfloat16")
    assert "precision=auto takes" in capsys.readouterr().err


def test_which_process_is_which(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.read_shard(None) == (0, 1) and command.read_shard("1/3") == (1, 3)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.read_shard(None) == (1, 2)
    for shard in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(ValueError, match="such as 0/2 and 1/2"):
            command.read_shard(shard)
    assert "--num-processes starts processes itself" in refuse("--num-processes", 2)
    assert "cannot --overwrite what the others write" in refuse("--shard", "0/2", "--overwrite")


def test_all_names_are_listed() -> None:
    result = call("--list")
    assert result.exit_code == 0
    assert all(f"{name} " in result.output for name in (*TASKS, *FURTHER_TASKS)) and "pkg.module:Task" in result.output
