"""Trainings die three times, once inside a save, and end as one that was left alone; and a difference would be seen."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from unimm.bench.crash_resume import Verdict, find_differences, run_kills
from unimm.bench.toy_training import ToyTraining
from unimm.cli.bench import crash_resume
from unimm.training.checkpoint import load_checkpoint
from unimm.training.checkpoint_writer import save_checkpoint


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left: the run that was left alone."""
    folder = tmp_path_factory.mktemp("kills")
    (verdict,) = run_kills(["unified"], [1], [1], num_kills=3, workspace=folder)
    assert verdict.differences == []
    assert verdict.num_kills == 3 and verdict.training.num_steps == 24 and verdict.num_announced > 1
    return folder


def test_every_kind_of_difference_is_seen(workspace: Path, tmp_path: Path) -> None:
    training, alone, other = ToyTraining("unified", 24), workspace / "unified-1-alone", tmp_path / "other"
    shutil.copytree(alone, other)
    assert list(find_differences(alone, other, training)) == []
    order = (other / "order-0.txt").read_text().splitlines()
    (other / "order-0.txt").write_text("\n".join([*order[:-1], order[-1][:-1] + "g"]) + "\n")
    metrics = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(metrics.replace('"loss/text": ', '"loss/text": 1', 1))
    last = load_checkpoint(other / "checkpoints")
    assert last is not None
    name = "weights/model.text.head.weight"
    last.tensors[name] = last.tensors[name].clone()
    last.tensors[name][0, 0] += 1e-6
    last.state["skipped"] = 1
    shutil.rmtree(other / "checkpoints")
    save_checkpoint(other / "checkpoints", last)
    found = list(find_differences(alone, other, training))
    assert found == [f"tensor {name}", "the state", "the batches of process 0", "the logged numbers"]
    shutil.rmtree(other / "checkpoints")
    assert list(find_differences(alone, other, training)) == ["a last checkpoint is missing"]


def test_the_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Console(record=True, width=80)
    monkeypatch.setattr(crash_resume, "console", told)
    crash_resume.show([Verdict(ToyTraining("tokenizer", 126, 12, 16), 100, 48, 1234, 12345.6, ["the state"])])
    lines = told.export_text().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    number = {title: lines[-1][: lines[-2].index(title) + len(title)].split()[-1] for title in ("kills", "twice", "differ")}
    assert number == {"kills": "100", "twice": "1234", "differ": "1"}  # each under its title
    assert {"tokenizer", "16", "12", "48", "126", "12346"} < {*lines[-1].split()}


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize(("model", "sharding"), [("unified", "fsdp"), ("tokenizer", "ddp")])
def test_two_processes_with_workers_that_die_three_times(model: str, sharding: str, tmp_path: Path) -> None:
    (verdict,) = run_kills([model], [2], [2], num_kills=3, workspace=tmp_path, sharding=sharding)
    assert verdict.differences == []


def test_a_folder_called_like_the_figures_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own folder is removed, before and after; nothing else is."""
    photos = tmp_path / "kills"
    photos.mkdir()
    (photos / "mine.png").write_bytes(b"mine")
    verdict = Verdict(ToyTraining("tokenizer", 126), 1, 0, 0, 1.0, [])
    monkeypatch.setattr(crash_resume, "run_kills", lambda *args, sharding: (args[-1].mkdir(), iter([verdict]))[1])
    crash_resume.run(["tokenizer"], [0], [1], "ddp", 1, tmp_path / "kills.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kills", "kills.json"]
    assert (photos / "mine.png").read_bytes() == b"mine"
