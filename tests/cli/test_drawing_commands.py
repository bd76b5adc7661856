"""unimm generate and edit: files that say where they come from, and are drawn again, equal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from PIL import Image
from typer.testing import CliRunner

from unimm.checkpoints.bundle import ModelBundle
from unimm.cli.app import app
from unimm.data.records import Text
from unimm.eval.runner import evaluate
from unimm.eval.task import Judgement
from unimm.eval.tasks.drawings import DrawingItem, Drawings, DrawingSettings
from unimm.inference.engine import Engine
from unimm.runtime.provenance import attach, describe, read_provenance, write_image


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*words: object) -> list[str]:
    """What a command that succeeds prints on stdout, line by line."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def refuse(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    return result.stderr


def pixels(path: str) -> bytes:
    return Image.open(path).convert("RGB").tobytes()


def test_a_drawing_is_drawn_again(tiny_engine: Engine, tiny_folder: Path) -> None:
    """Another number of images, other files; settings that the command line names are changed, and only they."""
    words = ("--model", tiny_folder, "--guidance-scale", 3, "--top-k", 9, "--guidance-interval", 0, 0.5)
    paths = call("generate", "一个 red circle", "-n", 3, "--seed", 11, *words)
    said = read_provenance(paths[2])
    assert said is not None and (said["prompt"], said["seed"], said["index"]) == ("一个 red circle", 11, 2)
    assert said["settings"] == {
        **{"temperature": 1.0, "top_k": 9, "top_p": 1.0, "min_p": 0.0, "guidance_scale": 3.0, "guidance_interval": [0.0, 0.5]}
    }
    assert said["model"] == tiny_engine.model_hash and said["dtype"] == "float32" and said["weights"] is None
    again = call("generate", "--from", paths[2], "--model", tiny_folder, "--window", 3)
    assert len(again) == 1 and pixels(again[0]) == pixels(paths[2]) and read_provenance(again[0]) == said
    more = call("generate", "--from", paths[0], "-n", 3, "--model", tiny_folder, "--out", "again.webp")
    assert [read_provenance(path) for path in more] == [read_provenance(path) for path in paths]
    (from_webp,) = call("generate", "--from", more[1], "--model", tiny_folder)
    assert pixels(from_webp) == pixels(paths[1])
    (changed,) = call("generate", "--from", paths[2], "--seed", 0, "--top-k", 0, "a", "--model", tiny_folder)
    told = read_provenance(changed)
    assert told is not None and (told["prompt"], told["seed"], told["index"], told["settings"]["top_k"]) == ("a", 0, 2, 0)
    assert told["settings"]["guidance_scale"] == 3.0


def test_a_drawing_of_an_evaluation_is_drawn_again(tiny_engine: Engine, tiny_folder: Path, tmp_path: Path) -> None:
    """The best of two, of the second prompt: its seed, and which image of the seed it is, stand in its file."""
    items = [DrawingItem(one, Text(one, "en"), "", "", lambda _: Judgement(True, "", "")) for one in ("a dot", "a cross")]
    drawings = Drawings("some", tuple(items), DrawingSettings(seed=3, guidance_scale=2.0, best_of=2))
    evaluate(tiny_engine, [drawings], tmp_path / "scores", progress=False)
    path = tmp_path / "scores/images/some-00001.png"
    said = read_provenance(path)
    assert said is not None and said["prompt"] == "a cross" and said["settings"]["guidance_scale"] == 2.0
    (again,) = call("generate", "--from", path, "--model", tiny_folder)
    assert pixels(again) == pixels(str(path)) and read_provenance(again) == said


def test_the_best_of_several_is_drawn_again_alone(tiny_folder: Path) -> None:
    paths = call("generate", "a red circle", "-n", 2, "--best-of", 3, "--model", tiny_folder, "--out", "best.png")
    indices = [said["index"] for path in paths if (said := read_provenance(path)) is not None]
    assert 0 <= indices[0] < 3 <= indices[1] < 6
    for path in paths:
        (again,) = call("generate", "--from", path, "--model", tiny_folder)
        assert pixels(again) == pixels(path)


def test_what_was_drawn_again_is_drawn_alone_by_its_file(tiny_folder: Path) -> None:
    paths = call("generate", "a red circle", "-n", 2, "--redraw", 2, "--model", tiny_folder, "--out", "looked.png")
    for path in paths:
        said = read_provenance(path)
        assert said is not None and said["redraw"]["tries"] == 2 and not said["painted"]
        (again,) = call("generate", "--from", path, "--model", tiny_folder)
        assert pixels(again) == pixels(path)


@pytest.mark.parametrize(
    ("task", "told"), [("inpaint", "without its image and mask"), ("edit", "was edited"), ("chat", "alone")]
)
def test_what_was_not_drawn_from_a_prompt_is_refused(tmp_path: Path, task: str, told: str) -> None:
    image = Image.new("RGB", (8, 8))
    attach(image, describe("a", 0, 0, {}, "0" * 64, task=task))
    write_image(image, tmp_path / "one.png")
    assert told in " ".join(refuse("generate", "--from", tmp_path / "one.png").split())


def test_another_model_is_named(tiny_engine: Engine, tiny_folder: Path, tmp_path: Path) -> None:
    (path,) = call("generate", "a", "--model", tiny_folder)
    model = tiny_model(len(tiny_engine.tokenizer))
    with torch.no_grad():
        model.text.embedding.weight.mul_(2.0)
    other = Engine(ModelBundle(model, tiny_engine.bundle.image_tokenizers, tiny_engine.bundle.tokenizer))
    other.save(tmp_path / "other")
    result = CliRunner().invoke(app, ["generate", "--from", path, "--model", str(tmp_path / "other")])
    assert result.exit_code == 0
    assert (
        f"was drawn by another model ({tiny_engine.model_hash[:12]}) than this one ({other.model_hash[:12]})" in result.stderr
    )
    same = CliRunner().invoke(app, ["generate", "--from", path, "--model", str(tiny_folder)])
    assert same.exit_code == 0 and "another model" not in same.stderr


def test_the_hash_follows_the_weights(tiny_engine: Engine, tiny_folder: Path) -> None:
    model = tiny_model(len(tiny_engine.tokenizer))
    engine = Engine(ModelBundle(model, tiny_engine.bundle.image_tokenizers, tiny_engine.bundle.tokenizer))
    assert engine.model_hash == tiny_engine.model_hash == Engine(ModelBundle.load(tiny_folder)).model_hash
    engine.update_weights([("codes.head.2.bias", torch.ones(32))])
    assert engine.model_hash != tiny_engine.model_hash


def test_what_cannot_be_drawn_again_is_refused(tiny_folder: Path, picture: Image.Image) -> None:
    picture.save("photo.png")
    assert "photo.png does not say how it was drawn" in refuse("generate", "--from", "photo.png", "--model", tiny_folder)
    assert "There is no file none.png" in refuse("generate", "--from", "none.png", "--model", tiny_folder)
    assert "say what to draw, in quotes" in refuse("generate", "--model", tiny_folder)
    (path,) = call("generate", "a", "--model", tiny_folder)
    said = read_provenance(path)
    assert said is not None
    for settings in ({"top_k": "many"}, {"temperature": [1]}, {"guidance_interval": 3}, {"top_p": None, "min_p": {}}):
        write_image(picture, "bad.png", json.loads(json.dumps({**said, "settings": settings})))
        refuse("generate", "--from", "bad.png", "--model", tiny_folder)


def test_edit_paints_inside_the_mask(tiny_engine: Engine, tiny_folder: Path, picture: Image.Image) -> None:
    picture.save("photo.png")
    mask = np.zeros((16, 24), dtype=np.uint8)
    mask[8:] = 255
    Image.fromarray(mask).save("mask.png")
    words = ("edit", "photo.png", "--mask", "mask.png", "a red circle", "--model", tiny_folder, "-n", 2, "--seed", 3)
    paths = call(*words, "--guidance-scale", 2)
    expected = tiny_engine.inpaint(picture, mask, "a red circle", 2, seed=3, guidance_scale=2.0)
    assert [pixels(path) for path in paths] == [image.tobytes() for image in expected]
    said = read_provenance(paths[1])
    assert said is not None and (said["task"], said["index"], said["settings"]["guidance_scale"]) == ("inpaint", 1, 2.0)
    assert "is not made again without its image and mask" in refuse("generate", "--from", paths[1], "--model", tiny_folder)
    assert "was not taught to edit" in refuse("edit", "photo.png", "a", "--model", tiny_folder)
    assert "here a mask says where" in refuse(*words, "--image-guidance-scale", 2)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(255 - mask))
    clear.save("clear.png")
    (alone,) = call("edit", "clear.png", "a red circle", "--model", tiny_folder, "--seed", 3, "--guidance-scale", 2)
    assert Image.open(alone).size == (24, 16)
    (square,) = call(*words[:-4], "--square", "--margin", 2, "--best-of", 2)
    assert Image.open(square).size == (16, 16)


def test_edit_follows_an_instruction(tiny_engine: Engine, picture: Image.Image, tmp_path: Path) -> None:
    """Where the model was taught to: the image keeps its size, and what is beside the square at its centre."""
    taught = replace(tiny_engine.bundle, prompt_format=replace(tiny_engine.prompt_format, edits="codes_last"))
    taught.save(tmp_path / "taught")
    picture.save("photo.png")
    words = ("edit", "photo.png", "make it blue", "--model", tmp_path / "taught", "--seed", 3, "--guidance-scale", 2)
    scales = ("--image-guidance-scale", 1.5, "--source-bias", 3)
    (whole,), (square,) = call(*words, *scales), call(*words, *scales, "--square")
    engine = Engine(taught)
    own = {"guidance_scale": 2.0, "image_guidance_scale": 1.5, "source_bias": 3.0}
    (expected,) = engine.edit_images(picture, "make it blue", seed=3, **own)
    made = np.asarray(Image.open(whole))
    assert pixels(square) == expected.tobytes() and np.array_equal(made[:, 4:20], np.asarray(expected))
    assert np.array_equal(made[:, :4], np.asarray(picture)[:, :4]) and made.shape == (16, 24, 3)
    said = read_provenance(whole)
    assert said is not None and (said["task"], said["prompt"]) == ("edit", "make it blue")
    assert "--margin is for a part that a mask names" in refuse(*words, "--margin", 3)


def test_outpaint_paints_around_the_image(tiny_engine: Engine, tiny_folder: Path, picture: Image.Image) -> None:
    picture.save("photo.png")
    words = ("outpaint", "photo.png", "a red circle", "--model", tiny_folder)
    (path,) = call(*words, "--right", 8, "--top", -4, "--seed", 3, "--guidance-scale", 2, "--out", "wide.png")
    (expected,) = tiny_engine.outpaint(picture, "a red circle", right=8, top=-4, seed=3, guidance_scale=2.0)
    assert pixels(path) == expected.tobytes() and Image.open(path).size == (32, 12)
    assert [Image.open(path).size for path in call(*words, "--size", "40x20", "-n", 2)] == [(40, 20)] * 2
    assert "nothing new to paint" in refuse(*words)
    assert 'A size is "WIDTHxHEIGHT"' in refuse(*words, "--size", "40")
