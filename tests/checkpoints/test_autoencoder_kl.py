"""Autoencoders as diffusers writes them: every name and size of SDXL's at true size, and a small one read as a tokenizer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from unimm.checkpoints.autoencoder_kl import WEIGHTS, is_autoencoder_kl, load_autoencoder_kl, own_name, read_sizes
from unimm.checkpoints.image_tokenizer_folder import load_image_tokenizer
from unimm.cli.app import app
from unimm.models.image_tokenizer.model import ImageTokenizer

Shapes = dict[str, tuple[int, ...]]

SETTINGS = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 64],
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "out_channels": 3,
    "scaling_factor": 0.13025,
}
SDXL = {**SETTINGS, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}


def conv(name: str, wide_in: int, wide_out: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (wide_out, wide_in, size, size), f"{name}.bias": (wide_out,)}


def vector(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def resnet(name: str, wide_in: int, wide_out: int) -> Shapes:
    shapes = {**vector(f"{name}.norm1", wide_in), **conv(f"{name}.conv1", wide_in, wide_out)}
    shapes |= {**vector(f"{name}.norm2", wide_out), **conv(f"{name}.conv2", wide_out, wide_out)}
    return shapes if wide_in == wide_out else {**shapes, **conv(f"{name}.conv_shortcut", wide_in, wide_out, 1)}


def middle(name: str, width: int, old: bool) -> Shapes:
    shapes = {**resnet(f"{name}.resnets.0", width, width), **resnet(f"{name}.resnets.1", width, width)}
    attention = f"{name}.attentions.0"
    names = ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0")
    shapes |= vector(f"{attention}.group_norm", width)
    for one in names:
        shapes |= {f"{attention}.{one}.weight": (width, width), f"{attention}.{one}.bias": (width,)}
    return shapes


def file_shapes(settings: dict, old: bool = False) -> Shapes:
    """What diffusers' AutoencoderKL holds (models/autoencoders/vae.py)."""
    channels, blocks, latents = settings["block_out_channels"], settings["layers_per_block"], settings["latent_channels"]
    shapes = {**conv("encoder.conv_in", 3, channels[0]), **middle("encoder.mid_block", channels[-1], old)}
    wide = channels[0]
    for level, width in enumerate(channels):
        for block in range(blocks):
            shapes |= resnet(f"encoder.down_blocks.{level}.resnets.{block}", wide, width)
            wide = width
        if level < len(channels) - 1:
            shapes |= conv(f"encoder.down_blocks.{level}.downsamplers.0.conv", width, width)
    shapes |= {**vector("encoder.conv_norm_out", wide), **conv("encoder.conv_out", wide, 2 * latents)}
    shapes |= {**conv("decoder.conv_in", latents, wide), **middle("decoder.mid_block", wide, old)}
    for level, width in enumerate(reversed(channels)):
        for block in range(blocks + 1):
            shapes |= resnet(f"decoder.up_blocks.{level}.resnets.{block}", wide, width)
            wide = width
        if level < len(channels) - 1:
            shapes |= conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", width, width)
    shapes |= {**vector("decoder.conv_norm_out", wide), **conv("decoder.conv_out", wide, 3)}
    return {**shapes, **conv("quant_conv", 2 * latents, 2 * latents, 1), **conv("post_quant_conv", latents, latents, 1)}


def write(folder: Path, settings: dict, old: bool = False) -> dict[str, torch.Tensor]:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in file_shapes(settings, old).items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(settings))
    return tensors


@pytest.mark.parametrize("old", [False, True])
def test_sdxls_names_and_sizes_are_ours(old: bool) -> None:
    with torch.device("meta"):
        own = {name: tuple(one.shape) for name, one in ImageTokenizer(read_sizes(SDXL, 384)).named_parameters()}
    theirs = {own_name(name): shape for name, shape in file_shapes(SDXL, old).items()}
    assert theirs.keys() == own.keys() and len(own) == 248
    assert all(own[name] in (shape, (*shape, 1, 1)) for name, shape in theirs.items())


def test_one_is_read_and_converted(tmp_path: Path) -> None:
    tensors = write(tmp_path / "vae", SETTINGS, old=True)
    tokenizer = load_autoencoder_kl(tmp_path / "vae", 16)
    assert is_autoencoder_kl(tmp_path / "vae") and tokenizer.latent_shape == (4, 8, 8)
    query = tensors["encoder.mid_block.attentions.0.query.weight"]
    assert torch.equal(tokenizer.get_parameter("encoder.mid.attn_1.q.weight")[:, :, 0, 0], query)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    means = tokenizer.latents(pixels)[..., :4].transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(tokenizer.encode_latents(pixels), 0.13025 * means)
    words = ["convert", str(tmp_path / "vae"), str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--image-size", "16"])
    assert result.exit_code == 0, result.output
    again = load_image_tokenizer(tmp_path / "out")
    assert torch.equal(again.encode_latents(pixels), tokenizer.encode_latents(pixels))
    assert "say which one your images have" in CliRunner().invoke(app, words).stderr


def test_what_it_has_not_is_refused(tmp_path: Path) -> None:
    for change, match in (
        ({"act_fn": "gelu"}, "no autoencoder with act_fn 'gelu'"),
        ({"use_quant_conv": False}, "no autoencoder with use_quant_conv False"),
        ({"block_out_channels": [32, 48]}, r"no autoencoder with channels \[32, 48\]"),
        ({"_class_name": "AutoencoderDC"}, "not of diffusers' AutoencoderKL"),
    ):
        with pytest.raises(ValueError, match=match):
            read_sizes({**SETTINGS, **change}, 16)
    write(tmp_path / "vae", SETTINGS)
    (tmp_path / "vae/config.json").write_text(json.dumps({**SETTINGS, "layers_per_block": 2}))
    with pytest.raises(ValueError, match="do not fit its config"):
        load_autoencoder_kl(tmp_path / "vae", 16)
