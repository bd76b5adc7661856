"""The recipe of interleaved answers: its example runs with the demo as it stands there."""

from pathlib import Path

import pytest
from PIL import Image
from test_readme import RECIPES, execute, fenced


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = fenced(RECIPES / "interleaved.md", "python")
    names: dict = {}
    execute(example, names)
    assert Image.open("drawn.png").size == (64, 64) and names["mended"].size == (64, 64)
    assert capsys.readouterr().out.count("PIL.Image") == 2, "a preview, then the image"
