"""`unimm bench pretrain`: a joint pretraining for some steps, counted after its warm-up."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unimm.bench.step_profile import CATEGORIES
from unimm.cli.app import app

WORDS = ["--model", "tiny", "--device", "cpu", "--precision", "no", "--no-compile", "--positions", "512", "--rows", "4"]
WORDS += ["--micro-batches", "2", "--steps", "2", "--warm-up", "1", "--workers", "0", "--peak-tflops", "1"]


def test_it_says_what_it_used(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "pretrain", *WORDS, "--profile", "--out", str(tmp_path / "pretrain.json")])
    assert result.exit_code == 0, result.output
    assert "MFU" in result.output and "waiting for data" in result.output
    told = json.loads((tmp_path / "pretrain.json").read_text())
    measured = told["measured"]
    assert {"loss/text", "loss/codes", "speed/data_wait", "ms_a_step", "peak_gib"} <= set(measured)
    assert 0 < measured["speed/mfu"] == pytest.approx(measured["speed/tflops_per_second"])
    # Of the two steps alone: 4 rows of 512 positions each.
    seconds = 2 * measured["ms_a_step"] / 1e3
    assert measured["speed/tokens_per_second"] * seconds == pytest.approx(2 * 4 * 512 * measured["data/fill"], rel=0.02)
    assert 0.85 < measured["data/fill"] <= 1
    shares = {name.removeprefix("share/"): share for name, share in measured.items() if name.startswith("share/")}
    assert tuple(shares) == CATEGORIES and sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for name, share in shares.items() if name != "other") and "loss and heads" in result.output
    assert shares["products"] > shares["attention"] > shares["exchange"] and shares["optimizer"] < 0.5
    assert {"command", "commit", "device", "torch"} <= set(told["provenance"]) and told["setting"]["num_rows"] == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "nobody"], "There is no model 'nobody': choose one of demo, "),
        (["--profile", "--warm-up", "0"], "with --profile give --warm-up at least 1"),
        (["--rows", "1"], "1 rows cannot be cut into 2 micro-batches: raise --rows."),
        (["--attention", "flex_attention"], "FlexAttention learns on GPUs only"),
        (["--out", f"{__file__}/pretrain.json"], "test_pretrain.py"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_done(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    result = CliRunner().invoke(app, ["bench", "pretrain", *WORDS, "--out", str(tmp_path / "pretrain.json"), *words])
    assert result.exit_code == 2 and told in result.stderr and result.stderr.startswith("unimm: "), result.output
    assert not (tmp_path / "pretrain.json").exists()
