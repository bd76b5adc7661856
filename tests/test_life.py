"""The life of a model, line by line as its recipe tells it, at toy size: each stage finds what the one before wrote."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from parts import llama, save_parts
from safetensors.torch import load_file
from test_readme import ROOT, fenced_lines
from typer.testing import CliRunner
from users_files import make_all

from unimm.checkpoints.folder import load_model
from unimm.cli.app import app
from unimm.cli.compose import compose_config
from unimm.training.logbook import read_numbers

pytestmark = pytest.mark.usefixtures("small_windows", "configurations_read_once")

RECIPE = ROOT / "recipes/life.md"
TOY_TOKENIZER = [
    *("tokenizer.image_size=32", "tokenizer.base_channels=32", "tokenizer.num_res_blocks=1", "tokenizer.latent_channels=32"),
    *("tokenizer.quantizer.codebook_size=32", "tokenizer.quantizer.code_dim=4", "images.batch_size=2", "num_validation=2"),
    *("tokenizer_trainer.budget.max_steps=2", "tokenizer_trainer.loss.lpips=0", "tokenizer_trainer.adversary.start_step=1"),
    *("tokenizer_trainer.precision='no'", "tokenizer_trainer.num_workers=0", "device=cpu"),
]
TOY_TRAINER = [
    *("trainer.budget.max_steps=1", "trainer.schedule.warmup_steps=0", "trainer.num_rows=4", "trainer.num_positions=256"),
    *("trainer.compile=false", "trainer.precision='no'", "trainer.num_workers=0", "device=cpu"),
]
TOY_MODEL = [
    *("model.trunk.hidden_size=64", "model.trunk.intermediate_size=128", "model.trunk.num_hidden_layers=2"),
    *("model.trunk.num_attention_heads=4", "model.trunk.num_key_value_heads=4", "model.trunk.vocab_size=null"),
    *("model.vision.image_size=16", "model.vision.patch_size=8", "model.vision.width=32", "model.vision.num_layers=1"),
    *("model.vision.num_heads=2", "text_vocabulary=400", "whitened_images=8"),
]


def toy(line: str) -> list[str]:
    """A line's words, and those that make it small."""
    verb, *words = line.split()[1:]
    if verb == "generate":
        return [*shlex.split(line)[1:], "--device", "cpu"]
    if verb == "join":
        return [verb, *words]
    fresh = TOY_MODEL if verb == "train" and not any(word.startswith("init_from=") for word in words) else []
    small = {"train-tokenizer": TOY_TOKENIZER, "train": TOY_TRAINER}.get(verb, ["device=cpu"])
    return [verb, *words, *small, *fresh]


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's files, in which the whole recipe has been run."""
    folder = make_all(tmp_path_factory.mktemp("life"))
    for name in ("blip_laion_cc_sbu_558k.json", "llava_v1_5_mix665k.json"):
        shutil.copy(folder / "llava/llava.json", folder / "llava" / name)
    save_parts(folder / "models", llama)
    (folder / "models/janus-pro-1b").symlink_to(tiny_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in fenced_lines(RECIPE):
            result = CliRunner().invoke(app, toy(line))
            assert result.exit_code == 0, f"{line}\n{result.output}"
    return folder


def weights(place: Path, run: str) -> dict[str, torch.Tensor]:
    return load_model(place / "runs" / run / "model", dtype=torch.float32).model.state_dict()


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts in which something differs."""
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    return {".".join(name.split(".")[:2]) if name.startswith(("pixels", "text", "codes")) else "trunk" for name in changed}


def test_each_stage_moves_what_it_says(place: Path) -> None:
    adapters = {"pixels.projector", "codes.embedding", "codes.aligner", "codes.head"}
    everything = adapters | {"trunk", "text.embedding", "text.head"}
    stages = ["vision", "align", "pretrain", "finetune"]
    states = [weights(place, f"life/{stage}") for stage in stages]
    assert moved(states[0], states[1]) == adapters
    assert moved(states[1], states[2]) == everything
    assert moved(states[2], states[3]) == everything | {"pixels.tower"}
    first = load_model(place / "models/janus-pro-1b", dtype=torch.float32).model.state_dict()
    states = [first, weights(place, "llava/align"), weights(place, "llava/finetune")]
    assert moved(states[0], states[1]) == {"pixels.projector"}
    assert moved(states[1], states[2]) == {"pixels.projector", "trunk", "text.embedding", "text.head"}


def test_each_stage_learns_its_tasks(place: Path) -> None:
    for stage in ("align", "pretrain", "finetune"):
        (line,) = read_numbers(place / f"runs/life/{stage}/metrics.jsonl")
        assert {"loss/text", "loss/codes"} <= set(line)
    (line,) = read_numbers(place / "runs/llava/finetune/metrics.jsonl")
    assert "loss/text" in line and "loss/codes" not in line
    assert list((place / "runs/life/drawings").iterdir())


def test_features_are_stored_in_bfloat16_a_folder_a_source(place: Path) -> None:
    assert sorted(path.name for path in (place / "runs/life/features").iterdir()) == ["describe", "talk"]
    stored = load_file(place / "runs/llava/features_665k/talk/features-00000.safetensors")["features"]
    assert stored.dtype == torch.bfloat16 and stored.shape == (2, 4, 32)  # the third conversation is text alone


def test_what_was_joined_can_begin(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage I from the folder that `join` has written, with what its tower sees."""
    monkeypatch.chdir(place)
    for verb in ("encode-features", "+experiment=janus/pro_align"):
        line = next(line for line in fenced_lines(RECIPE) if verb in line)
        for before, after in (("life/vision/model", "start"), ("life/features", "seen"), ("life/align", "joined")):
            line = line.replace(f"runs/{before}", f"runs/{after}")
        line = line.replace("runs/start", "models/start")
        result = CliRunner().invoke(app, toy(line))
        assert result.exit_code == 0, result.output
    start = load_model(place / "models/start", dtype=torch.float32).model.state_dict()
    assert moved(start, weights(place, "joined")) == {"pixels.projector", "codes.embedding", "codes.aligner", "codes.head"}


def test_the_papers_numbers_stand_in_the_files() -> None:
    """Ratio, learning rate, weight decay, schedule, warm-up and steps, as the papers' tables have them."""
    expected = {
        "janus/align": ((1, 0, 1), 1e-3, 0.0, "cosine", 300, 10_000),
        "janus/pretrain": ((2, 3, 5), 1e-4, 0.0, "constant", 5_000, 180_000),
        "janus/finetune": ((7, 3, 10), 2e-5, 0.1, "constant", 0, 24_000),
        "janus/pro_align": ((1, 0, 3), 1e-3, 0.0, "constant", 600, 20_000),
        "janus/pro_pretrain": ((2, 3, 5), 1e-4, 0.0, "constant", 5_000, 270_000),
        "janus/pro_finetune": ((5, 1, 4), 4e-5, 0.0, "constant", 0, 80_000),
        "llava/align": (None, 1e-3, 0.0, "cosine", 66, 2_181),
        "llava/finetune": (None, 2e-5, 0.0, "cosine", 156, 5_198),
    }
    for name, wanted in expected.items():
        config = compose_config("train", [f"+experiment={name}"])
        trainer, ratio = config.trainer, config.ratio
        found = (
            None if ratio is None else (ratio.understanding, ratio.text, ratio.drawing),
            *(trainer.optimizer.lr, trainer.optimizer.weight_decay, trainer.schedule.kind, trainer.schedule.warmup_steps),
            trainer.budget.max_steps,
        )
        assert found == wanted, name


FROM_VISION = "init_from=runs/life/vision/model"
CODES_ALONE = "prompt_format={_target_:unimm.data.PromptFormat,sees:codes}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("stage=finetune", FROM_VISION), "it learns in the stage 'finetune': leave features out"),
        (("stage=align", FROM_VISION, "lora=default", "lora.targets=[vision]"), "leave features out"),
        (("stage=align", *TOY_MODEL), "Stored features are those of a model that can see: add init_from=FOLDER"),
        (("stage=align", "init_from=runs/life/finetune/model"), "were made with tower_hash"),
        (("stage=align", FROM_VISION, "features=runs/life"), "runs/life/describe holds no stored features"),
        (("stage=align", FROM_VISION, CODES_ALONE), "has no use for stored features"),
    ],
)
def test_features_that_do_not_fit_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    """The line of stage I with other words."""
    monkeypatch.chdir(place)
    line = next(line for line in fenced_lines(RECIPE) if "janus/pro_align" in line)
    replaced = ("+experiment", "init_from", "out", *(word.split("=")[0] for word in words))
    kept = [word for word in [*line.split()[2:], *TOY_TRAINER] if word.split("=")[0] not in replaced]
    result = CliRunner().invoke(app, ["train", *kept, *words, "out=runs/refused"])
    assert result.exit_code == 2, result.output
    assert told in result.stderr and result.stderr.startswith("unimm: ") and result.stderr.count("\n") == 1
    assert not Path("runs/refused/model").exists()


def test_there_is_something_to_look_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = ["data=text", "data.paths=texts", "init_from=runs/life/vision/model", "out=runs/none", "device=cpu"]
    result = CliRunner().invoke(app, ["encode-features", *words])
    assert result.exit_code == 2 and "None of the sources text looks at images" in result.stderr
