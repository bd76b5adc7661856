"""`unimm data inspect`: the data overrides of a training in, a table and a folder out."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner
from users_files import make_all, make_pictures

from unimm.cli.app import app


def call(*words: object):
    return CliRunner().invoke(app, ["data", "inspect", *(str(word) for word in words)])


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_all(tmp_path))
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)


def test_the_sources_of_a_training_share_their_images(tiny_folder: Path) -> None:
    Path("captions/3.png").write_bytes(b"<html>")
    words = ("data=jsonl", "data.paths=captions/captions.jsonl", "num_workers=0", f"init_from={tiny_folder}")
    result = call(*words, "--sample", 3, "out=look")
    assert result.exit_code == 0, result.output
    assert "draw, talk" in result.stdout and "look/inspection.html" in result.stdout
    told = json.loads(Path("look/inspection.json").read_text("utf-8"))
    assert told["settings"]["text_tokenizer"] == str(tiny_folder) and told["settings"]["max_positions"] <= 1024
    assert told["data_sets"]["draw, talk"]["inspected"] == 3
    assert call(*words, "out=look").exit_code == 0  # a finished one is made again
    data = json.loads(Path("look/inspection.json").read_text("utf-8"))["data_sets"]["draw, talk"]
    assert data["inspected"] == 4 and data["bad_images"]["reasons"][0]["keys"] == ["captions.jsonl/3"]
    assert sorted(path.name for path in Path("look").iterdir()) == [
        *("duplicates.jsonl", "inspection.html", "inspection.json", "problems.jsonl")
    ]
    assert not list(Path().glob(".*unfinished"))


def test_what_a_training_would_refuse_is_counted() -> None:
    """An image without a caption, and one that is none."""
    make_pictures(Path("photos"), ("bare.png",))
    Path("photos/b.png").write_bytes(b"")
    result = call("data=image_folder", "data.folder=photos", "num_workers=0", "out=look")
    assert result.exit_code == 0, result.output
    (data,) = json.loads(Path("look/inspection.json").read_text("utf-8"))["data_sets"].values()
    assert data["bad_records"]["reasons"][0]["keys"] == ["bare.png"] and data["bad_images"]["reasons"][0]["keys"] == ["b.png"]
    page = Path("look/inspection.html").read_text("utf-8")
    assert 'class="card wrong"><div class="number">1</div><span class="soft">images that cannot be read' in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("data=jsonl",), "data.paths=..."),
        (("data=jsonl", "data.paths=nowhere.jsonl"), "nowhere.jsonl"),
        (("smaple=3",), "did you mean 'sample'?"),
        (("trainer=cpu",), "`unimm data inspect` has no group 'trainer'"),
        (("data=jsonl", "data.paths=captions/captions.jsonl", "out=captions"), "choose another path"),
    ],
)
def test_mistakes_end_in_one_sentence(words: tuple[str, ...], told: str) -> None:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr and result.stderr.startswith("unimm: ") and result.stderr.count("\n") == 1
