"""A model that goes on with another image tokenizer: what reads and writes codes is reinitialised, and that is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from users_files import make_all

from unimm.checkpoints.adapter_folder import save_adapter
from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.folder import load_model
from unimm.checkpoints.image_tokenizer_folder import save_image_tokenizer
from unimm.cli.compose import build, compose_config
from unimm.cli.learner import _heads_that_fit, open_learner
from unimm.cli.train import train
from unimm.inference.engine import load
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.vision.qformer_text import QFormerTextConfig
from unimm.training.objectives.contrastive import Contrastive

pytestmark = pytest.mark.usefixtures("small_windows", "configurations_read_once")

WORDS = [
    *("data=image_folder", "data.folder=photos", "~data.sources.draw", "device=cpu", "stage=pretrain", "out=run"),
    *("trainer.num_positions=256", "trainer.num_workers=0", "trainer.budget.max_steps=1", "trainer.sample_every=0"),
]
SIZES = ["model.vision.patch_size=8", "model.vision.width=32", "model.vision.num_layers=1", "model.vision.num_heads=2"]


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


def test_towers_travel_from_stage_to_stage(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aligned by contrast they are saved beside the model; the same objective goes on with them, another model takes the vision
    tower, and who trains this by another objective leaves them out."""
    monkeypatch.chdir(make_all(tmp_path))
    small = ("objective.heads.text_width=16", "objective.heads.text_heads=2", "objective.heads.text_layers=1", "device=cpu")
    align = [
        "data=pairs",
        "data.paths=captions/captions.jsonl",
        "objective=contrastive",
        "stage=contrastive",
        *small,
        *WORDS[6:],
    ]
    train(compose_config("train", [*align, f"init_from={tiny_folder}", "out=aligned", "trainer.num_positions=256"]))
    told = capsys.readouterr().out
    assert "text_tower" in told
    bundle = ModelBundle.load("aligned/model")
    before = ModelBundle.load(tiny_folder).model.pixels.tower.state_dict()
    tower = bundle.model.pixels.tower.state_dict()
    assert bundle.contrastive is not None and any(not torch.equal(tower[name], before[name]) for name in tower)
    start = [*WORDS, "init_from=aligned/model"]
    learner = open_learner(compose_config("train", start))
    assert set(learner.bundle.heads) == {"contrastive"} and learner.notes == []
    learner = open_learner(compose_config("train", [*start, "init_parts=[vision]", "model.vision.image_size=16", *SIZES]))
    taken = learner.bundle.model.pixels.tower.state_dict()
    assert all(torch.equal(taken[name], tower[name]) for name in tower) and "trunk" in learner.fresh
    assert not learner.bundle.heads and "init_parts takes parts alone" in learner.notes[-1]
    learner = open_learner(compose_config("train", [*start, "stage=finetune"]))
    assert not learner.bundle.heads and learner.notes[0].startswith("The contrastive heads of aligned/model are left out")
    adapters = [*start, "lora=default", "stage=adapters"]
    assert set(open_learner(compose_config("train", adapters)).bundle.heads) == {"contrastive"}
    learner = open_learner(compose_config("train", [*adapters, "lora.targets=[vision.qkv]"]))
    assert not learner.bundle.heads and "the vision part or the text tokenizer will not be theirs" in learner.notes[0]
    save_adapter("adapter", learner.bundle.model, learner.bundle.image_tokenizer, "aligned/model")
    assert ModelBundle.load("aligned/model", adapter="adapter").contrastive is None
    config = compose_config("train", [*align, "init_from=aligned/model", "out=on"])
    learner, objective = open_learner(config), Contrastive(bundle.model, build(config.objective.heads))
    objective.load_heads(learner.bundle.heads)
    own, kept = objective.contrastive.state_dict(), bundle.heads["contrastive"].state_dict()
    assert all(torch.equal(own[name], kept[name]) for name in kept)


def test_a_text_side_stays_with_its_q_former(tiny_folder: Path) -> None:
    side = QFormerTextConfig(vocabulary_size=9, width=8, depth=1).build()
    start = replace(ModelBundle.load(tiny_folder), heads={"qformer_text": side})
    for words, fresh, is_kept in (
        (["stage=qformer", "objective=qformer"], set[str](), True),
        (["stage=adapters", "lora=default"], set[str](), True),
        (["stage=pretrain"], set[str](), False),
        (["stage=adapters", "lora=default", "lora.targets=[projector]"], set[str](), False),
        (["stage=qformer", "objective=qformer", "text_tokenizer=new"], set[str](), False),
        (["stage=qformer", "objective=qformer", "fresh_parts=[projector]"], {"projector"}, False),
    ):
        notes: list[str] = []
        config = compose_config("train", [*WORDS, f"init_from={tiny_folder}", *words])
        assert bool(_heads_that_fit(config, start, fresh, notes)) == is_kept == (not notes), words
