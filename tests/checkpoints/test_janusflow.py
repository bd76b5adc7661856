"""DeepSeek's JanusFlow opens here with an autoencoder beside it: names and sizes at true size, and a tiny one whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_text_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from unimm.checkpoints import deepseek_config
from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.image_tokenizer_folder import load_image_tokenizer, save_image_tokenizer
from unimm.checkpoints.janusflow import BEGIN, is_janusflow, load_janusflow, read_sizes
from unimm.checkpoints.weight_names import JANUSFLOW
from unimm.cli.app import app
from unimm.cli.compose import build, compose_config
from unimm.inference.engine import Engine
from unimm.models.image_tokenizer.gaussian import GaussianConfig
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind

FLOW_1B: dict[str, Any] = {
    "model_type": "multi_modality",
    "language_config": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": 102400,
    },
    "vision_und_enc_config": {
        "cls": "CLIPVisionTower",
        "params": {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1},
    },
    "vision_gen_enc_config": {
        "cls": "ShallowUViTEncoder",
        "params": {
            "block_out_channels": [768],
            "hidden_size": 2048,
            "input_channels": 4,
            "kernel_size": 2,
            "layers_in_middle": 2,
            "stride": 2,
        },
    },
    "vision_gen_dec_config": {
        "cls": "ShallowUViTDecoder",
        "params": {"block_out_channels": [768], "hidden_size": 2048, "layers_in_middle": 2, "out_channels": 4, "upsamples": 1},
    },
}


def tiny_config(vocabulary: int, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    tower = {"patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 4.0}
    patch.setitem(deepseek_config.TOWERS, "siglip_tiny", tower)
    config = json.loads(json.dumps(FLOW_1B))
    config["language_config"] |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config["language_config"] |= {"num_key_value_heads": 4, "vocab_size": vocabulary, "max_position_embeddings": 512}
    config["vision_und_enc_config"]["params"] |= {"image_size": 64, "model_name": "siglip_tiny"}
    for name in ("vision_gen_enc_config", "vision_gen_dec_config"):
        config[name]["params"] |= {"block_out_channels": [32], "hidden_size": 64, "layers_in_middle": 1}
    return config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny one with random weights under JanusFlow's names, and an autoencoder beside it, vae/."""
    tokenizer = tiny_text_tokenizer()
    config = tiny_config(len(tokenizer), monkeypatch)
    torch.manual_seed(0)
    model = UnifiedModel(read_sizes(config))
    weights: dict[str, Tensor] = {BEGIN: torch.randn(1, 64), "language_model.model.rotary_emb.inv_freq": torch.ones(8)}
    for name, tensor in model.state_dict().items():
        (theirs,) = JANUSFLOW.entries(name, tuple(tensor.shape))
        weights[theirs] = 0.2 * torch.randn_like(tensor)
    (tmp_path / "flow").mkdir()
    save_file(weights, tmp_path / "flow/model.safetensors")
    (tmp_path / "flow/config.json").write_text(json.dumps(config))
    tokenizer.save(tmp_path / "flow")
    vae = ImageTokenizerConfig(64, 32, (1, 1, 1, 1), 1, 32, quantizer=GaussianConfig(4))
    save_image_tokenizer(tmp_path / "vae", ImageTokenizer(vae).freeze())
    return tmp_path


def test_the_released_one_has_our_names_and_sizes() -> None:
    """JanusFlow-1.3B, as its own modules are (modeling_vlm.py); of the layers of a kind the first and the last."""
    sizes = read_sizes(FLOW_1B)
    with torch.device("meta"):
        model = UnifiedModel(sizes)
    theirs = {k: s for name, t in model.state_dict().items() for k, s in JANUSFLOW.entries(name, tuple(t.shape)).items()}
    for name, shape in {
        "language_model.model.embed_tokens.weight": (102400, 2048),
        "language_model.lm_head.weight": (102400, 2048),
        "language_model.model.layers.23.mlp.gate_proj.weight": (5632, 2048),
        "vision_und_enc_model.vision_tower.blocks.23.attn.qkv.weight": (3072, 1024),
        "vision_und_enc_model.vision_tower.patch_embed.proj.weight": (1024, 3, 16, 16),
        "vision_und_enc_aligner.weight": (2048, 1024),
        "vision_und_enc_aligner.bias": (2048,),
        "vision_gen_enc_model.in_conv.weight": (768, 4, 2, 2),
        "vision_gen_enc_model.mid_block.res_blocks.1.cond_embeds_mapper.weight": (1536, 2048),
        "vision_gen_enc_aligner.weight": (2048, 768),
        "vision_gen_dec_aligner_norm.weight": (2048,),
        "vision_gen_dec_aligner.weight": (768, 2048),
        "vision_gen_dec_model.out_convs.0.unpatch_conv.weight": (16, 1536, 1, 1),
    }.items():
        assert theirs[name] == shape, name
    starts = {name.split(".")[0] for name in theirs}
    assert len(starts) == 8 and all(name.startswith(("language_model", "vision_")) for name in starts)
    composed = build(compose_config("train", ["model=janus_flow_1b", "codes=x", "image_tokenizer=x"]).model)
    assert composed.ports["latents"] == replace(sizes.ports["latents"], hides_null_prompt=False)
    assert (composed.vision, composed.projector, composed.codes) == (sizes.vision, sizes.projector, None)


def test_it_is_converted_once_and_then_opens(folder: Path) -> None:
    words = ["convert", str(folder / "flow"), str(folder / "out")]
    assert "lacks the autoencoder that it draws with" in CliRunner().invoke(app, words).stderr
    result = CliRunner().invoke(app, [*words, "--latents-tokenizer", str(folder / "vae")])
    assert result.exit_code == 0, result.output
    with pytest.raises(ValueError, match=r"is a JanusFlow, and its folder lacks the autoencoder"):
        ModelBundle.load(folder / "flow")
    bundle = ModelBundle.load(folder / "out")
    assert bundle.drawing_ways == ("latents",) and bundle.latents_port is not None
    assert bundle.latents_port.config.hides_null_prompt and bundle.flow.guidance_scale == 2.0
    (image,) = Engine(bundle).generate_images("red", steps=2)
    assert image.size == (64, 64)
    assert Engine(bundle).answer(image, "What?", max_new_tokens=2)


def test_what_an_image_begins_with_is_its_own_parameter(folder: Path) -> None:
    bundle = load_janusflow(folder / "flow", load_image_tokenizer(folder / "vae"))
    files, begin = load_file(folder / "flow/model.safetensors"), bundle.tokenizer.special.begin_of_image
    rows = bundle.model.text.embedding.weight
    assert torch.equal(rows[begin], files[BEGIN][0])
    others = torch.arange(len(rows)) != begin
    assert torch.equal(rows[others], files["language_model.model.embed_tokens.weight"][others])


def test_its_null_prompt_is_hidden_from_the_image(folder: Path) -> None:
    """So what stands there instead of the prompt's words does not matter; to a model that reads pads it does."""
    bundle = load_janusflow(folder / "flow", load_image_tokenizer(folder / "vae"))
    port = bundle.model.predicted_ports[Kind.LATENTS]
    for hides in (True, False):
        port.config = replace(port.config, hides_null_prompt=hides)
        drawn = []
        for value in (0.0, 3.0):
            with torch.no_grad():
                bundle.model.text.embedding.weight[bundle.tokenizer.special.pad] = value
            (request,) = Engine(bundle)._requests("a blue square", 1, 0, {"steps": 2, "guidance_scale": 3.0})
            drawn.append(torch.from_numpy(Engine(bundle).decoder.fill([request])[0]))
        assert torch.allclose(*drawn, atol=1e-5) is hides


def test_what_it_has_not_is_refused() -> None:
    assert is_janusflow(FLOW_1B) and not is_janusflow({"model_type": "multi_modality"})
    for section, change, match in (
        ("vision_gen_enc_config", {"block_out_channels": [320, 640]}, "adapters of one level of patches"),
        ("vision_gen_enc_config", {"hidden_size": 1024}, "hidden_size of the flow's adapters is 1024, not 2048"),
        ("vision_gen_dec_config", {"upsamples": 2}, "adapters that double once, not 2 times"),
    ):
        config = json.loads(json.dumps(FLOW_1B))
        config[section]["params"] |= change
        with pytest.raises(ValueError, match=match):
            read_sizes(config)
    with pytest.raises(ValueError, match="lacks vision_gen_dec_config"):
        read_sizes({name: part for name, part in FLOW_1B.items() if name != "vision_gen_dec_config"})
