"""`unimm train` with an EMA and validation: the average is kept, with adapters and without; mistakes are said at once."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_text_tokenizer
from omegaconf import OmegaConf
from transformers import JanusForConditionalGeneration
from typer.testing import CliRunner
from users_files import make_all

import unimm
from unimm.checkpoints.folder import load_model
from unimm.cli.app import app
from unimm.cli.builders import build_template
from unimm.cli.compose import build, compose_config
from unimm.cli.learner import open_learner
from unimm.cli.train import train
from unimm.data.template import PromptFormat
from unimm.inference.engine import load
from unimm.models.lora import delta
from unimm.runtime.atomic_files import read_json
from unimm.training.checkpoint import load_checkpoint
from unimm.training.logbook import read_numbers

pytestmark = pytest.mark.usefixtures("small_windows", "configurations_read_once")

WORDS = [
    *("data=image_folder", "data.folder=photos", "device=cpu", "codes=codes", "trainer.num_positions=256"),
    *("trainer.num_workers=0", "trainer.budget.max_steps=4", "trainer.schedule.warmup_steps=0", "trainer.optimizer.lr=0.02"),
    *("trainer.ema_decay=0.9", "trainer.validate_every=2", "validation.num_items=2", "trainer.sample_every=0"),
]
RUNS = {"whole": ["stage=pretrain"], "adapters": ["stage=adapters", "lora=default", "lora.rank=2", "lora.targets=[trunk]"]}


@pytest.fixture(scope="module")
def given(tiny_folder: Path) -> list[str]:
    return [*WORDS, f"image_tokenizer={tiny_folder}", f"init_from={tiny_folder}"]


@pytest.fixture(scope="module")
def place(given: list[str], tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, their codes, and two runs."""
    folder = make_all(tmp_path_factory.mktemp("train"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["data=image_folder", "data.folder=photos", f"image_tokenizer={tiny_folder}", "out=codes", "device=cpu"]
        encoded = CliRunner().invoke(app, ["encode", *words])
        assert encoded.exit_code == 0, encoded.output
        for name, own in RUNS.items():
            train(compose_config("train", [*given, *own, f"out={name}"]))
    return folder


def photo_names(place: Path) -> list[str]:
    return [path.name for path in (place / "photos").rglob("*") if path.suffix in (".jpg", ".png", ".webp")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).model.named_parameters())


def checkpointed(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    prefix = f"{kind}/model."
    return {name.removeprefix(prefix): t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}


def test_the_model_that_is_written_is_the_average(place: Path) -> None:
    written = weights(place / "whole" / "model")
    averages, last = checkpointed(place / "whole", "ema"), checkpointed(place / "whole", "weights")
    assert averages
    for name, parameter in written.items():
        assert torch.equal(parameter, averages.get(name, last[name])), name
    assert any(not torch.equal(averages[name], last[name]) for name in averages)


def test_the_adapter_that_is_merged_is_the_average(place: Path, tiny_folder: Path) -> None:
    written, base = weights(place / "adapters" / "model"), weights(tiny_folder)
    averages = checkpointed(place / "adapters", "ema")
    assert averages and all(".lora_" in name for name in averages)
    for name, parameter in base.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" in averages:
            a_RI, b_OR = (averages[f"{layer}.lora_{letter}.default.weight"] for letter in "AB")
            torch.testing.assert_close(written[name], parameter + delta(a_RI, b_OR, 32.0 / 2), rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(written[name], parameter), name
    adapted = unimm.load(tiny_folder, device="cpu", adapter=place / "adapters" / "adapter")
    merged = unimm.load(place / "adapters" / "model", device="cpu")
    codes = [engine.generate_codes("a red square", temperature=0.0) for engine in (adapted, merged)]
    assert torch.equal(codes[0], codes[1])


@pytest.mark.parametrize("run", RUNS)
def test_the_best_model_is_kept_beside_it(run: str, place: Path) -> None:
    lines = read_numbers(place / run / "metrics.jsonl")
    validated = {line["step"]: line for line in lines if "validation/mean" in line}
    assert list(validated) == [2, 4]
    names = ("shapes_answers", "shapes_captions", "shapes_drawings", "digits_answers", "digits_drawings", "mean")
    assert set(validated[4]) == {"step", *(f"validation/{name}" for name in names)}
    record: dict[str, Any] | None = read_json(place / run / "best" / "validation.json")
    assert record is not None and record["score"] == max(line["validation/mean"] for line in validated.values())
    assert record["score"] == validated[record["step"]]["validation/mean"]
    best = unimm.load(place / run / "best", device="cpu")
    assert isinstance(best.caption(np.zeros((16, 16, 3), dtype=np.uint8), max_new_tokens=2), str)


def test_a_finished_run_given_again_keeps_both(place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for run, own in RUNS.items():
        before = {name: tensor.clone() for name, tensor in weights(place / run / "model").items()}
        record = read_json(place / run / "best" / "validation.json")
        train(compose_config("train", [*given, *own, f"out={run}"]))
        after = weights(place / run / "model")
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert read_json(place / run / "best" / "validation.json") == record


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trainer.ema_decay=2", "ema_decay is a number above 0 and below 1"),
        ("trainer.validate_every=-1", "validate_every is a whole number"),
        ("validation.tasks=[zebra]", "There is no validation task 'zebra'"),
        ("validation.num_items=0", "num_items is a whole number of at least 1"),
        ("suite=zebra", "There is no suite 'zebra'"),
        ("drawing.guidance_scale=0", "drawing.guidance_scale is a number above 0, not 0"),
        ("drawing.top_k=0.5", "drawing.top_k is a whole number of at least 0, not 0.5"),
        ("num_samples=0", "num_samples is a whole number of at least 1"),
        ("trackers=[wandb]", "`pip install wandb`"),
        ("trackers=[zebra]", "There is no tracker 'zebra'"),
    ],
)
def test_a_setting_that_makes_no_sense_ends_in_one_sentence(
    word: str, told: str, place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = CliRunner().invoke(app, ["train", *given, "stage=pretrain", "out=none", word])
    assert result.exit_code == 2 and told in result.stderr, result.output
    assert result.stderr.startswith("unimm: ") and result.stderr.count("\n") == 1
    assert not (place / "none" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("held_out=1", "began with held_out of draw 0, not 1"),
        ("seed=1", "began with seed 0, not 1"),
        ("data.sources.talk.weight=7", "began with weight of talk"),
        ("trainer.num_rows=16", "began with num_rows 8, not 16"),
        ("trainer.num_micro_batches=2", None),
        ("validation.num_items=1", None),
    ],
)
def test_a_run_goes_on_with_its_own_data_alone(
    word: str, told: str | None, place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    result = CliRunner().invoke(app, ["train", *given, *RUNS["whole"], "out=whole", word])
    if told is None:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 2 and told in result.stderr, result.output
    assert "begin another run (out=FOLDER)" in result.stderr and result.stderr.count("\n") == 1


def test_a_training_by_a_stored_plan_is_the_same(place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The words that plan are the words that train; also from a fresh model, whose weights a plan does not need."""
    monkeypatch.chdir(place)
    planned = CliRunner().invoke(app, ["plan", *given, *RUNS["whole"], "trainer.plan=plan"])
    assert planned.exit_code == 0 and "4 steps of 8 rows" in planned.stdout, planned.output
    train(compose_config("train", [*given, *RUNS["whole"], "trainer.plan=plan", "out=by_plan"]))
    expected = read_numbers(place / "whole" / "metrics.jsonl")[-1]
    told = read_numbers(place / "by_plan" / "metrics.jsonl")[-1]
    assert {k: v for k, v in told.items() if "loss" in k} == {k: v for k, v in expected.items() if "loss" in k}
    fresh = [word for word in given if not word.startswith("init_from")]
    planned = CliRunner().invoke(app, ["plan", *fresh, "trainer.plan=other"])
    assert planned.exit_code == 0, planned.output
    for words, told in (
        ([], "Say where to write the plan: trainer.plan=FOLDER"),
        (["trainer.plan=x", "trainer.budget.max_steps=null", "trainer.budget.max_minutes=1"], "minutes cannot be planned"),
        (["trainer.plan=photos"], "is there and is not a plan"),
    ):
        result = CliRunner().invoke(app, ["plan", *given, *words])
        assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1, result.output


def sizes(width: int) -> list[str]:
    """A trunk of that width for the tiny model, and its vision tower."""
    trunk = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "num_layers": 1, "num_heads": 2}
    return [f"model.{part}.{k}={v}" for part, own in (("trunk", trunk), ("vision", vision)) for k, v in own.items()]


def test_a_part_alone_is_taken_over(place: Path, given: list[str], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower that can see under a trunk of other sizes; the part keeps its weights, and nothing whitens it again."""
    monkeypatch.chdir(place)
    words = [*given, "stage=pretrain", "init_parts=[vision]", *sizes(48), "out=taken", "trainer.validate_every=0"]
    learner = open_learner(compose_config("train", words))
    assert learner.fresh == {"projector", "trunk", "text_embedding", "text_head", "code_embedding", "code_head"}
    train(compose_config("train", words))
    trained, tower = load_model(place / "taken/model").model, load_model(tiny_folder).model.pixels.tower
    assert trained.config.trunk["hidden_size"] == 48
    assert all(torch.equal(a, b) for a, b in zip(trained.pixels.tower.parameters(), tower.parameters(), strict=True))


def test_parts_start_afresh_in_the_sizes_that_are_given(
    place: Path, given: list[str], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others keep sizes and weights of the model to start from, whose image tokenizer is taken where none is named; what is
    written down is what was built."""
    monkeypatch.chdir(place)
    words = [*given, "stage=align", "fresh_parts=[projector]", "model.projector.depth=1", "image_tokenizer=null", "out=fresh"]
    words += ["trainer.validate_every=0", "model.trunk.hidden_size=64"]  # what it has anyway may be said
    train(compose_config("train", words))
    before, after = load_model(tiny_folder).model, load_model(place / "fresh/model").model
    assert (before.config.projector.depth, after.config.projector.depth) == (2, 1)
    assert replace(after.config, projector=before.config.projector) == before.config
    for name in ("vision", "trunk", "text_embedding", "text_head"):
        old, new = (model.parts()[name].state_dict() for model in (before, after))
        assert all(torch.equal(old[key], new[key]) for key in old)
    kept = OmegaConf.load(place / "fresh/config.yaml")
    assert kept.model.projector.depth == 1 and kept.model.vision.width == after.config.vision.width
    assert build(kept.model) == after.config
    same = open_learner(compose_config("train", [*given, "stage=align", "fresh_parts=[projector]"])).bundle.model
    assert same.config == before.config  # where no size is given it is as large as it was
    assert not torch.equal(*(next(model.pixels.projector.parameters()) for model in (before, same)))


def test_a_model_goes_on_with_another_text_tokenizer(
    place: Path, given: list[str], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens begin as the mean of what wrote them; the model that is kept is whole, with the new tokenizer in it."""
    monkeypatch.chdir(place)
    before = load(tiny_folder)
    words = [*given, "text_tokenizer=new", "text_vocabulary=300", f"out={tmp_path / 'new'}", "trainer.validate_every=0"]
    learner = open_learner(compose_config("train", words))
    tokenizer = learner.mixture.template.tokenizer
    assert len(tokenizer) == learner.bundle.model.text.embedding.num_embeddings == learner.bundle.model.trunk.config.vocab_size
    assert 264 < len(tokenizer) < len(before.tokenizer)
    for i, ids in enumerate(before.tokenizer.spell(tokenizer)):
        for part in ("embedding", "head"):
            old, new = (getattr(model.text, part).weight for model in (before.model, learner.bundle.model))
            torch.testing.assert_close(new[i], (old[ids] if ids else old).mean(0))
    train(compose_config("train", words))
    after = load(tmp_path / "new/model")
    assert after.tokenizer.tokenizer.get_vocab() == tokenizer.tokenizer.get_vocab()
    sizes_after = after.model.config.trunk
    assert (sizes_after["vocab_size"], sizes_after["eos_token_id"]) == (len(tokenizer), tokenizer.special.eos)
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "new/model")
    assert theirs.get_input_embeddings().num_embeddings == len(tokenizer)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lora=default", "text_tokenizer=new"], "An adapter uses its model's text tokenizer"),
        (["init_parts=[eyes]", *sizes(48)], "There is no part 'eyes' in a model: choose among vision, projector, trunk"),
        (
            ["init_parts=[vision,trunk]", *sizes(48)],
            r"The trunk of the model to start from differs in size: layers.0.* \(64,\) ",
        ),
        (["init_parts=[vision]", "init_from=null"], "init_parts are those of a trained model: add init_from"),
        (
            ["fresh_parts=[vision]", "init_from=null"],
            "fresh_parts are those of a trained model: add init_from",
        ),
        (["fresh_parts=[eyes]"], "There is no part 'eyes' in a model: choose among vision, projector, trunk"),
        (
            ["fresh_parts=[vision]", "init_parts=[trunk]"],
            "init_parts names what is taken over, fresh_parts what is not: give one",
        ),
        (["fresh_parts=[projector]", "lora=default"], "An adapter holds no reinitialised parts"),
        (["image_tokenizer=null", "init_from=null"], "The key 'image_tokenizer' has no value yet: add image_tokenizer="),
        (["model.projector.depth=1"], r"model.projector.depth=1 is not used, since .*\(depth=2\).* fresh_parts=\[projector\]"),
        (
            ["model.trunk.hidden_size=48"],
            r"hidden_size=48 is not used.*\(hidden_size=64\).*=\[text_embedding,text_head,trunk\]",
        ),
        (["fresh_parts=[projector]", "model.vision.width=48"], r"model.vision.width=48 is not used.* fresh_parts=\[vision\]"),
        (["model=demo"], "is not used, since .* has sizes of its own"),
        (["model.trunk.max_position_embeddings=64"], "max_position_embeddings=64 is not used, since .* has sizes of its own"),
        (["fresh_parts=[vision]", "model.vision.width=48"], "The projector of the model to start from differs in size"),
    ],
)
def test_parts_that_cannot_be_taken_are_said(place: Path, given: list[str], words: list[str], told: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=told):
        patch.chdir(place)
        train(compose_config("train", [*given, *words]))


def test_a_model_is_trained_on_for_longer_sequences(place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = ["model.trunk.max_position_embeddings=4096", "trainer.budget.max_steps=1", "out=longer"]
    train(compose_config("train", [*given, *RUNS["whole"], *words]))
    assert load(place / "longer/model").model.config.max_positions == 4096
    assert OmegaConf.load(place / "longer/config.yaml").model.trunk.max_position_embeddings == 4096


def test_records_are_held_out_and_choose_the_best(place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Users' own data, of which no benchmark asks: the loss on what was never learned from, and the model with the lowest."""
    monkeypatch.chdir(place)
    words = [*given, *RUNS["whole"], "held_out=1", "validation.tasks=[]", "validation.monitor=loss", "out=held"]
    learner = open_learner(compose_config("train", words))
    assert learner.held_out is not None
    for learned, held in zip(learner.mixture.sources, learner.held_out.sources, strict=True):
        keys = [{source.dataset[index].key for index in range(len(source.dataset))} for source in (learned, held)]
        assert len(keys[1]) == 1 and len(keys[0]) == len(photo_names(place)) - 1 and not keys[0] & keys[1]
    train(compose_config("train", words))
    losses = {n["step"]: n["validation/loss"] for n in read_numbers(place / "held/metrics.jsonl") if "validation/loss" in n}
    best = read_json(place / "held/best/validation.json")
    assert best is not None and set(losses) == {2, 4}
    assert best["score"] == min(losses.values()) == losses[best["step"]]
    assert best["scores"]["loss"] == pytest.approx(best["scores"]["loss_text"] + best["scores"]["loss_codes"])


def test_scores_before_the_training_are_kept(place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured before the first step, without a trace in what is learned."""
    monkeypatch.chdir(place)
    words = ["validation.tasks=[digits_answers]", "validation.keep=[shapes_answers]", "out=kept"]
    train(compose_config("train", [*given, *RUNS["whole"], *words]))
    validated = {n["step"]: n for n in read_numbers(place / "kept/metrics.jsonl") if "validation/shapes_answers" in n}
    before = read_json(place / "kept/scores_before.json")
    assert before is not None and list(validated) == [0, 2, 4] and list(before["scores"]) == ["shapes_answers"]
    assert before["scores"]["shapes_answers"]["score"] == validated[0]["validation/shapes_answers"]
    ours, theirs = (weights(place / name / "model") for name in ("kept", "whole"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_what_a_model_knew_is_asked_of_it_as_it_was(
    place: Path, given: list[str], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where parts are initialised again, too: what they cost is part of what is lost."""
    monkeypatch.chdir(place)
    opened: list[str] = []
    monkeypatch.setattr("unimm.cli.train.load", lambda path, *more, **other: opened.append(path) or load(path, *more, **other))
    words = ["fresh_parts=[projector]", "validation.tasks=[]", "validation.keep=[shapes_answers]", "trainer.budget.max_steps=1"]
    train(compose_config("train", [*given, *RUNS["whole"], *words, "out=as_it_was"]))
    assert opened == [str(tiny_folder)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["init_from=null"], "validation.keep names what a model knows already: add init_from=FOLDER"),
        (["trainer.validate_every=0"], "No validation compares the scores of validation.keep: add trainer.validate_every"),
    ],
)
def test_nothing_is_kept_in_vain(place: Path, given: list[str], words: list[str], told: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=told):
        patch.chdir(place)
        train(compose_config("train", [*given, "stage=pretrain", "validation.keep=[shapes_answers]", "out=vain", *words]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["held_out=1", "trainer.validate_every=0"],
            "No validation uses the records that are held out: add trainer.validate_every",
        ),
        (["validation.monitor=loss"], "is the loss on records that are held out: add held_out=RECORDS"),
        (["held_out=-1"], "held_out is a whole number of at least 0"),
        (["held_out=99"], "99 records cannot be held out of the .* of '.*': lower held_out"),
    ],
)
def test_nothing_is_held_out_in_vain(place: Path, given: list[str], words: list[str], told: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=told):
        patch.chdir(place)
        train(compose_config("train", [*given, *RUNS["whole"], "out=vain", *words]))


def test_a_training_ends_with_its_results(place: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that has nothing left to do, too; its model is named where another folder of the run was meant."""
    monkeypatch.chdir(place)
    result = CliRunner().invoke(app, ["train", *given, *RUNS["adapters"], "out=adapters"])
    assert result.exit_code == 0, result.output
    told = result.stdout.partition("Trained (stage 'adapters'): 4 steps of 2,048 positions (8,192 together), ")[2]
    for words in (
        r"loss +text \d+\.\d+, \d+\.\d % right\n",
        r"\n +codes \d+\.\d+ \(guessing: ln (\d+) = \d\.\d+\), \d+\.\d % right\n",
        r"validation +mean \d\.\d+, shapes_answers .* \(best by the mean, at step [24]\)\n +best +adapters/best\n",
        r"model +adapters/model\n +adapter +adapters/adapter\n\nNext:\n",
        r'unimm generate "YOUR PROMPT" --model adapters/model\n +unimm caption photo.png --model adapters/model\n',
        r"unimm report adapters\n$",
    ):
        assert re.search(words, told), (words, result.stdout)
    with pytest.raises(ValueError, match="adapters is no model but holds one: name adapters/model"):
        load_model("adapters")


def test_conversations_are_cut_to_what_the_model_takes() -> None:
    config = compose_config("train", ["image_tokenizer=x", "codes=x"])
    model = tiny_model(400, max_positions=77)
    assert build_template(config, tiny_text_tokenizer(), model, PromptFormat()).max_positions == 77
