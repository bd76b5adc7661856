"""A Janus is adapted from the shell: trained, merged, converted, loaded, and opened in transformers, always the same model."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_cases import draw
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoProcessor, JanusForConditionalGeneration
from typer.testing import CliRunner
from users_files import make_all

import unimm
from unimm.checkpoints.folder import load_model
from unimm.cli.app import app
from unimm.cli.compose import compose_config
from unimm.cli.train import train

pytestmark = pytest.mark.usefixtures("small_windows", "configurations_read_once")

WORDS = [
    *("data=image_folder", "data.folder=photos", "device=cpu", "trainer.num_positions=256", "trainer.num_workers=0"),
    *("trainer.budget.max_steps=3", "trainer.schedule.warmup_steps=0", "trainer.sample_every=3", "codes=codes"),
    "trainer.optimizer.lr=0.02",
]


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, their codes, and two runs: `some` with adapters alone, `more` with other parts beside them."""
    folder = make_all(tmp_path_factory.mktemp("lora"))
    given = [f"image_tokenizer={tiny_folder}", f"init_from={tiny_folder}", "lora=default", "lora.rank=4"]
    runs = {
        "some": ["stage=adapters", "lora.targets=[trunk,vision]"],
        "more": ["stage=align", "lora.targets=[trunk.q_proj,trunk.v_proj]"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        encoded = call("encode", "data=image_folder", "data.folder=photos", given[0], "out=codes", "device=cpu")
        assert encoded.exit_code == 0, encoded.output
        for name, words in runs.items():
            train(compose_config("train", [*WORDS, *given, *words, f"out={name}"]))
    return folder


def codes_in_transformers(janus: Any, folder: Path) -> torch.Tensor:
    """What it draws, by the likeliest codes."""
    processor = AutoProcessor.from_pretrained(folder)
    prompt = processor.apply_chat_template([{"role": "user", "content": "a red square"}], add_generation_prompt=True)
    return draw(janus, processor(text=[prompt], generation_mode="image", return_tensors="pt"))


def our_codes(engine: unimm.Engine) -> torch.Tensor:
    return engine.generate_codes("a red square", temperature=0.0, guidance_scale=5.0)


@pytest.mark.parametrize("run", ["some", "more"])
def test_every_way_to_the_adapted_model_is_the_same(run: str, place: Path, tiny_folder: Path) -> None:
    model, adapter = place / run / "model", place / run / "adapter"
    expected = load_file(model / "model.safetensors")
    base = load_file(tiny_folder / "model.safetensors")
    assert expected.keys() == base.keys()
    assert any(not torch.equal(tensor, base[name]) for name, tensor in expected.items())
    result = call("convert", tiny_folder, place / run / "converted", "--adapter", adapter)
    assert result.exit_code == 0 and "opens in transformers" in result.stdout, result.output
    for name, tensor in load_file(place / run / "converted/model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5, msg=name)
    codes = our_codes(unimm.load(model, device="cpu"))
    assert torch.equal(our_codes(unimm.load(tiny_folder, device="cpu", adapter=adapter)), codes)
    assert torch.equal(codes_in_transformers(JanusForConditionalGeneration.from_pretrained(model), model), codes)
    theirs = PeftModel.from_pretrained(JanusForConditionalGeneration.from_pretrained(tiny_folder), adapter)
    assert torch.equal(codes_in_transformers(theirs.merge_and_unload(), tiny_folder), codes)


def test_an_adapter_holds_what_learned_and_nothing_else(place: Path, tiny_folder: Path) -> None:
    files = {run: load_file(place / run / "adapter/adapter_model.safetensors") for run in ("some", "more")}
    names = {run: {name.removeprefix("base_model.model.") for name in file} for run, file in files.items()}
    assert all(".lora_" in name for name in names["some"])
    whole = {name for name in names["more"] if ".lora_" not in name}
    parts = {"aligner", "generation_embeddings", "generation_aligner", "generation_head"}
    assert {name.split(".")[1] for name in whole} == parts
    before, after = load_file(tiny_folder / "model.safetensors"), load_file(place / "more/model/model.safetensors")
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    adapted = {f"{name.rpartition('.lora_')[0]}.weight" for name in names["more"] if ".lora_" in name}
    assert moved == adapted | whole


def test_merged_weights_are_rounded_once(place: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """A base in fp32 and a model wanted in bf16: not the base rounded, and then the sum again."""
    expected = load_file(place / "some/model/model.safetensors")
    call("convert", tiny_folder, tmp_path / "out", "--adapter", place / "some/adapter", "--dtype", "bfloat16")
    converted = load_file(tmp_path / "out/model.safetensors")
    apart = {name for name, tensor in converted.items() if not torch.equal(tensor, expected[name].to(tensor.dtype))}
    assert not apart
    assert {tensor.dtype for tensor in converted.values()} == {torch.bfloat16, torch.float32}


def test_merged_weights_are_quantized_like_any(place: Path, tiny_folder: Path) -> None:
    words = {"device": "cpu", "dtype": "bfloat16", "weights": "int8"}
    merged = unimm.load(place / "some/model", **words).generate_codes("a red square", temperature=0.0)
    adapted = unimm.load(tiny_folder, adapter=place / "some/adapter", **words).generate_codes("a red square", temperature=0.0)
    assert torch.equal(merged, adapted)


def test_reading_needs_no_peft_and_learning_says_so(
    place: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "peft", None)
    unimm.load(tiny_folder, adapter="some/adapter")
    given = [f"image_tokenizer={tiny_folder}", f"out={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match="pip install peft"):
        train(compose_config("train", [*WORDS, *given, f"init_from={tiny_folder}", "lora=default", "stage=adapters"]))
    with pytest.raises(ValueError, match="add init_from=FOLDER"):
        train(compose_config("train", [*WORDS, *given, "lora=default", "stage=adapters"]))


def test_what_cannot_be_merged_writes_nothing(place: Path, tiny_folder: Path, tmp_path: Path) -> None:
    for adapter, told in ((tmp_path / "nowhere", "There is no folder"), (tiny_folder, "adapter_config.json")):
        result = call("convert", tiny_folder, tmp_path / "out", "--adapter", adapter)
        assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1
    result = call("convert", place / "some/model", tmp_path / "out", "--adapter", place / "some/adapter")
    assert result.exit_code == 2 and "another base" in result.stderr and not (tmp_path / "out").exists()


def test_a_finished_run_given_again_writes_the_same(place: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    files = ("model/model.safetensors", "adapter/adapter_model.safetensors")
    before = [load_file(place / "some" / name) for name in files]
    given = [f"image_tokenizer={tiny_folder}", f"init_from={tiny_folder}", "lora=default", "lora.rank=4"]
    train(compose_config("train", [*WORDS, *given, "stage=adapters", "lora.targets=[trunk,vision]", "out=some"]))
    for name, then in zip(files, before, strict=True):
        now = load_file(place / "some" / name)
        assert now.keys() == then.keys() and all(torch.equal(now[key], then[key]) for key in now)
    assert load_model(place / "some/model").config["model_type"] == "janus"
