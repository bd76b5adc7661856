"""`unimm classify`, `unimm index` and `unimm search`: what is printed and written, and what is refused in one sentence."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_towers import ColourTowers, Embedder, plain
from PIL import Image
from typer.testing import CliRunner, Result

import unimm
from unimm.cli import search
from unimm.cli.app import app


@pytest.fixture(autouse=True)
def towers(monkeypatch: pytest.MonkeyPatch) -> Embedder:
    """In place of any model that is named."""
    embedder = Embedder(ColourTowers())
    monkeypatch.setattr(search, "load_towers", lambda name, *place: embedder)
    return embedder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        plain({"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}[name]).save(folder / f"[{name}].png")
    return folder


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def found(*words: str) -> list[dict[str, Any]]:
    result = run("search", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_labels_by_their_probabilities(photos: Path) -> None:
    shown = run("classify", "photos/[red].png", "blue", "red", "--template", "a photo of {}").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["label", "red", "blue"]
    shares = json.loads(run("classify", "photos/[red].png", "blue", "red", "--json").stdout)
    assert list(shares) == ["red", "blue"] and shares["red"] > 0.9
    assert "there twice" in refused("classify", "photos/[red].png", "red", "red")
    assert "no such file" in refused("classify", "nowhere.png", "red")


def test_a_folder_is_indexed_and_searched(photos: Path) -> None:
    (photos / "bad.png").write_text("no image")
    result = run("index", "photos", "--out", "index")
    assert result.exit_code == 0 and "3 images, 3 embedded now, 0 dropped" in result.stdout
    assert "1 images cannot be used (1 " in result.stderr and "bad_images.txt" in result.stderr
    assert "3 images, 0 embedded now" in run("index", "photos", "--out", "index").stdout
    shown = run("search", "blue", "--index", "index", "-k", "2").stdout
    assert "[blue].png" in shown and len(shown.strip().splitlines()) >= 3
    hits = found("blue", "--index", "index")
    assert hits[0]["key"] == "[blue].png" and len(hits) == 3
    assert Path(hits[0]["path"]).is_file() and hits[0]["score"] > 0.99 and "rerank" not in hits[0]
    assert found("--image", "photos/[green].png", "--index", "index", "-k", "1")[0]["key"] == "[green].png"
    assert run("search", "red", "--index", "index", "--out", "found.png").exit_code == 0
    assert Image.open("found.png").width > 0


def test_texts_are_found_for_an_image(photos: Path) -> None:
    Path("texts.txt").write_text("a blue one\n\na red one\na red one\n", encoding="utf-8")
    hits = found("--image", "photos/[red].png", "--texts", "texts.txt", "--model", "any")
    assert [hit["key"] for hit in hits] == ["a red one", "a blue one"]
    run("index", "photos", "--out", "index")
    assert found("--image", "photos/[red].png", "--texts", "texts.txt", "--index", "index") == hits


def test_the_unified_model_orders_the_first_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that likes green; as many are looked at as are ranked again, and as many shown as were asked for."""
    asked: list[tuple[str, str]] = []

    class Liking:
        def __init__(self, engine: Any, by: str) -> None:
            assert (engine, by) == ("demo", "likelihood")

        def scores(self, images: list[Any], texts: list[str]) -> Any:
            asked.extend((str(image), text) for image, text in zip(images, texts, strict=True))
            return np.array([float("green" in f"{image} {text}") for image, text in zip(images, texts, strict=True)])

    monkeypatch.setattr(search, "Reranker", Liking)
    monkeypatch.setattr(search, "load", lambda name, *place: name)
    run("index", "photos", "--out", "index")
    again = ("--rerank", "demo", "--rerank-by", "likelihood")
    (hit,) = found("blue", "--index", "index", "-k", "1", *again)
    assert hit["key"] == "[green].png" and hit["rerank"] == 1.0
    assert len(asked) == 3 and {text for _, text in asked} == {"blue"}
    Path("texts.txt").write_text("blue\ngreen\n", encoding="utf-8")
    hits = found("--image", "photos/[blue].png", "--texts", "texts.txt", "--model", "any", *again)
    assert [one["key"] for one in hits] == ["green", "blue"]
    assert "again" in run("search", "blue", "--index", "index", *again).stdout


def test_a_table_needs_no_pictures(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index may lie on another machine than its images; a sheet needs those that it shows. It is opened once."""
    run("index", "photos", "--out", "index")
    hits = found("blue", "--index", "index")
    Path(hits[2]["path"]).unlink()
    opened: list[Path] = []
    monkeypatch.setattr(search.Index, "__init__", noting(search.Index.__init__, opened))
    assert found("blue", "--index", "index") == [*hits[:2], {**hits[2], "path": None}] and len(opened) == 1
    assert run("search", "blue", "--index", "index", "-k", "2", "--out", "found.png").exit_code == 0
    assert "is not there any more" in refused("search", "blue", "--index", "index", "--out", "found.png")
    shutil.rmtree(photos)
    assert len(found("blue", "--index", "index")) == 3


def noting(method: Any, calls: list[Any]) -> Any:
    def noted(self: Any, *words: Any) -> None:
        calls.append(words[0])
        method(self, *words)

    return noted


def test_what_does_not_go_together_is_one_sentence(photos: Path) -> None:
    run("index", "photos", "--out", "index")
    red = "photos/[red].png"
    assert "one of them" in refused("search", "--index", "index")
    assert "one of them" in refused("search", "red", "--image", red, "--index", "index")
    assert "--index FOLDER" in refused("search", "red")
    assert "is no index" in refused("search", "red", "--index", "photos")
    assert "--texts is for an image" in refused("search", "red", "--texts", "t.txt", "--index", "index")
    assert "--model MODEL" in refused("search", "--image", red, "--texts", __file__)
    assert "reads a text" in refused("search", "--image", red, "--index", "index", "--rerank", "demo")
    assert "ranked again by one of" in refused(
        "search", "red", "--index", "nowhere", "--rerank", "demo", "--rerank-by", "beauty"
    )
    assert "neither a picture" in refused("search", "red", "--index", "index", "--out", "a.txt")
    assert "text is empty" in refused("search", " ", "--index", "index")
    Path("empty").mkdir()
    assert "There are no images in" in refused("index", "empty", "--out", "other")
    Path("nothing.txt").write_text("\n")
    assert "holds no texts" in refused("search", "--image", red, "--texts", "nothing.txt", "--model", "any")


def test_the_guide_runs(photos: Path, towers: Embedder, tiny_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines and its example, in a folder that has what they name."""
    monkeypatch.setattr(search, "load", lambda name, *place: tiny_engine)
    monkeypatch.setattr(unimm, "load_towers", lambda name: towers, raising=False)
    monkeypatch.setattr("unimm.retrieval.index.load_towers", lambda name: towers)
    for name in ("photo.png", "other.png"):
        plain("red").save(name)
    Path("captions.txt").write_text("a red circle\na blue square\n", encoding="utf-8")
    text = (Path(__file__).parents[2] / "recipes/search.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("unimm classify", "unimm index", "unimm search"))]
    assert len(lines) == 6
    for line in lines:
        result = run(*shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert Path("found.html").is_file()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    exec(compile(example, "example.py", "exec"), {})
