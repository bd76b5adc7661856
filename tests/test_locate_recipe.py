"""The recipe for locating, line by line, with a tiny model and one step: what one line writes the next one finds."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_readme import RECIPES, execute, fenced, fenced_lines, run
from typer.testing import CliRunner
from users_files import make_all

from unimm.checkpoints.bundle import ModelBundle
from unimm.cli.app import app
from unimm.cli.builders import build_prompt_format
from unimm.cli.compose import compose_config
from unimm.data.template import PromptFormat
from unimm.inference.engine import Engine

pytestmark = pytest.mark.usefixtures("small_windows")

TOY = [
    *("device=cpu", "trainer.budget.max_steps=1", "trainer.compile=false", "trainer.precision='no'"),
    *("trainer.num_positions=256", "trainer.num_rows=2", "trainer.num_workers=0"),
]
RECIPE = RECIPES / "locate.md"


def lines(*first: str) -> list[str]:
    return [line for line in fenced_lines(RECIPE) if line.split()[: len(first)] == list(first)]


@pytest.fixture
def place(tiny_folder: Path, tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's files, and a Janus-Pro."""
    make_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_MODEL", raising=False)
    for folder in ("models", "runs/demo"):
        Path(folder).mkdir(parents=True)
    Path("models/janus-pro-1b").symlink_to(tiny_folder)
    picture.save("runs/demo/photo.png")
    return tmp_path


def test_the_recipe_runs(place: Path, tiny_folder: Path) -> None:
    first, *others = lines("unimm", "train")
    run(first.replace("init_from=demo", f"init_from={tiny_folder}"), *TOY)
    for line in others:  # they differ in their data, which tests/test_conf.py builds
        config = compose_config("train", shlex.split(line)[2:])
        assert build_prompt_format(config.prompt_format, PromptFormat()) == PromptFormat(box_form="qwen", box_bins=1000)
    Path("runs/locate/mine").mkdir()
    Path("runs/locate/mine/model").symlink_to(Path("runs/locate/model").resolve())
    own = ModelBundle.load("runs/locate/model").prompt_format
    assert own == PromptFormat(box_form="short", box_bins=81)
    few = {"--task locate --task heat_map": "--task 'locate?num_items=2' --task 'heat_map?n=2'"}
    for line in lines("unimm", "eval"):
        for long, short in few.items():
            line = line.replace(long, short)
        run(line)
    assert {*json.loads(Path("runs/locate/scores/scores.json").read_text())["tasks"]} == {"locate", "heat_map"}
    assert "refcoco" in json.loads(Path("runs/locate/refcoco/scores.json").read_text())["tasks"]
    for line in lines("unimm", "locate"):
        result = CliRunner().invoke(app, shlex.split(line.replace("--model demo", "--model runs/locate/model"))[1:])
        assert result.exit_code == 0, result.output
    assert Image.open("marked.png").size == Image.open("hot.png").size == (24 * 21, 16 * 21)


def test_its_program_runs(place: Path, tiny_engine: Engine) -> None:
    """On a model that writes boxes; the place that it is asked about lies in a picture of the demo's size."""
    Image.new("RGB", (64, 64)).save("runs/demo/photo.png")
    replace(tiny_engine.bundle, prompt_format=PromptFormat(box_form="short", box_bins=81)).save("runs/locate/model")
    names: dict = {}
    execute(fenced(RECIPE, "python")[0], names)
    assert names["heat"].shape == (64, 64)
