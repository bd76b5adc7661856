"""`unimm average`: the mean of models that resemble each other, and of no others."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import unimm
from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.model_soup import Average
from unimm.cli.app import app
from unimm.inference.engine import Engine
from unimm.models.contrastive import ContrastiveConfig


def call(*words: object):
    return CliRunner().invoke(app, ["average", *(str(word) for word in words)])


def moved(engine: Engine, folder: Path, by: float) -> dict[str, torch.Tensor]:
    """The model with all weights moved, saved; gives these weights."""
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.data = parameter.data + by
    engine.save(folder)
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


@pytest.fixture
def folders(tiny_folder: Path, tmp_path: Path) -> list[Path]:
    engine = unimm.load(tiny_folder, "cpu", "float32")
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for path, by in zip(paths, (0.0, 0.3, 0.6), strict=True):
        moved(engine, path, by)
    return paths


def test_it_is_the_mean_and_opens_like_the_first(folders: list[Path], tmp_path: Path) -> None:
    result = call(*folders, "--out", tmp_path / "mean")
    assert result.exit_code == 0 and "mean of 3 models" in result.stderr.replace("\n", " "), result.output
    first, mean = unimm.load(folders[0], "cpu", "float32"), unimm.load(tmp_path / "mean", "cpu", "float32")
    for (name, own), (_, other) in zip(first.model.named_parameters(), mean.model.named_parameters(), strict=True):
        torch.testing.assert_close(other, own + (0.0 + 0.3 + 0.9) / 3, msg=name)
    assert mean.prompt_format == first.prompt_format and mean.drawing == first.drawing
    assert len(mean.caption(torch.zeros(40, 40, 3, dtype=torch.uint8).numpy(), max_new_tokens=3)) >= 0


def test_weights_are_shares(folders: list[Path], tmp_path: Path) -> None:
    assert call(*folders[:2], "--weight", 3, "--weight", 1, "--out", tmp_path / "mean").exit_code == 0
    first, mean = unimm.load(folders[0], "cpu", "float32"), unimm.load(tmp_path / "mean", "cpu", "float32")
    for own, other in zip(first.model.parameters(), mean.model.parameters(), strict=True):
        torch.testing.assert_close(other, own + 0.3 / 4)


def test_the_dtype_is_the_first_ones(folders: list[Path], tmp_path: Path) -> None:
    unimm.load(folders[0], "cpu", "bfloat16").save(tmp_path / "half")
    assert call(tmp_path / "half", folders[1], "--out", tmp_path / "mean").exit_code == 0
    written = (tmp_path / "mean" / "model.safetensors").stat().st_size
    assert written < 0.6 * (folders[1] / "model.safetensors").stat().st_size


def test_what_does_not_resemble_is_refused(folders: list[Path], tiny_folder: Path, tmp_path: Path) -> None:
    other = unimm.load(folders[1], "cpu", "float32")
    with torch.no_grad():
        next(other.image_tokenizer.parameters()).add_(1.0)
    other.save(tmp_path / "images")
    for words, sentence in (
        ((folders[0],), "two models or more"),
        ((*folders[:2], "--weight", 1), "--weight once for each model"),
        ((*folders[:2], "--weight", 1, "--weight", -1), "Weights are positive"),
        ((*folders[:2], "--weight", 1, "--weight", "nan"), "Weights are positive"),
        ((folders[0], tmp_path / "images"), "different image tokenizers"),
        ((folders[0], "demo"), "text tokenizers"),
        ((folders[0], tmp_path / "nothere"), "nothere"),
    ):
        result = call(*words, "--out", tmp_path / "mean")
        assert result.exit_code == 2 and sentence in result.stderr.replace("\n", " "), (words, result.stderr)
        assert not (tmp_path / "mean").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert call(*folders, "--out", tmp_path / "mine").exit_code == 2


def test_heads_are_averaged_with_the_model_that_they_were_trained_with(folders: list[Path]) -> None:
    config = ContrastiveConfig(4, 8, 1, 2, vocabulary_size=5, vision_width=8, vision_heads=2)
    one, other, plain = (ModelBundle.load(folder, dtype=torch.float32) for folder in folders)
    one, other = (replace(bundle, heads={"contrastive": config.build()}) for bundle in (one, other))
    parameters = [[p.detach().clone() for p in bundle.heads["contrastive"].parameters()] for bundle in (one, other)]
    mean = Average("a", one, 1.0)
    mean.add("b", other, 3.0)
    with pytest.raises(ValueError, match="c and a have different heads: they have no mean"):
        mean.add("c", plain, 1.0)
    mean.put()
    for found, a, b in zip(one.heads["contrastive"].parameters(), *parameters, strict=True):
        torch.testing.assert_close(found.detach(), (a + 3 * b) / 4)
