"""A model that goes on with another image tokenizer: what reads and writes codes is reinitialised, and that is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from users_files import make_all

from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.folder import load_model
from unimm.checkpoints.image_tokenizer_folder import save_image_tokenizer
from unimm.cli.compose import compose_config
from unimm.cli.learner import open_learner
from unimm.cli.train import train
from unimm.inference.engine import load
from unimm.models.image_tokenizer.model import ImageTokenizer

WORDS = [
    *("data=image_folder", "data.folder=photos", "~data.sources.draw", "device=cpu", "stage=pretrain", "out=run"),
    *("trainer.num_positions=256", "trainer.num_workers=0", "trainer.budget.max_steps=1", "trainer.sample_every=0"),
]


def test_another_image_tokenizer_is_other_codes(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is as it was; the codebook may have another size. Without a name it is the own one, which changes nothing."""
    monkeypatch.chdir(make_all(tmp_path))
    before, own = (getattr(load_model(tiny_folder), name) for name in ("model", "image_tokenizer"))
    sizes = replace(own.config, quantizer=replace(own.config.quantizer, codebook_size=2 * own.codebook_size))
    save_image_tokenizer(tmp_path / "codec", ImageTokenizer(sizes))
    words = [*WORDS, f"init_from={tiny_folder}"]
    same = open_learner(compose_config("train", words))
    assert same.notes == [] and same.fresh == set() and same.bundle.image_tokenizer.codebook_size == own.codebook_size
    learner = open_learner(compose_config("train", [*words, "image_tokenizer=codec"]))
    (note,) = learner.notes
    assert note.startswith("image_tokenizer=codec is not the one that")
    assert note.endswith("code_embedding and code_head are reinitialised.")
    assert learner.fresh == {"code_embedding", "code_head"}
    assert learner.bundle.model.config.codes.codebook_size == 2 * before.config.codes.codebook_size
    for name in ("vision", "projector", "trunk", "text_embedding", "text_head"):
        old, new = (model.parts()[name].state_dict() for model in (before, learner.bundle.model))
        assert all(torch.equal(old[key], new[key]) for key in old)
    train(compose_config("train", [*words, "image_tokenizer=codec", "stage=finetune"]))
    said = " ".join(capsys.readouterr().out.split())
    assert "image_tokenizer=codec is not the one that" in said and said.count("are reinitialised") == 1
    assert load("run/model").image_tokenizer.codebook_size == 2 * own.codebook_size
    with pytest.raises(ValueError, match="An adapter uses its model's image tokenizer"):
        open_learner(compose_config("train", [*words, "image_tokenizer=codec", "lora=default"]))


def test_a_model_draws_as_it_is_told_or_as_it_did(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_all(tmp_path))
    words = [*WORDS, f"init_from={tiny_folder}"]
    own = ModelBundle.load(str(tiny_folder)).drawing
    assert open_learner(compose_config("train", words)).bundle.drawing == own
    told = open_learner(compose_config("train", [*words, "drawing.guidance_scale=1.5", "drawing.top_k=7"])).bundle.drawing
    assert told == replace(own, guidance_scale=1.5, top_k=7)
