"""The recipe of editing: its program and its shell line run with a tiny model that says it was taught to edit."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_readme import RECIPES, execute, fenced, fenced_lines, run

from unimm.data.prompt_format import EDITS
from unimm.inference.engine import Engine
from unimm.runtime.provenance import read_provenance


def test_its_lines_run(tiny_engine: Engine, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    picture.save("runs/demo/photo.png")
    prompt_format = replace(tiny_engine.bundle.prompt_format, edits=EDITS[0])
    replace(tiny_engine.bundle, prompt_format=prompt_format).save("runs/edit/model")
    (example,) = fenced(RECIPES / "edit.md", "python")
    names: dict = {}
    execute(example, names)
    assert read_provenance("edited.png") and len(names["closer"]) == 2
    (line,) = [line for line in fenced_lines(RECIPES / "edit.md") if line.startswith("unimm edit")]
    run(line, "--device", "cpu")
    assert len([*Path("runs/edited").glob("*.png")]) == 1
