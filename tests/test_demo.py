"""The model that comes with the package: small, honest about itself, and a Janus for `transformers`."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import JanusForConditionalGeneration
from typer.testing import CliRunner

import unimm
from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.checkpoints.weight_files import DEMO
from unimm.cli.app import app
from unimm.cli.builders import open_image_tokenizer
from unimm.data.worlds.shapes import ShapesWorld
from unimm.inference.engine import Engine

MAX_BYTES = 24e6


@pytest.fixture(scope="module")
def engine() -> Engine:
    return unimm.load("demo", device="cpu", dtype="float32")


def test_it_is_small_and_says_how_well_it_does() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < MAX_BYTES
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    for word in ("unimm train", "Seed", "95 %", "drawings", "captions"):
        assert word in card, word
    assert json.loads((DEMO / "config.json").read_text())["model_type"] == "janus"


def test_trainings_find_it_by_its_name(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As image_tokenizer=demo, also where a folder of one's own has that name; as init_from=demo it is what `load` opens."""
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    found = open_image_tokenizer(OmegaConf.create({"image_tokenizer": "demo"}))
    assert fingerprint(found) == fingerprint(engine.image_tokenizer)


def test_it_answers_and_draws_in_both_languages(engine: Engine) -> None:
    records = [ShapesWorld("test")[index] for index in range(40)]
    questions = [record.questions[0] for record in records]
    answers = engine.answer([record.image for record in records], [question.text for question in questions])
    assert sum(answer == question.answer for answer, question in zip(answers, questions, strict=True)) > 24
    drawn = engine.generate_images(["a large red circle", "一个大的红色圆形"], seed=2)
    assert all("circle" in engine.caption(images[0]) for images in drawn)


def test_it_draws_the_same_in_transformers(engine: Engine) -> None:
    theirs = JanusForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32)
    with torch.no_grad():
        code = engine.encode_image(ShapesWorld("test")[0].image)
        pixels = theirs.decode_image_tokens(code[None])
    ours = torch.tensor(list(engine.decode_codes(code)[0].tobytes()), dtype=torch.float32).view(64, 64, 3) / 127.5 - 1
    assert (pixels[0].clamp(-1, 1) - ours).abs().max() < 0.02


def test_verbs_need_no_model_to_begin_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_MODEL", raising=False)
    Image.fromarray(ShapesWorld("test")[0].image).save("scene.png")
    result = CliRunner().invoke(app, ["caption", "scene.png"])
    assert result.exit_code == 0 and len(result.output.split()) > 2
