"""`unimm bench load`: both peers open the same random weights, and the figures say where they come from."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    """By a clock and a memory of the test's own: what is imported before loading does not count."""
    now, held = 100.0, 2**30

    def load(folder: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        nonlocal now, held
        now, held = now + 0.25, held + 3 * 2**25
        return [torch.ones(2**23, dtype=dtype, device=device), torch.ones(2**23, dtype=dtype, device=device)]

    def loader(who: str) -> Any:
        nonlocal now, held
        now, held = now + 9.0, held + 2**29
        return load

    monkeypatch.setattr(bench_load, "_loader", loader)
    monkeypatch.setattr(bench_load.time, "perf_counter", lambda: now)
    monkeypatch.setattr(bench_load.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=held)))
    monkeypatch.setattr(bench_load, "peak_bytes", lambda: held)
    told = bench_load.run_trial(bench_load.Trial("somebody", "folder", "cpu", "float32"))
    assert told == {"seconds": 0.25, "touch_seconds": 0.0, "weights_gib": 1 / 16, "peak": 1.5}


@pytest.mark.parametrize("words", [["--model", "zebra"], ["--device", "tpu"], ["--dtype", "int3"]])
def test_a_mistake_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    result = call(*words, "--out", tmp_path / "load.json")
    assert result.exit_code == 2 and result.stderr.startswith("unimm: "), result.output
    assert not (tmp_path / "load.json").exists()
