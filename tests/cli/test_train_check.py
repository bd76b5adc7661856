"""`unimm train --check`: one page before a training, and nothing done."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from users_files import make_all

from unimm.cli import train_check
from unimm.cli.app import app
from unimm.cli.train_check import GIGABYTES, Options, take_options
from unimm.data.stores.codes import StoredCodes
from unimm.training.flops import PEAKS

SET = ["data=image_folder", "data.folder=photos", "device=cpu", "codes=codes", "trainer.num_positions=256"]
SET += ["trainer.num_workers=0", "trainer.budget.max_steps=4", "trainer.num_rows=4", "stage=pretrain"]


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and their codes."""
    folder = make_all(tmp_path_factory.mktemp("check"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["data=image_folder", "data.folder=photos", f"image_tokenizer={tiny_folder}", "out=codes", "device=cpu"]
        assert CliRunner().invoke(app, ["encode", *words]).exit_code == 0
    return folder


def run(place: Path, tiny_folder: Path, *words: str) -> Any:
    """The command, in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return CliRunner().invoke(app, ["train", "--check", *SET, f"init_from={tiny_folder}", *words])


def test_every_gpu_has_its_memory() -> None:
    assert GIGABYTES.keys() | {"H100 PCIe"} == PEAKS.keys()


def test_options_are_taken_out_and_the_words_stay() -> None:
    options, words = take_options(["--check", "a=1", "--gpus", "64", "~data.sources.b", "--gpu", "h100", "--json", "--mfu=0.5"])
    assert options == Options(64, "H100", 0.5, True) and words == ["a=1", "~data.sources.b"]
    for wrong, told in ((["--gpu", "abacus"], "not known"), (["--mfu", "40"], "share"), (["--gpus", "none"], "invalid int")):
        with pytest.raises(ValueError, match=told):
            take_options(["--check", *wrong])


def test_a_page_says_what_a_training_takes_and_nothing_is_done(place: Path, tiny_folder: Path) -> None:
    before = sorted(place.rglob("*"))
    result = run(place, tiny_folder, "--json", "--gpus", "2", "--gpu", "A100", "trainer.sharding.strategy=fsdp")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.strip().splitlines()[-1])
    assert (told["processes"], told["device"], told["problems"]) == (2, "A100", [])
    step, memory, disk = told["step"], told["memory"], told["disk"]
    assert 0 < step["tokens_a_step"] <= step["positions_a_step"] == 4 * 256 and step["images_a_step"] > 0
    assert step["seconds_a_step"] == pytest.approx(step["tflop_a_step"] / 2 / (0.4 * 312))
    assert step["hours"] == pytest.approx(4 * step["seconds_a_step"] / 3600)
    assert memory["optimizer"] == 2 * memory["weights"] and memory["peak"] > memory["weights"] + memory["gradients"]
    assert disk["a_checkpoint"] > 2 * memory["optimizer"] and disk["free"] > disk["all"]
    assert all(one["records"] > 0 for one in told["data"].values())
    assert sorted(place.rglob("*")) == before
    split = run(place, tiny_folder, "--json", "--gpus", "2", "--gpu", "A100", "trainer.sharding.context_parallel_degree=2")
    shared = json.loads(split.stdout.strip().splitlines()[-1])
    assert 0 < shared["memory"]["activations"] < memory["activations"] + memory["gradients"]
    assert shared["step"]["positions_a_step"] == 4 * 256 and shared["samples_a_step"] > 0
    page = run(place, tiny_folder)
    assert page.exit_code == 0 and "It fits." in page.output and "steps a day" in page.output


def test_what_does_not_fit_is_said_and_ends_with_1(place: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train_check.GIGABYTES, "L4", 2.0)
    monkeypatch.setattr(StoredCodes, "bad_rows", property(lambda self: frozenset([0, 1])))
    result = run(place, tiny_folder, "--gpu", "L4")
    assert result.exit_code == 1 and "It fits." not in result.output
    assert "A process needs" not in result.output and "DOES NOT FIT: 2 of" in result.output
    monkeypatch.setitem(train_check.GIGABYTES, "L4", 1.6)
    assert "A process needs" in run(place, tiny_folder, "--gpu", "L4").output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.num_row=3"], "num_row"),
        (["--gpus", "8", "--gpu", "H100"], "4 rows cannot be cut into 1 micro-batches for each of 8 processes"),
        (["codes=photos"], "photos"),
        (["trainer.sharding.context_parallel_degree=2"], "splits rows over 2 processes, and the run has 1"),
        (["--gpus", "3", "trainer.sharding.context_parallel_degree=3"], "256 positions do not divide into 3 equal parts"),
    ],
)
def test_what_is_wrong_ends_as_it_would_in_the_training(place: Path, tiny_folder: Path, words: list[str], told: str) -> None:
    result = run(place, tiny_folder, *words)
    assert result.exit_code == 2 and result.stderr.startswith("unimm: ") and told in result.stderr, result.output
