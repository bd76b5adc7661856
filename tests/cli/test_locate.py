"""`unimm locate`: what is printed and drawn, and what is refused in one sentence."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from unimm.cli.app import app
from unimm.data.boxes import Box
from unimm.inference.engine import Engine


@pytest.fixture
def photo(picture: Image.Image, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIMM_MODEL", str(tiny_folder))
    picture.save("photo.png")
    return "photo.png"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["locate", *words])


def test_boxes_are_printed_and_drawn(photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [[Box(2, 3.4, 10, 12, 0.91234, "the dog")], []]
    monkeypatch.setattr(Engine, "locate", lambda self, images, phrases: found[: len(phrases)])
    result = run(photo, "the dog", "a cat", "--out", "out/marked.png")
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["the", "dog", "2", "3", "10", "12", "0.91"],
        ["a", "cat", "none"],
    ]
    assert Image.open("out/marked.png").size == (24 * 21, 16 * 21)
    told = json.loads(run(photo, "the dog", "a cat", "--json").stdout)
    assert told[0] == {"phrase": "the dog", "found": [{"x1": 2, "y1": 3.4, "x2": 10, "y2": 12, "score": 0.9123}]}
    assert told[1] == {"phrase": "a cat", "found": []}


def test_heat_maps_are_drawn_of_any_model(photo: str) -> None:
    result = run(photo, "the dog", "a cat", "--heat-map", "--out", "hot.jpg")
    assert result.exit_code == 0 and "the dog" in result.stdout, result.output
    assert Image.open("hot.jpg").size == (2 * 24 * 21, 16 * 21)
    (told,) = json.loads(run(photo, "the dog", "--heat-map", "--by", "attention", "--json").stdout)
    assert told["phrase"] == "the dog" and len(told["hot"]) == 4 and 0 < told["share"] <= 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["the dog"], "This model was not taught to locate"),
        (["the dog", "--by", "attention"], "add --heat-map"),
        (["the dog", "--heat-map", "--points"], "choose one"),
        (["the dog", "--out", "marked.txt"], "--out is a picture (.png, .jpg, .jpeg, .webp), not marked.txt"),
        (["the dog", "--heat-map", "--by", "similarity"], "no contrastive heads"),
        ([" ", "--heat-map"], "The phrase is empty"),
    ],
)
def test_mistakes_end_in_one_sentence(photo: str, words: list[str], told: str) -> None:
    result = run(photo, *words)
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1, result.output
