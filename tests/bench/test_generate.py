"""`unimm bench generate`: both peers draw with the same weights, and the table has every column."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from unimm.bench.generate import Trial, read_bandwidth
from unimm.bench.trials import run_in_turns
from unimm.cli.app import app


def test_both_draw_with_the_same_weights(tiny_folder: Path, tmp_path: Path) -> None:
    words = ["bench", "generate", "--model", tiny_folder, "--device", "cpu", "--dtype", "bfloat16", "--batch-size", 2, "--int8"]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--out", tmp_path / "generate.json"]])
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "generate.json").read_text())
    assert [(one["who"], one["weights"]) for one in told["measured"]] == [
        ("unimm", "as dtype"),
        ("transformers", "as dtype"),
        ("unimm", "int8"),
    ]
    for one in told["measured"]:
        assert one["seconds"] > 0 and one["decode_seconds"] > 0 and one["peak_gib"] > 0
        assert one["ms_a_step"] == pytest.approx(1e3 * one["seconds"] / 4)
        assert one["images_a_second"] == pytest.approx(2 / one["seconds"])
    assert told["measured"][0]["floor_ms"] > 0
    assert {"command", "commit", "device", "torch", "transformers"} <= set(told["provenance"])


def test_a_peer_that_cannot_draw_is_named(tmp_path: Path) -> None:
    trial = Trial("unimm", str(tmp_path), "cpu", "float32", 1)
    with pytest.raises(ValueError, match="The trial of unimm failed: "):
        run_in_turns("unimm.bench.generate", [trial], 1, lambda trial: None)


def test_memory_is_read_at_some_speed() -> None:
    assert 1e8 < read_bandwidth(torch.device("cpu")) < 1e13
