"""`unimm demo`: what it writes, says and opens."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from unimm.checkpoints.demo_examples import DIGIT
from unimm.checkpoints.weight_files import DEMO
from unimm.cli import demo, serve
from unimm.cli.app import app
from unimm.data.worlds.digits import DigitsWorld
from unimm.inference.engine import load
from unimm.serve.settings import ServerSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "made" / "here"


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    return CliRunner().invoke(app, ["demo", "--out", str(folder), "--no-show", "--device", "cpu"])


def test_it_describes_answers_and_draws(result: Result, folder: Path) -> None:
    """What the shipped model says of these pictures is right, and so are its drawings."""
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{folder / 'photo.png'}: A large red circle, a large blue square and a small cyan circle."
    assert "  How many circles are there? 2" in lines
    assert "  What shape is the yellow object? triangle" in lines
    assert "  Is there a red square? no" in lines
    assert "handwritten" in next(line for line in lines if "digit.png" in line)
    assert "dark backgrounds" in result.stdout
    assert lines[-1] == str(folder / "demo.png")


def test_its_pictures_are_there_to_be_tried(result: Result, folder: Path) -> None:
    names = {"photo.png", "photo-2.png", "photo-3.png", "digit.png", *(f"drawing-{n}.png" for n in range(1, 5))}
    assert {path.name for path in folder.iterdir()} == {*names, "demo.png"}
    assert {Image.open(folder / name).size for name in names} == {(64, 64)}
    sheet = Image.open(folder / "demo.png")
    for name in names:  # enlarged by three, pixel by pixel
        picture = Image.open(folder / name).convert("RGB").resize((demo.SIDE, demo.SIDE), Image.Resampling.NEAREST)
        assert any(
            sheet.crop((left, top, left + demo.SIDE, top + demo.SIDE)).tobytes() == picture.tobytes()
            for left in range(demo.GAP, sheet.width - demo.SIDE, demo.SIDE + demo.GAP)
            for top in range(sheet.height - demo.SIDE)
        ), name


def test_all_text_of_a_sheet_is_on_it() -> None:
    """However long a caption is, the sheet grows with it; nothing stands on the next row of pictures."""
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    long = demo.Card(image, (((" ".join(["word"] * 15), (0, 0, 255)),), ((" ".join(["word"] * 10), (0, 0, 255)),)))
    sheet = demo.draw_sheet({"one": [long, long], "two": [long]})
    pixels = np.array(sheet).astype(int)
    bluish = pixels[..., 2] - pixels[..., 0] > 60  # the edges of letters too: fonts of thin strokes have no full blue
    text_rows = set(np.flatnonzero(bluish.any(axis=1)))
    image_rows = set(np.flatnonzero((pixels[:, demo.GAP + 5] == (255, 0, 0)).all(axis=1)))
    assert len(image_rows) == 2 * demo.SIDE and len(text_rows) > 50
    assert not text_rows & image_rows


def test_another_seed_draws_something_else(folder: Path, result: Result) -> None:
    engine = load("demo", "cpu")
    before = (folder / "drawing-1.png").read_bytes()
    demo._draw(engine, folder, demo.SEED)
    assert (folder / "drawing-1.png").read_bytes() == before
    demo._draw(engine, folder, demo.SEED + 1)
    assert (folder / "drawing-1.png").read_bytes() != before


def test_the_scan_is_one_that_the_model_has_not_learned() -> None:
    scan = np.array(Image.open(DEMO / DIGIT).convert("RGB"))
    unseen = DigitsWorld("test", augment=False)
    assert any(np.array_equal(scan, record.image) for record in unseen)


@pytest.mark.parametrize(
    ("platform", "variables", "is_terminal", "expected"),
    [
        ("linux", {"DISPLAY": ":0"}, True, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ("linux", {}, True, False),
        ("linux", {"DISPLAY": ":0"}, False, False),
        ("linux", {"DISPLAY": ":10", "SSH_CONNECTION": "a b"}, True, False),
        ("darwin", {}, True, True),
        ("darwin", {"SSH_CONNECTION": "a b"}, True, False),
    ],
)
def test_it_opens_the_sheet_where_somebody_sits_before_a_screen(
    platform: str, variables: dict[str, str], is_terminal: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setattr(demo.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert demo.has_screen() == expected


def test_the_page_is_served_to_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    served: list[ServerSettings] = []
    monkeypatch.setattr(demo.typer, "launch", opened.append)
    monkeypatch.setattr(serve, "run", lambda engine, settings, listener: served.append(settings))
    demo.open_page(None)  # type: ignore[arg-type]
    assert opened == [f"http://127.0.0.1:{served[0].port}/"]
    assert served[0].host == "127.0.0.1" and served[0].page and "127.0.0.1" in served[0].allowed_hosts
