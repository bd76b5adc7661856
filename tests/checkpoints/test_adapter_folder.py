"""An adapter as a folder: ours opens in peft around transformers' Janus, peft's opens here, and the rest is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_cases import IMAGE_ID, assert_same, our_answers, their_answers, write_checkpoint
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import JanusForConditionalGeneration

from unimm.checkpoints.adapter_folder import merge_adapter, save_adapter
from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.drawing_defaults import DrawingDefaults, read_drawing_defaults
from unimm.checkpoints.folder import LoadedModel, load_model
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.lora import LoraConfig, adapter_parameters, attach, merge

ATTACHED = LoraConfig(rank=2, alpha=3.0, targets=("trunk", "vision"))
SEEDS = [0, 1, 3]
"""A tied llama, an untied one, a qwen3."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders written by transformers."""
    folder = tmp_path_factory.mktemp("bases")
    for seed in SEEDS:
        write_checkpoint(folder / str(seed), seed)
    return {seed: folder / str(seed) for seed in SEEDS}


@torch.no_grad()
def make_adapter(base: Path, folder: Path, learned: tuple[str, ...] = (), config: LoraConfig = ATTACHED) -> LoadedModel:
    """An adapter of that base in the folder; what is given back has it attached, and `learned` parts changed."""
    loaded = load_model(base, dtype=torch.float32)
    model = loaded.model
    attach(model, config)
    torch.manual_seed(5)
    for name in learned:
        for parameter in model.parts()[name].parameters():
            parameter.data = parameter + torch.randn_like(parameter) * 0.02
    for parameter in adapter_parameters(model):
        parameter.copy_(torch.randn_like(parameter) * 0.1)
    save_adapter(folder, model, loaded.image_tokenizer, str(base), learned, {"guidance_scale": 1.5})
    return loaded


def open_theirs(base: Path) -> JanusForConditionalGeneration:
    """As transformers has it; the fixed random input marks images with an id of its own."""
    janus = JanusForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    janus.config.image_token_id = IMAGE_ID
    return janus


def answers(loaded: LoadedModel, base: Path) -> dict[str, Tensor]:
    return our_answers(loaded.model, loaded.image_tokenizer, open_theirs(base).config)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("learned", [(), ("projector", "code_head", "code_embedding"), ("text_embedding", "text_head")])
def test_it_is_the_same_here_and_in_peft(seed: int, learned: tuple[str, ...], bases: dict[int, Path], tmp_path: Path) -> None:
    base = bases[seed]
    trained = make_adapter(base, tmp_path / "adapter", learned)
    expected = answers(trained, base)
    here = load_model(base, dtype=torch.float32)
    plain = answers(here, base)
    assert (plain["text"] - expected["text"]).abs().max() > 1e-2
    merge_adapter(here.model, tmp_path / "adapter")
    for name, tensor in answers(here, base).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5 * float(expected[name].abs().max()), rtol=0.0)
    janus = open_theirs(base)
    theirs = PeftModel.from_pretrained(janus, tmp_path / "adapter").eval()
    assert_same(expected, their_answers(theirs.base_model.model))
    merge(trained.model)
    for (name, one), other in zip(trained.model.named_parameters(), here.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_peft_has_learned_around_transformers_opens_here(seed: int, bases: dict[int, Path], tmp_path: Path) -> None:
    """Queries, keys and values of the vision tower with matrices of their own; rank-stabilised; a part learned whole."""
    torch.manual_seed(2)
    janus = open_theirs(bases[seed])
    settings = PeftConfig(
        r=3,
        lora_alpha=2,
        use_rslora=True,
        init_lora_weights=False,
        target_modules=["q_proj", "v_proj", "down_proj", "fc2"],
        exclude_modules=".*vqmodel.*|.*aligner.*",
        modules_to_save=["model.aligner"],
    )
    theirs = get_peft_model(janus, settings).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.02)
    theirs.save_pretrained(tmp_path / "adapter")
    here = load_model(bases[seed], dtype=torch.float32)
    merge_adapter(here.model, tmp_path / "adapter")
    assert_same(answers(here, bases[seed]), their_answers(theirs.base_model.model))


def test_a_model_that_is_no_janus_has_our_names(bases: dict[int, Path], tmp_path: Path) -> None:
    loaded = load_model(bases[1], dtype=torch.float32)
    attach(loaded.model, ATTACHED)
    other = ImageTokenizer(ImageTokenizerConfig(image_size=16, base_channels=32, num_res_blocks=1))
    save_adapter(tmp_path / "adapter", loaded.model, other, "base", ())
    names = set(load_file(tmp_path / "adapter/adapter_model.safetensors"))
    assert "base_model.model.pixels.tower.transformer.blocks.0.attn.qkv.lora_B.weight" in names
    merge_adapter(load_model(bases[1]).model, tmp_path / "adapter")


def test_the_files_are_pefts_and_say_whose_they_are(bases: dict[int, Path], tmp_path: Path) -> None:
    make_adapter(bases[1], tmp_path / "adapter", ("projector",))
    config: Any = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (2, 3.0, str(bases[1]))
    assert "model.aligner.fc1" in config.modules_to_save
    assert r"model\.language_model\.layers\.\d+\.self_attn\.q_proj" in config.target_modules
    assert "PeftModel.from_pretrained" in (tmp_path / "adapter/README.md").read_text()
    drawing = read_drawing_defaults(tmp_path / "adapter", DrawingDefaults(temperature=0.25))
    assert (drawing.guidance_scale, drawing.temperature) == (1.5, 0.25)
    make_adapter(bases[1], tmp_path / "adapter")  # ours may be replaced, and nothing else
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("love")
    with pytest.raises(ValueError, match="is not an adapter folder"):
        make_adapter(bases[1], tmp_path / "letters")


def test_a_merge_is_in_the_bases_dtype_and_changes_no_file(bases: dict[int, Path], tmp_path: Path) -> None:
    trained = make_adapter(bases[1], tmp_path / "adapter")
    merge(trained.model)
    before = load_file(bases[1] / "model.safetensors")
    here = load_model(bases[1], dtype=torch.bfloat16).model
    merge_adapter(here, tmp_path / "adapter")
    for (name, one), other in zip(trained.model.named_parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(other, one.to(torch.bfloat16), atol=1e-3, rtol=1e-2, msg=name)
    mapped = load_model(bases[1]).model
    merge_adapter(mapped, tmp_path / "adapter")
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(bases[1] / "model.safetensors").items())


# -- refusals ------------------------------------------------------------------------------------------------------------


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


def change_tensors(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"peft_type": "LOHA"}, r"not plain LoRA \(peft_type='LOHA'\)"),
        ({"use_dora": True}, r"not plain LoRA \(use_dora=True\)"),
        ({"bias": "all", "rank_pattern": {"q_proj": 4}}, r"bias='all', rank_pattern={'q_proj': 4}"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"what_comes_next": 1}, "what_comes_next=1"),
        ({"r": 4}, r"lora_A.weight is \(2, .*\), where the model and rank 4 ask for \(4, "),
        ({"r": None}, "no usable r"),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict, told: str, bases: dict[int, Path], tmp_path: Path) -> None:
    make_adapter(bases[1], tmp_path / "adapter")
    change_config(tmp_path / "adapter", **changes)
    model = load_model(bases[1]).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=told):
        merge_adapter(model, tmp_path / "adapter")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_base_is_refused(bases: dict[int, Path], tmp_path: Path) -> None:
    make_adapter(bases[1], tmp_path / "adapter")
    with pytest.raises(ValueError, match="another base"):
        merge_adapter(load_model(bases[3]).model, tmp_path / "adapter")
    merged = load_model(bases[1]).model
    merge_adapter(merged, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"another base: name .* merged into already"):
        merge_adapter(merged, tmp_path / "adapter")
    half = load_model(bases[1], dtype=torch.float16).model
    merge_adapter(half, tmp_path / "adapter")


def test_tensors_that_do_not_belong_are_refused(bases: dict[int, Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    make_adapter(bases[1], folder)
    first = next(name for name in load_file(folder / "adapter_model.safetensors") if name.endswith("lora_A.weight"))
    model = load_model(bases[1]).model
    change_tensors(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != first})
    with pytest.raises(ValueError, match=r"lora_A\.weight is missing"):
        merge_adapter(model, folder)
    change_tensors(folder, lambda tensors: {**tensors, "base_model.model.lm_tail.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"changes 1 weights that the model lacks, such as lm_tail\.weight"):
        merge_adapter(model, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        merge_adapter(model, folder)


def test_one_of_two_tied_weights_alone_is_refused(bases: dict[int, Path], tmp_path: Path) -> None:
    make_adapter(bases[0], tmp_path / "adapter", ("text_head",))
    change_tensors(tmp_path / "adapter", lambda tensors: {n: t for n, t in tensors.items() if "embed_tokens" not in n})
    with pytest.raises(ValueError, match=r"holds text\.head\.weight alone"):
        merge_adapter(load_model(bases[0]).model, tmp_path / "adapter")


def test_a_model_is_not_saved_with_adapters_attached(bases: dict[int, Path], tmp_path: Path) -> None:
    bundle = ModelBundle.of(make_adapter(bases[1], tmp_path / "adapter"))
    with pytest.raises(ValueError, match="merge them first"):
        bundle.save(tmp_path / "model")
    merge(bundle.model)
    assert bundle.save(tmp_path / "model") == []


def test_pickles_are_never_opened(bases: dict[int, Path], tmp_path: Path) -> None:
    make_adapter(bases[1], tmp_path / "adapter")
    (tmp_path / "adapter/adapter_model.safetensors").rename(tmp_path / "adapter/adapter_model.bin")
    model = load_model(bases[1]).model
    with pytest.raises(ValueError, match=r"a pickled adapter_model.bin is never opened"):
        merge_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"has no adapter_config.json"):
        merge_adapter(model, bases[1])
    with pytest.raises(ValueError, match="There is no folder"):
        merge_adapter(model, tmp_path / "nowhere")
