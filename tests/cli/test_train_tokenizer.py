"""An image tokenizer that begins with the weights of another one, and a model that goes on with its codes."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from users_files import make_all

from unimm.checkpoints.folder import load_model
from unimm.checkpoints.image_tokenizer_folder import fingerprint, load_image_tokenizer, read_ancestors, save_image_tokenizer
from unimm.cli.compose import compose_config
from unimm.cli.learner import CODE_PARTS, open_learner
from unimm.cli.train_tokenizer import open_start, train_tokenizer
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.image_tokenizer.quantizers import CosineQuantizer

pytestmark = pytest.mark.usefixtures("configurations_read_once")

PICTURES = [
    *(
        "images=image_folder",
        "images.folder=photos",
        "images.validation_folder=photos",
        "images.batch_size=2",
        "num_validation=2",
    ),
    *("device=cpu", "tokenizer_trainer.num_workers=0", "tokenizer_trainer.lr=1e-2", "tokenizer_trainer.ema_decay=0"),
]


@pytest.fixture(autouse=True)
def place(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's files and a model to start from, `start`."""
    monkeypatch.chdir(make_all(tmp_path))
    Path("start").symlink_to(tiny_folder)
    return tmp_path


def learn(init_from: str, out: str, steps: int = 1, *more: str) -> ImageTokenizer:
    words = [*PICTURES, f"init_from={init_from}", f"out={out}", f"tokenizer_trainer.budget.max_steps={steps}", *more]
    return load_image_tokenizer(train_tokenizer(compose_config("train_tokenizer", words)))


def codebook(tokenizer: ImageTokenizer) -> torch.Tensor:
    return tokenizer.quantize.codebook


def test_weights_go_on_from_those_of_another_one_and_the_codebook_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """Its sizes too, in the folder of the run as well; what it came from is recorded, over generations."""
    own = load_model("start", dtype=torch.float32).image_tokenizer
    begun = open_start(compose_config("train_tokenizer", [*PICTURES, "init_from=start"])).tokenizer
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in begun.state_dict().items())
    child = learn("start", "child")
    said = " ".join(capsys.readouterr().out.split())
    assert f"Begins with the image tokenizer of start: {own.image_size} px as " in said and "its codebook stays" in said
    assert child.config == own.config and torch.equal(codebook(child), codebook(own))
    assert fingerprint(child) != fingerprint(own) and read_ancestors("child/model") == [fingerprint(own)]
    assert OmegaConf.load("child/config.yaml").tokenizer.image_size == own.image_size
    grandchild = learn("child/model", "grandchild")
    assert torch.equal(codebook(grandchild), codebook(own))
    assert read_ancestors("grandchild/model") == [fingerprint(child), fingerprint(own)]


def test_it_goes_on_to_the_bit(capsys: pytest.CaptureFixture[str]) -> None:
    constant = "tokenizer_trainer.schedule.kind=constant"  # the decay of the rate knows the end
    straight = learn("start", "straight", 3, constant)
    learn("start", "halves", 1, constant)
    capsys.readouterr()
    assert fingerprint(learn("start", "halves", 3, constant)) == fingerprint(straight)
    said = " ".join(capsys.readouterr().out.split())
    assert "halves goes on from step 1" in said and "Begins with" not in said


LATENTS = ["tokenizer=vae_tiny", "tokenizer.image_size=16", "tokenizer.channel_multipliers=[1,1,1,1]"]
LATENTS += ["tokenizer.latent_channels=256"]


def test_one_with_latents_begins_with_the_networks_of_one_with_codes() -> None:
    """And keeps the statistics of its latents; nothing is said to have codes that go on."""
    own = load_model("start", dtype=torch.float32).image_tokenizer
    start = open_start(compose_config("train_tokenizer", [*PICTURES, "init_from=start", *LATENTS]))
    name = "decoder.mid.block_1.conv1.weight"
    assert torch.equal(start.tokenizer.get_parameter(name), own.get_parameter(name))
    assert start.fingerprints == {"init_from": fingerprint(own)} and "what makes latents is new" in start.notes[0]
    trained = learn("start", "vae", 1, *LATENTS)
    assert trained.is_continuous and not torch.equal(trained.quantize.std, torch.ones(4))
    assert read_ancestors("vae/model") == []
    again = open_start(compose_config("train_tokenizer", [*PICTURES, "init_from=vae/model"]))
    assert again.fingerprints == {"init_from": fingerprint(trained)} and "all of it is trained" in again.notes[0]
    with pytest.raises(ValueError, match="init_from=start has other sizes: only"):
        open_start(compose_config("train_tokenizer", [*PICTURES, "init_from=start", "tokenizer=vae_sdxl"]))


def test_a_run_does_not_go_on_from_another_start() -> None:
    learn("start", "run")
    for other in ("null", "run/model"):
        with pytest.raises(ValueError, match="run holds a run that began with another model to start from"):
            learn(other, "run", 2)


def test_a_run_goes_on_where_its_start_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And records no ancestor whose codebook it does not have."""
    own = load_model("start", dtype=torch.float32).image_tokenizer
    save_image_tokenizer("from", own)
    learn("from", "run")
    other = ImageTokenizer(own.config)
    with torch.no_grad():
        next(iter(other.parameters())).add_(1.0)
    shutil.rmtree("from")
    save_image_tokenizer("from", other)
    learn("from", "run", 2)
    assert "init_from=from has changed since run began" in " ".join(capsys.readouterr().out.split())
    assert read_ancestors("run/model") == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["spread_codes=true"], "spread_codes places a codebook anew"),
        (["tokenizer.base_channels=64"], r"tokenizer.base_channels=64 is not used, since start has .* \(base_channels=32\)"),
        (["tokenizer=vq16"], "tokenizer=.* is not used, since start has sizes of its own"),
        (["init_from=photos"], "photos holds no image tokenizer"),
    ],
)
def test_what_it_cannot_follow_is_refused(words: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        open_start(compose_config("train_tokenizer", [*PICTURES, "init_from=start", *words]))


def test_sizes_that_it_has_may_be_given() -> None:
    assert open_start(compose_config("train_tokenizer", [*PICTURES, "init_from=start", "tokenizer.base_channels=32"])).ancestors


WORDS = ["data=image_folder", "data.folder=photos", "~data.sources.draw", "device=cpu", "stage=pretrain", "init_from=start"]


def test_a_model_keeps_what_it_knows_of_codes_whose_tokenizer_was_trained_on() -> None:
    """Of its own one, at any distance; any other makes code_embedding and code_head fresh."""
    model = load_model("start", dtype=torch.float32)
    own = model.image_tokenizer
    parts = {name: model.model.parts()[name].state_dict() for name in CODE_PARTS}
    for name, ancestors in (("child", ["x", fingerprint(own)]), ("stranger", ["x"])):
        other = ImageTokenizer(own.config)
        assert isinstance(other.quantize, CosineQuantizer)
        save_image_tokenizer(name, other, ancestors)
        learner = open_learner(compose_config("train", [*WORDS, f"image_tokenizer={name}"]))
        (note,) = learner.notes
        if name == "stranger":
            assert learner.fresh == CODE_PARTS and note.endswith("are reinitialised.")
            continue
        assert learner.fresh == set() and "code_embedding and code_head are kept" in note
        for part, state in parts.items():
            assert all(
                torch.equal(tensor, state[key]) for key, tensor in learner.bundle.model.parts()[part].state_dict().items()
            )
        assert fingerprint(learner.bundle.image_tokenizer) == fingerprint(other)
