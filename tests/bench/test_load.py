"""`unimm bench load`: both peers open the same random weights, and the figures say where they come from."""

import json
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from unimm.bench import load as bench_load
from unimm.cli.app import app


def call(*words: object):
    return CliRunner().invoke(app, ["bench", "load", *(str(word) for word in words)])


def test_both_load_the_same_weights(tmp_path: Path) -> None:
    result = call("--model", "tiny", "--device", "cpu", "--dtype", "float32", "--repeats", 1, "--out", tmp_path / "load.json")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "load.json").read_text())
    ours, theirs = told["measured"]
    assert (ours["who"], theirs["who"], ours["folder"]) == ("unimm", "transformers", "tiny")
    # Theirs counts the codebook, which is no parameter of ours.
    assert 0 < theirs["weights_gib"] - ours["weights_gib"] < 1e-4
    assert {"command", "commit", "date", "device", "num_cores", "torch", "transformers"} <= set(told["provenance"])
    assert "transformers" in result.stdout


def test_what_is_measured_is_the_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading takes 0.2 s, and its weights are 64 MiB; what is imported before it does not count."""

    def load(folder: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        time.sleep(0.2)
        return [torch.ones(2**23, dtype=dtype, device=device), torch.ones(2**23, dtype=dtype, device=device)]

    monkeypatch.setattr(bench_load, "_loader", lambda who: (time.sleep(1.0), load)[1])
    told = bench_load.run_trial(bench_load.Trial("somebody", "folder", "cpu", "float32"))
    assert 0.2 <= told["seconds"] < 1.0 and 0 < told["touch_seconds"] < 1.0
    assert told["weights_gib"] == 1 / 16
    assert told["peak"] > 0.9  # of the process: it has held them at once


@pytest.mark.parametrize("words", [["--model", "zebra"], ["--device", "tpu"], ["--dtype", "int3"]])
def test_a_mistake_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    result = call(*words, "--out", tmp_path / "load.json")
    assert result.exit_code == 2 and result.stderr.startswith("unimm: "), result.output
    assert not (tmp_path / "load.json").exists()
