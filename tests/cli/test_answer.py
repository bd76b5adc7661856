"""`unimm answer` with several images and with examples: what the engine says, and sentences for what is wrong."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from unimm.cli.answer import read_images, read_pairs
from unimm.cli.app import app
from unimm.inference.engine import Engine


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("red", "blue", "a=b"):
        Image.new("RGB", (20, 20), name if name != "a=b" else "green").save(f"{name}.png")


def call(*words: object) -> str:
    result = CliRunner().invoke(app, ["answer", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout.rstrip("\n")


def test_several_images_and_examples_are_what_the_engine_is_asked(tiny_engine: Engine, tiny_folder: Path) -> None:
    words = ("--model", tiny_folder, "--max-new-tokens", 6)
    expected = tiny_engine.answer(("red.png", "blue.png"), "What differs?", max_new_tokens=6)
    assert call("red.png", "blue.png", "What differs?", *words) == expected
    examples = [("red.png", "dax"), ("a=b.png", "x=y")]
    expected = tiny_engine.answer("blue.png", "What is this?", max_new_tokens=6, examples=examples)
    given = ("--example", "red.png=dax", "--example", "a=b.png=x=y")
    assert call("blue.png", "What is this?", *given, *words) == expected


def test_words_are_read() -> None:
    assert read_images(["red.png", "What?"]) == ("red.png", "What?")
    assert read_images(["red.png", "blue.png", "有什么不同？" * 90]) == (("red.png", "blue.png"), "有什么不同？" * 90)
    assert read_pairs(["a=b.png= x = y "]) == [("a=b.png", "x = y")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["What differs?"], "Name an image, and then ask about it"),
        (["red.png", "blue.png"], "'blue.png' is a file: say after the images what to ask"),
        (["red.png", "gone.png", "What differs?"], "Cannot read the file 'gone.png': there is no such file"),
        (["red.png", "What?", "--example", "blue.png"], "'blue.png' has no answer: write IMAGE=ANSWER"),
        (["red.png", "What?", "--example", "blue.png= "], "has no answer: write IMAGE=ANSWER"),
        (["red.png", "What?", "--example", "gone.png=dax"], "Cannot read the file 'gone.png': there is no such file"),
    ],
)
def test_mistakes_end_in_one_sentence(words: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["answer", *words, "--model", "nowhere"])
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1
