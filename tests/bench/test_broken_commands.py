"""A difference between a run that was left alone and one that was killed is seen; clocks are none."""

import json
import os
import shutil
from pathlib import Path

import pytest

from unimm.bench import broken_data
from unimm.bench.broken_data import Case, cases, find_differences
from unimm.cli.compose import compose_config


def test_every_kind_of_difference_is_seen(tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    (alone / "model").mkdir(parents=True)
    (alone / "checkpoints/step-1").mkdir(parents=True)
    (alone / "model/model.safetensors").write_bytes(b"weights")
    (alone / "checkpoints/step-1/manifest.json").write_text("1 s")
    (alone / "bad_records.txt").write_text("a\tempty\nb\tempty\n")
    (alone / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "speed/x": 3.0}) + "\n")
    shutil.copytree(alone, killed)
    (killed / "bad_records.txt").write_text("b\tempty\na\tempty\n")
    (killed / "checkpoints/step-1/manifest.json").write_text("2 s")
    (killed / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "speed/x": 4.0}) + "\n")
    assert find_differences(alone, killed) == []
    (killed / "model/model.safetensors").write_bytes(b"weighty")
    (killed / "bad_records.txt").write_text("a\tempty\n")
    (killed / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.1}) + "\n")
    assert find_differences(alone, killed) == ["bad_records.txt", "metrics.jsonl", "model/model.safetensors"]


def test_its_commands_can_be_composed(tmp_path: Path) -> None:
    roots = {"unimm.train": "train", "unimm.cli.train_tokenizer": "train_tokenizer"}
    for case in cases(tmp_path / "photos", tmp_path):
        root = roots.get(case.module, case.module.rpartition(".")[2])
        assert compose_config(root, [*case.words, "out=x"]).max_bad == 0.5, case.name


def test_its_processes_are_watched_together_and_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one fails while the first one waits; both take too long; they are far enough and are killed."""
    program = "import os, sys, time\nrank = os.environ['RANK']\nif rank == sys.argv[2]:\n    sys.exit(3)\n"
    program += "open(f'{sys.argv[1]}/{rank}', 'w').write(str(os.getpid()))\ntime.sleep(99)\n"
    (tmp_path / "waits.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(name: str, failing: str) -> int:
        folder = tmp_path / name
        folder.mkdir()
        words = (str(folder), failing)
        case = Case(name, "waits", words, lambda _: sum(one.stat().st_size > 0 for one in folder.iterdir()) // 2, 1, 2)
        try:
            return broken_data._kill_in_the_middle(case, folder, 0, 1)
        finally:
            for one in (path for path in folder.iterdir() if path.stat().st_size):
                with pytest.raises(ProcessLookupError):
                    os.kill(int(one.read_text()), 0)

    assert run("killed", "none") == 1
    monkeypatch.setattr(broken_data, "STUCK_SECONDS", 60.0)
    with pytest.raises(RuntimeError, match="failed failed: see"):
        run("failed", "1")
    monkeypatch.setattr(broken_data, "STUCK_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="stuck is stuck, after 0 seconds"):
        run("stuck", "none")
