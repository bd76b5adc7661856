"""A model joined from parts: each part gives what it gave alone, the rest is new, and training starts from it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from parts import VISION, llama, save_parts, tied_qwen
from transformers import SiglipVisionConfig, SiglipVisionModel
from typer.testing import CliRunner

import unimm
from unimm.cli.app import app

PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
IDS = torch.tensor([[1, 20, 30, 40]])


def call(folder: Path, **changed: str):
    words = {"trunk": "llm", "vision": "siglip", "image-tokenizer": "images", "out": "joined"} | changed
    return CliRunner().invoke(app, ["join", *(f"--{name}={folder / value}" for name, value in words.items())])


@pytest.mark.parametrize(("trunk", "extra"), [(llama, 0), (llama, 9), (tied_qwen, 0)])
def test_parts_give_what_they_gave(tmp_path: Path, trunk: Any, extra: int) -> None:
    language_model, siglip = save_parts(tmp_path, trunk, extra)
    result = call(tmp_path)
    assert result.exit_code == 0, result.output
    engine = unimm.load(tmp_path / "joined", device="cpu", dtype="float32")
    model = engine.model
    with torch.no_grad():
        embeddings = model.text.embed(IDS)
        mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
        logits = model.text.logits(model.hidden(embeddings, mask, torch.arange(4)[None]))
        torch.testing.assert_close(logits, language_model(IDS).logits, atol=1e-5, rtol=1e-4)
        expected = siglip.vision_model(PIXELS).last_hidden_state
        torch.testing.assert_close(model.pixels.features(PIXELS), expected, atol=1e-5, rtol=1e-4)
    assert model.config.trunk_config().vocab_size == len(engine.tokenizer) + extra
    assert engine.caption(torch.zeros(16, 16, 3, dtype=torch.uint8).numpy(), max_new_tokens=2) is not None


def test_a_tower_alone_and_a_vocabulary_that_grows(tmp_path: Path) -> None:
    """New rows are means of the old ones."""
    language_model, _ = save_parts(tmp_path, llama, extra_ids=-3)
    torch.manual_seed(2)
    alone = SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()
    alone.save_pretrained(tmp_path / "tower")
    result = call(tmp_path, vision="tower")
    assert result.exit_code == 0, result.output
    model = unimm.load(tmp_path / "joined", device="cpu", dtype="float32").model
    old = language_model.get_input_embeddings().weight
    torch.testing.assert_close(model.text.embedding.weight[:-3], old)
    torch.testing.assert_close(model.text.embedding.weight[-3:], old.mean(0).expand(3, -1))
    with torch.no_grad():
        torch.testing.assert_close(model.pixels.features(PIXELS), alone(PIXELS).last_hidden_state, atol=1e-5, rtol=1e-4)


def test_mistakes_end_in_one_sentence(tmp_path: Path) -> None:
    save_parts(tmp_path, llama)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("a year of work")
    for changed, told in (
        ({"vision": "llm"}, "holds a model of type 'llama': a vision tower is a siglip"),
        ({"trunk": "siglip"}, "No tokenizer can be read from"),
        ({"trunk": "nowhere"}, "There is no folder"),
        ({"image-tokenizer": "nowhere"}, "nowhere"),
        ({"out": "notes"}, "is not a model folder"),
    ):
        result = call(tmp_path, **changed)
        assert result.exit_code == 2 and told in result.stderr, result.output
        assert result.stderr.splitlines()[-1].startswith("unimm: ")
    (tmp_path / "llm/model.safetensors").unlink()
    result = call(tmp_path)
    assert result.exit_code == 2 and "has a config.json but no model.safetensors" in result.stderr
    assert not (tmp_path / "joined").exists()
