"""`unimm bench load`: both peers open the same random weights, and the figures say where they come from."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

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
    assert ours["seconds"] > 0 and ours["peak"] > 0 and theirs["peak"] > 0
    assert {"command", "commit", "date", "device", "num_cores", "torch", "transformers"} <= set(told["provenance"])
    assert "transformers" in result.stdout


@pytest.mark.parametrize("words", [["--model", "zebra"], ["--device", "tpu"], ["--dtype", "int3"]])
def test_a_mistake_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    result = call(*words, "--out", tmp_path / "load.json")
    assert result.exit_code == 2 and result.stderr.startswith("unimm: "), result.output
    assert not (tmp_path / "load.json").exists()
