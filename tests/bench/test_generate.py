"""`unimm bench generate`: both peers draw with the same weights, and the table has every column."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from trials_in_forks import forked_trials  # noqa: F401  a fixture
from typer.testing import CliRunner

from unimm.bench.generate import Trial, read_bandwidth
from unimm.bench.subprocess_trials import run_in_turns
from unimm.checkpoints.bundle import ModelBundle
from unimm.cli.app import app
from unimm.cli.bench.generate import choose_peers, read_batch


@pytest.mark.usefixtures("forked_trials")
def test_both_draw_and_write_with_the_same_weights(tiny_folder: Path, tmp_path: Path) -> None:
    words = ["bench", "generate", "--model", tiny_folder, "--device", "cpu", "--dtype", "bfloat16", "--weights", "int8"]
    words += ["--batch", "2", "--batch", "1+2", "--out", tmp_path / "generate.json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "generate.json").read_text())
    assert [(one["num_images"], one["num_texts"], one["who"], one["weights"]) for one in told["measured"]] == [
        (images, texts, *peer)
        for images, texts in ((2, 0), (1, 2))
        for peer in (("unimm", "as dtype"), ("transformers", "as dtype"), ("unimm", "int8"))
    ]
    for one in told["measured"]:
        assert one["seconds"] > one["first_seconds"] > 0 and one["decode_seconds"] > 0 and one["peak_gib"] > 0
        assert one["ms_a_step"] == pytest.approx(1e3 * one["seconds"] / 4)
        assert one["images_a_second"] == pytest.approx(one["num_images"] / one["seconds"])
        assert one["ids_a_second"] == pytest.approx((4 * one["num_images"] + 64 * one["num_texts"]) / one["seconds"])
    floors = [one["floor_ms"] for one in told["measured"]]
    assert floors[0] > 0 and floors[2] > 0 and not any((floors[1], *floors[3:]))
    assert {"command", "commit", "device", "torch", "transformers"} <= set(told["provenance"])
    with Image.open(tmp_path / "generate.png") as picture:
        assert picture.width > 500


def test_windows_are_timed_beside_one_code_at_a_time(tiny_folder: Path, tmp_path: Path) -> None:
    words = ["bench", "generate", "--model", tiny_folder, "--device", "cpu", "--dtype", "float32", "--top-k", 9]
    words += ["--out", tmp_path / "windows.json", "--window", 3, "--window", 0, "--batch"]
    result = CliRunner().invoke(app, [str(word) for word in [*words, 2]])
    assert result.exit_code == 0 and "chosen" in result.output, result.output
    told = json.loads((tmp_path / "windows.json").read_text())
    assert [(one["num_images"], one["window"], one["different"]) for one in told["measured"]] == [(2, 3, 0), (2, None, 0)]
    assert told["settings"] == [5.0, 1.0, 9] and told["measured"][0]["steps"] <= 4
    result = CliRunner().invoke(app, [str(word) for word in [*words, "2+1"]])
    assert result.exit_code == 2 and "--window times batches of drawings" in result.stderr


def test_requests_that_come_at_random_on_a_busy_machine(tiny_folder: Path, tmp_path: Path) -> None:
    words = ["bench", "generate", "--model", tiny_folder, "--device", "cpu", "--dtype", "float32", "--rate", 200]
    words += ["--requests", 9, "--busy", 1, "--out", tmp_path / "arrivals.json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0 and "1 busy processes" in result.output, result.output
    told = json.loads((tmp_path / "arrivals.json").read_text())
    assert (told["rate"], told["busy"]) == (200, 1)
    whole, *kinds = told["measured"]
    assert [one["kind"] for one in kinds] == ["caption", "question", "chat", "drawing"]
    assert sum(one["requests"] for one in kinds) == whole["requests"] == 9 and whole["ids_a_second"] > 0
    for one in told["measured"]:
        for name in ("first", "total"):
            assert 0 < one[f"{name}_p50"] <= one[f"{name}_p90"] <= one[f"{name}_p99"] < whole["seconds"]
        assert one["first_p50"] <= one["total_p50"]


@pytest.mark.parametrize("batch", ["0", "0+0", "x", "3+", "-1"])
def test_batches_that_are_none(batch: str) -> None:
    with pytest.raises(ValueError, match="A batch is IMAGES or IMAGES"):
        read_batch(batch)


def test_a_peer_that_cannot_draw_is_named(tmp_path: Path) -> None:
    trial = Trial("unimm", str(tmp_path), "cpu", "float32", 1)
    with pytest.raises(ValueError, match="The trial of unimm failed: "):
        run_in_turns("unimm.bench.generate", [trial], 1, lambda trial: None)


def test_memory_is_read_at_some_speed() -> None:
    assert 1e8 < read_bandwidth(torch.device("cpu")) < 1e13


@dataclass(frozen=True)
class Said:
    """A trial that prints its own figures, or says why not."""

    who: str
    say: str


TALK = [sys.executable, "-S", "-c", "import json, sys; exec(json.loads(sys.argv[1])['say'])"]


def test_what_was_measured_before_a_failure_is_kept() -> None:
    kept: list[list[dict]] = []
    trials = [Said("good", "print(json.dumps({'ms': 2.0}))"), Said("bad", "sys.exit('no room')"), Said("never", "")]
    with pytest.raises(ValueError, match="The trial of bad failed: no room"):
        run_in_turns("", trials, 2, lambda trial: None, {trial.who: TALK for trial in trials}, kept.append)
    assert [[(one["who"], one["ms"]) for one in each] for each in kept] == [[("good", 2.0)]]
    silent = Said("silent", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ValueError, match="The trial of silent failed: it ended with -9 and said nothing"):
        run_in_turns("", [silent], 1, lambda trial: None, {"silent": TALK})


def test_only_weights_of_fewer_bits_are_timed_where_that_is_asked() -> None:
    assert choose_peers(["int8"], False, [], 5.0) == [
        ("unimm", "as dtype", None),
        ("transformers", "as dtype", None),
        ("unimm", "int8", None),
    ]
    assert choose_peers(["int8", "fp8"], True, [], 5.0) == [("unimm", "int8", None), ("unimm", "fp8", None)]
    assert choose_peers([], False, [], 1.0) == [("unimm", "as dtype", None)]
    kernels = [("unimm", weights, name) for weights in ("as dtype", "int8") for name in ("torch", "triton")]
    assert choose_peers(["int8"], True, ["torch", "triton"], 5.0) == kernels
    for weights, told in (([], "add --weights int8, int4 or fp8, or --kernels"), (["int3"], "There are no weights 'int3'")):
        with pytest.raises(ValueError, match=told):
            choose_peers(weights, True, [], 5.0)


def test_a_step_is_explained(tiny_folder: Path, tmp_path: Path) -> None:
    """Bytes and operations are those of the sizes; the parts that are timed make up the step."""
    words = ["bench", "generate", "--explain", "--model", tiny_folder, "--device", "cpu", "--dtype", "float32"]
    words += ["--batch", "2", "--batch", "1+1", "--window", "1", "--window", "2", "--out", tmp_path / "explain.json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0 and "x floor" in result.output and "Most is " in result.output, result.output
    told = json.loads((tmp_path / "explain.json").read_text())["measured"]
    assert [(one["num_images"], one["window"], one["rows"]) for one in told] == [(2, 1, 4), (2, 2, 4), (1, 1, 3), (1, 2, 3)]
    assert [one["positions"] for one in told] == [4, 8, 3, 5]
    model = ModelBundle.load(tiny_folder, torch.device("cpu")).model
    size = sum(one.numel() for one in model.trunk.layers.parameters())
    trunk = model.config.trunk_config()
    for one in told:
        products, attention, heads, rest = one["parts"]
        assert (products["bytes"], products["flops"]) == (4 * size, 2 * size * one["positions"])
        read = 2 * trunk.num_hidden_layers * trunk.num_key_value_heads * trunk.head_dim * 4
        assert attention["bytes"] == read * one["read"] and one["read"] >= one["held"] > 0 < one["cache_bytes"]
        assert one["held"] == pytest.approx(one["rows"] * one["length"])
        assert products["calls"] >= 4 * trunk.num_hidden_layers and min(attention["calls"], heads["calls"], rest["calls"]) > 0
        assert min(products["seconds"], heads["seconds"], *(part["floor_seconds"] for part in one["parts"][:3])) > 0
        assert sum(part["seconds"] for part in one["parts"]) == pytest.approx(one["step"])
        assert one["floor"] == pytest.approx(sum(part["floor_seconds"] for part in one["parts"]))
