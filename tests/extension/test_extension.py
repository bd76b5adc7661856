"""A package of somebody else's adds one of each by YAML and by import path, with no change in unimm, and what it made opens in
every command."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stripes.data import Stripes
from stripes.guidance import edit
from stripes.port import NUMBERS, NumbersPort
from stripes.projector import PixelShuffle
from stripes.quantizer import Signs
from typer.testing import CliRunner

import unimm
from unimm.cli.app import app
from unimm.inference.engine import Engine
from unimm.runtime import plugins
from unimm.runtime.atomic_files import read_json
from unimm.sequence import Kind
from unimm.training.logbook import read_numbers

CONF = Path(__file__).parent / "conf"
HERE = ("--config-dir", CONF, "device=cpu")


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image tokenizer, codes and a training of the package's parts."""
    folder = tmp_path_factory.mktemp("stripes")
    steps = ("tokenizer_trainer.budget.max_steps=3", "tokenizer_trainer.num_workers=0", "tokenizer_trainer.precision=no")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["unimm"])
        done("train-tokenizer", *HERE, "tokenizer=signs", "images=stripes", *steps, "num_validation=4", "out=tokenizer")
        own = (*HERE, "image_tokenizer=tokenizer/model", "data=stripes")
        assert "codes/stripes" in done("encode", *own, "out=codes", "precision=no")
        done("train", *own, "+experiment=stripes", "codes=codes", "out=run")
        Image.fromarray(np.asarray(Stripes()[1].image)).save("picture.png")
    return folder


def test_its_parts_are_what_was_trained(place: Path) -> None:
    losses = read_numbers(place / "run" / "metrics.jsonl")[-1]
    assert {"loss/text", "loss/codes", "loss/numbers", "loss/tether"} <= set(losses)
    assert losses["loss/tether"] > 0 and 0 < losses["loss/numbers"] < 10
    engine = unimm.load(place / "run" / "model", "cpu", allow_code=True)
    assert isinstance(engine.image_tokenizer.quantize, Signs)
    assert isinstance(engine.model.pixels.projector, PixelShuffle) and engine.template.num_positions == 4
    port = engine.model.ports[NUMBERS]
    assert isinstance(port, NumbersPort) and port.unknown.weight.norm() > 0


def test_every_command_opens_it_where_its_code_is_allowed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(plugins, "_trusted", {"unimm"})
    monkeypatch.setenv("UNIMM_ALLOW_CODE", "0")
    model = ("--model", "run/model", "--device", "cpu")
    for words in (("caption", "picture.png", *model), ("convert", "run/model", "out"), ("generate", "red beside blue", *model)):
        refused = call(*words)
        assert refused.exit_code == 2 and "needs code of the package 'stripes'" in refused.stderr.replace("\n", " "), words
    done("caption", "picture.png", *model, "--allow-code", "--max-new-tokens", 4)
    done("generate", "red beside blue", *model, "--out", "drawing.png")
    assert "in unimm's own layout" in done("convert", "run/model", "converted")
    done("average", "run/model", "converted", "--out", "mean")
    monkeypatch.setattr(sys, "argv", ["unimm"])
    words = ("init_from=mean", "trainer.budget.max_steps=1", "codes=codes", "out=further")
    done("train", *HERE, "+experiment=stripes", "data=stripes", *words)
    first, last = (unimm.load(name, "cpu").image_tokenizer.quantize.codebook for name in ("run/model", "further/model"))
    assert first.equal(last)


def test_its_task_is_run_by_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming the package's task allows the code of its models, too."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(plugins, "_trusted", {"unimm"})
    monkeypatch.setenv("UNIMM_ALLOW_CODE", "0")
    done("eval", "--task", "stripes.task:LeftColours?num_items=2", "--model", "run/model", "--device", "cpu", "--out", "scores")
    scores = read_json(place / "scores/scores.json")
    assert scores is not None and scores["tasks"]["left_colours"]["count"] == 2


def test_a_model_that_draws_nothing_is_trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the port of codes, beside a port of the package's own."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["unimm"])
    silent = ("model.codes=null", "~data.sources.draw", "~stage.lr_scales.code_embedding", "~stage.lr_scales.code_head")
    few = ("trainer.budget.max_steps=1", "trainer.sample_every=1", "image_tokenizer=tokenizer/model", "out=silent")
    done("train", *HERE, "+experiment=stripes", *silent, *few)
    losses = read_numbers(place / "silent" / "metrics.jsonl")[-1]
    assert {"loss/text", "loss/numbers"} <= set(losses) and "loss/codes" not in losses
    engine = unimm.load(place / "silent" / "model", "cpu", allow_code=True)
    assert set(engine.model.ports) == {Kind.PIXELS, Kind.TEXT, NUMBERS}
    assert isinstance(engine.caption("picture.png", max_new_tokens=2), str)


def test_three_branches_of_guidance_edit_an_image(tiny_engine: Engine, picture: Image.Image) -> None:
    """With both scales at 1 only the prompt itself has a weight."""
    plain, again, guided = (
        edit(tiny_engine, picture, "make it red", *scales, 3) for scales in ((1.0, 1.0), (1.0, 1.0), (1.5, 5.0))
    )
    assert plain.tobytes() == again.tobytes() != guided.tobytes() and guided.size == (16, 16)
