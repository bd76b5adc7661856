"""A run that goes on with other settings: followed and said, or refused; config.yaml says what is in use and nothing else."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.compose import compose_config
from unimm.cli.learner import open_learner
from unimm.cli.resume_settings import Change, Resuming, flat_settings, with_new_names
from unimm.cli.train import ONLY_OF_NEW_RUNS
from unimm.inference.engine import load
from unimm.training.checkpoint import Checkpoint
from unimm.training.checkpoint_writer import save_checkpoint

pytestmark = pytest.mark.usefixtures("small_windows", "configurations_read_once")

TEXT = [
    *("data=text", "data.paths=text.txt", "stage=finetune", "device=cpu", "trainer.num_positions=64", "trainer.num_rows=1"),
    *("trainer.num_workers=0", "trainer.sample_every=0", "trainer.budget.max_steps=2", "out=run"),
]
PICTURES = [
    *("device=cpu", "tokenizer.image_size=16", "tokenizer.base_channels=32", "tokenizer.channel_multipliers=[1,1]"),
    *("tokenizer.num_res_blocks=1", "images.batch_size=2", "num_validation=2", "tokenizer_trainer.num_workers=0", "out=run"),
    *("tokenizer_trainer.compile=false", "tokenizer_trainer.budget.max_minutes=null", "tokenizer_trainer.budget.max_steps=1"),
]


FINGERPRINTS = {"init_from": "a", "image_tokenizer": "b", "text_tokenizer": "c"}


def call(*words: object) -> str:
    """What a run says, in one line, without its table; a mistake begins with its exit code."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code in (0, 2), result.output
    text = result.stdout if result.exit_code == 0 else f"2 {result.stderr}"
    return " ".join(text.split())


@pytest.fixture(scope="module")
def given(tiny_folder: Path) -> list[str]:
    return [*TEXT, f"init_from={tiny_folder}", f"image_tokenizer={tiny_folder}"]


@pytest.fixture(scope="module")
def finished(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run of two steps on it."""
    folder = tmp_path_factory.mktemp("resuming")
    (folder / "text.txt").write_text("Some text.\n\nMore text.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert "goes on" not in call("train", *given)
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    return tmp_path


def resuming(place: Path, words: list[str], **fingerprints: str) -> Resuming:
    """What a run with these words and fingerprints finds in the folder of another one."""
    run = Resuming(compose_config("train", words), "trainer", ONLY_OF_NEW_RUNS)
    run.check({**FINGERPRINTS, **fingerprints})
    return run


def rate(place: Path) -> float:
    return OmegaConf.load(place / "run/config.yaml").trainer.optimizer.lr


def test_a_spent_budget_is_said_and_nothing_is_recorded(place: Path, given: list[str]) -> None:
    before = (place / "run/config.yaml").read_text()
    told = call("train", *given, "trainer.budget.max_steps=1", "trainer.optimizer.lr=7")
    assert "run has already made 2 steps of max_steps=1: raise trainer.budget.max_steps to go on." in told
    assert "Not used, since nothing more is learned: trainer.optimizer.lr=7 (was 0.001)." in told
    assert (place / "run/config.yaml").read_text() == before
    assert "goes on from step 2 with trainer.budget.max_steps=3 (was 2)." in call("train", *given, "trainer.budget.max_steps=3")


def test_what_is_followed_is_said_and_kept(place: Path, given: list[str]) -> None:
    words = ["trainer.budget.max_steps=3", "trainer.optimizer.lr=0.002"]
    changes = "trainer.budget.max_steps=3 (was 2)", "trainer.optimizer.lr=0.002 (was 0.001)"
    assert f"run goes on from step 2 with {', '.join(changes)}." in call("train", *given, *words)
    text = (place / "run/config.yaml").read_text()
    assert text.splitlines()[:2] == [f"# {change}, from step 2 on" for change in changes] and rate(place) == 0.002
    told = call("train", *given, *words, "trainer.budget.max_steps=4")
    assert "goes on from step 3 with trainer.budget.max_steps=4 (was 3)." in told
    assert (place / "run/config.yaml").read_text().splitlines()[2] == "# trainer.budget.max_steps=4 (was 3), from step 3 on"


def test_a_change_that_no_checkpoint_has_seen_never_was(place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*given, "trainer.budget.max_steps=3"]
    with monkeypatch.context() as patch:
        patch.setattr("unimm.training.run_state.Resumable.save", lambda _: (_ for _ in ()).throw(RuntimeError("killed")))
        assert isinstance(CliRunner().invoke(app, ["train", *words, "trainer.optimizer.lr=7"]).exception, RuntimeError)
    told = call("train", *words)
    assert "goes on from step 2 with trainer.budget.max_steps=3 (was 2)." in told and rate(place) == 0.001


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run that began from `base`, with the image tokenizer `codec`."""
    monkeypatch.chdir(tmp_path)
    settings = dict(flat_settings(compose_config("train", [*TEXT, "init_from=base", "image_tokenizer=codec"])))
    state = {"seconds": 1.0, "record": {"settings": settings, "fingerprints": FINGERPRINTS, "changes": []}}
    save_checkpoint(tmp_path / "run/checkpoints", Checkpoint(2, {"a": torch.zeros(1)}, state))
    return tmp_path


GIVEN = [*TEXT, "init_from=base", "image_tokenizer=codec"]


@pytest.mark.parametrize(
    ("word", "fingerprints", "told"),
    [
        ("init_from=other", {"init_from": "x"}, r"another model to start from \(init_from=base, not other\)"),
        ("seed=0", {"image_tokenizer": "x"}, r"another image tokenizer, .* \(image_tokenizer=codec has changed since\)"),
        ("image_tokenizer=x", {"image_tokenizer": "x"}, r"another image tokenizer, .* \(image_tokenizer=codec, not x\)"),
        ("text_tokenizer=new", {"text_tokenizer": "x"}, r"another text tokenizer, .* \(text_tokenizer=null, not new\)"),
        ("lora=default", {}, "lora=null, not LoraConfig"),
        ("objective=vision_pretraining", {}, "objective=Likelihood, not VisionPretraining"),
        ("text_vocabulary=300", {}, "text_vocabulary=768, not 300"),
    ],
)
def test_what_only_a_new_run_could_follow_is_refused(word: str, fingerprints: dict[str, str], told: str, begun: Path) -> None:
    with pytest.raises(ValueError, match=f"run holds a run that began with {told}, and cannot go on otherwise: give what it"):
        resuming(begun, [*GIVEN, word], **fingerprints)


def test_other_rollouts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that only one of two runs learns from."""
    monkeypatch.chdir(tmp_path)
    words = [*TEXT, "init_from=base", "rollouts=default"]
    state = {"seconds": 1.0, "record": {"settings": dict(flat_settings(compose_config("train", words))), "changes": []}}
    save_checkpoint(tmp_path / "run/checkpoints", Checkpoint(2, {"a": torch.zeros(1)}, state))
    assert not resuming(tmp_path, words).changes
    for other, told in {"rollouts.group_size=4": r".group_size=8, not 4", "rollouts=none": "=RolloutConfig, not null"}.items():
        with pytest.raises(ValueError, match=f"a run that began with rollouts{told}"):
            resuming(tmp_path, [*words, other])


def test_a_moved_folder_is_no_other_one_and_one_that_has_learned_on_is_said(begun: Path) -> None:
    moved = resuming(begun, [*GIVEN, "init_from=there/base", "image_tokenizer=there/codec"])
    assert [str(change) for change in moved.changes] == [
        "image_tokenizer=there/codec (was codec)",
        "init_from=there/base (was base)",
    ]
    assert moved.notes == [] == resuming(begun, GIVEN).changes
    (note,) = resuming(begun, GIVEN, init_from="x").notes
    assert note == "init_from=base has changed since run began: the run goes on from weights of its own."


def test_fingerprints_tell_what_a_run_begins_from(given: list[str], place: Path, tiny_folder: Path) -> None:
    """Not by where it lies, and also a model that has learned one step on."""
    engine = load(tiny_folder, device="cpu")
    with torch.no_grad():
        for parameter in engine.model.text.parameters():
            parameter += 1e-6
    engine.save(place / "other")
    shutil.copytree(tiny_folder, place / "moved")
    now = [open_learner(compose_config("train", [*given, f"init_from={path}"])).fingerprints for path in ("other", "moved")]
    assert now[1] == open_learner(compose_config("train", given)).fingerprints
    assert {key for key in now[0] if now[0][key] != now[1][key]} == {"init_from"}


def test_settings_that_have_another_name_now_have_not_changed(begun: Path) -> None:
    folder = begun / "run/checkpoints"
    settings = dict(flat_settings(compose_config("train", GIVEN)))
    old = {key.replace("lr_scales", "learns").replace("sharding.strategy", "sharding.way"): settings[key] for key in settings}
    assert {"stage.learns.vision", "trainer.sharding.way"} <= old.keys() and len(old) == len(settings)
    state = {"seconds": 1.0, "record": {"settings": old, "fingerprints": FINGERPRINTS, "changes": []}}
    save_checkpoint(folder, Checkpoint(3, {"a": torch.zeros(1)}, state))
    assert resuming(begun, GIVEN, **FINGERPRINTS).changes == []
    told = [str(one) for one in resuming(begun, [*GIVEN, "stage.lr_scales.vision=0.5"], **FINGERPRINTS).changes]
    assert told == ["stage.lr_scales.vision=0.5 (was 1.0)"]
    older = {
        "data.sources.a.view.decoys": 0.5,
        "data.sources.a.dataset.decoys.folder": "x",
        "data.decoys": 1,
        "decoys": 2,
        "stage.name": "look",
    }
    newer = {
        "data.sources.a.view.corrupted": 0.5,
        "data.sources.a.dataset.corrupted.folder": "x",
        "data.decoys": 1,
        "decoys": 2,
        "stage.name": "vision",
    }
    assert with_new_names(older) == newer
    assert not Change("trainer.weights", {}, None).is_one and Change("trainer.weights", {}, 1.0).is_one  # as good as none


def test_an_image_tokenizer_s_run_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    call("train-tokenizer", *PICTURES)
    lr = OmegaConf.load("run/config.yaml").tokenizer_trainer.lr
    told = call("train-tokenizer", *PICTURES, "tokenizer_trainer.lr=7")
    assert "run has already made 1 steps of max_steps=1: raise tokenizer_trainer.budget.max_steps to go on." in told
    assert OmegaConf.load("run/config.yaml").tokenizer_trainer.lr == lr
    told = call("train-tokenizer", *PICTURES, "tokenizer_trainer.lr=0.002", "tokenizer_trainer.budget.max_steps=2")
    assert "goes on from step 1 with tokenizer_trainer.budget.max_steps=2 (was 1), tokenizer_trainer.lr=0.002" in told
    told = call("train-tokenizer", *PICTURES, "tokenizer.num_res_blocks=2")
    assert told.startswith("2 unimm: run holds a run that began with tokenizer.num_res_blocks=1, not 2"), told


def test_settings_are_told_once(tmp_path: Path) -> None:
    """What only repeats another key is left out, an empty group is one setting, and a key without a value is none."""
    settings = dict(flat_settings(compose_config("train", ["image_tokenizer=x"])))
    assert settings["stage.name"] == "scratch" and settings["trainer.weights"] == {} and settings["trackers"] == []
    assert not any(key.startswith(("trainer.stage", "tracking.trackers", "codes")) for key in settings)
