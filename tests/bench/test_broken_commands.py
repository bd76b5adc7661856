"""A difference between a run that was left alone and one that was killed is seen; clocks are none."""

import json
import shutil
from pathlib import Path

from unimm.bench.broken_data import cases, find_differences
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
