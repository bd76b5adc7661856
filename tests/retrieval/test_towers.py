"""Two towers of other libraries: vectors are theirs within 1e-5, made from random checkpoints by the libraries themselves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

import unimm
from unimm.checkpoints.folder import TWO_TOWERS
from unimm.retrieval.towers import TwoTowers, load_towers

TEXTS = ["a red circle", "two blue squares, one of them left of a circle " * 8, "圆"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyz,.<|>"


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Of several sizes and forms, one larger than the towers look at."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((24, 40), (70, 31), (32, 32))]


def clip_tokenizer() -> CLIPTokenizer:
    pieces = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])


def siglip_tokenizer(**words: Any) -> Siglip2Tokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, *(f"<0x{byte:02X}>" for byte in range(256))]
    return Siglip2Tokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], **words)


def make_clip(folder: Path) -> None:
    text = {**SIZES, "vocab_size": 64, "max_position_embeddings": 24, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)).save_pretrained(folder)
    prepare = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(prepare, clip_tokenizer()).save_pretrained(folder)


def make_siglip(folder: Path) -> None:
    text = {**SIZES, "vocab_size": 300, "max_position_embeddings": 64}
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    prepare = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    SiglipProcessor(prepare, siglip_tokenizer(model_input_names=["input_ids"])).save_pretrained(folder)


def make_siglip2(folder: Path) -> None:
    text = {**SIZES, "vocab_size": 300, "max_position_embeddings": 64}
    vision = {**SIZES, "patch_size": 16, "num_patches": 16}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
    prepare = transformers.Siglip2ImageProcessor()
    Siglip2Processor(prepare, siglip_tokenizer()).save_pretrained(folder)


MAKE = {"clip": make_clip, "siglip": make_siglip, "siglip2": make_siglip2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each type. Weights are large, so that images and texts differ."""
    made = {}
    for name, make in MAKE.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp("towers") / name
        make(made[name])
    return made


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_vectors_are_those_of_transformers(name: str, folders: dict[str, Path], images: list[Image.Image]) -> None:
    """By its own processor and its own forward, all in one batch; texts padded as its pages say."""
    model: Any = transformers.AutoModel.from_pretrained(folders[name]).eval()
    processor: Any = transformers.AutoProcessor.from_pretrained(folders[name])
    padding = {"padding": True, "max_length": 24} if name == "clip" else {"padding": "max_length", "max_length": 64}
    with torch.inference_mode():
        theirs = model(**processor(images=images, text=TEXTS, return_tensors="pt", truncation=True, **padding))
    towers = unimm.load_towers(folders[name], "cpu")
    assert isinstance(towers, TwoTowers) and (towers.towers.logit_bias is None) == (name == "clip")
    assert np.abs(towers.embed_images(images) - theirs.image_embeds.numpy()).max() < 1e-5
    assert np.abs(towers.embed_texts(TEXTS) - theirs.text_embeds.numpy()).max() < 1e-5
    half = unimm.load_towers(folders[name], "cpu", "bfloat16").towers
    assert (half.logit_scale, half.logit_bias) == (towers.towers.logit_scale, towers.towers.logit_bias)
    logits = theirs.logits_per_image
    expected = logits.softmax(1) if name == "clip" else logits.sigmoid()
    found = [list(one.values()) for one in towers.classify(images, TEXTS, "{}")]
    assert np.abs(np.array(found) - expected.numpy()).max() < 1e-5


OPEN_CLIP = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("is_siglip", [False, True])
def test_vectors_are_those_of_open_clip(is_siglip: bool, tmp_path: Path, images: list[Image.Image]) -> None:
    torch.manual_seed(0)
    sizes = {**OPEN_CLIP, **({"init_logit_bias": -10.0, "custom_text": True} if is_siglip else {})}
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes/open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": {}}))
    fresh = open_clip.create_model(f"local-dir:{tmp_path / 'sizes'}")
    saved = tmp_path / "saved"
    saved.mkdir()
    save_file(fresh.state_dict(), saved / "open_clip_model.safetensors")
    prepared = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (saved / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": prepared}))
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{saved}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{saved}")
    model.eval()
    with torch.inference_mode():
        theirs = model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        their_texts = model.encode_text(tokenizer(TEXTS), normalize=True)
    towers = load_towers(saved, "cpu")
    assert (towers.towers.logit_bias is None) == (not is_siglip)
    assert np.abs(towers.embed_images(images) - theirs.numpy()).max() < 1e-5
    assert np.abs(towers.embed_texts(TEXTS) - their_texts.numpy()).max() < 1e-5
    half = load_towers(saved, "cpu", "bfloat16").towers
    assert (half.logit_scale, half.logit_bias) == (towers.towers.logit_scale, towers.towers.logit_bias)
    plain, special = towers.embed_texts(["red <end_of_text> circle", "red < end_of_text> circle"])
    assert np.array_equal(plain, special)


def test_no_text_becomes_a_special_token(folders: dict[str, Path]) -> None:
    """A text that ended early would be the text before it."""
    towers = load_towers(folders["clip"], "cpu")
    whole, start = towers.embed_texts(["red<|endoftext|>circle", "red"])
    assert np.abs(whole - start).max() > 1e-3


def test_a_fingerprint_is_of_the_weights_and_of_the_preparation(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = load_towers(folders["clip"], "cpu").towers.fingerprint
    assert plain == load_towers(folders["clip"], "cpu", "bfloat16").towers.fingerprint
    assert plain != load_towers(folders["siglip"], "cpu").towers.fingerprint
    other = tmp_path / "other"
    make_clip(other)  # other random weights
    assert plain != load_towers(other, "cpu").towers.fingerprint
    (other / "model.safetensors").write_bytes((folders["clip"] / "model.safetensors").read_bytes())
    assert plain == load_towers(other, "cpu").towers.fingerprint
    settings = sorted(other.glob("*processor*.json"))
    text = settings[0].read_text()
    assert '"image_mean"' in text
    settings[0].write_text(text.replace("0.48145466", "0.5"))
    assert plain != load_towers(other, "cpu").towers.fingerprint


def test_what_cannot_be_opened_is_one_sentence(folders: dict[str, Path], tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"load_towers, and by the commands"):
        unimm.load(folders["clip"])
    with pytest.raises(ValueError, match="no contrastive heads"):
        load_towers(tiny_folder)
    broken = tmp_path / "broken"
    make_clip(broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_towers(broken, "cpu")
    (broken / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
    weights.unlink()
    with pytest.raises(ValueError, match="no safetensors"):
        load_towers(broken, "cpu")


def test_lacking_weights_are_never_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    part = tmp_path / "part"
    make_clip(part)
    tensors = load_file(part / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 are missing \(visual_projection"):
        load_towers(part, "cpu")


def test_unit_vectors(folders: dict[str, Path], images: list[Image.Image]) -> None:
    found = torch.from_numpy(load_towers(folders["siglip"], "cpu").embed_images(images))
    assert torch.allclose(found, normalize(found, dim=1), atol=1e-6)
