"""`unimm bench checkpoint`: both ways write the same run, and how long training waits is reported."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.bench import checkpoint_time


def test_both_ways_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_time, "MOST", 1e9)  # toys say nothing about speed
    words = ["--model", "tiny", "--processes", "1", "--sharding", "ddp", "--repeats", "2", "--out", str(tmp_path / "it.json")]
    result = CliRunner().invoke(app, ["bench", "checkpoint", *words])
    assert result.exit_code == 0, result.output
    assert "Training stands still for" in result.output
    told = json.loads((tmp_path / "it.json").read_text())["measured"]
    assert [len(told[name]) for name in ("gathered", "copying", "writing")] == [2, 2, 2]
    assert told["gigabytes"] > 0.001 and told["share"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]


def test_an_unknown_sharding_is_said(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["bench", "checkpoint", "--sharding", "zero", "--out", str(tmp_path / "it.json")])
    assert refused.exit_code == 2 and "Unknown sharding 'zero': use ddp or fsdp." in refused.stderr
