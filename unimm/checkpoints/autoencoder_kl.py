"""Stable Diffusion's and SDXL's autoencoders, as `diffusers` writes them (`AutoencoderKL`), as image tokenizers with latents.
Read, never written. JanusFlow draws with SDXL's ("stabilityai/sdxl-vae").

The networks are ours, with other names, and maps of 1 x 1 in attention may be stored as matrices, under the names of today's
diffusers or of before. Its scaling factor is the inverse of the standard deviation that latents are scaled by, its shift factor
their mean. They work at any size, so the reader says which.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimm.checkpoints.weight_files import SafetensorFiles, empty_parameters, find_folder, read_config
from unimm.models.image_tokenizer.blocks import NUM_GROUPS
from unimm.models.image_tokenizer.gaussian import GaussianConfig, GaussianQuantizer
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig

CLASS = "AutoencoderKL"
WEIGHTS = "diffusion_pytorch_model.safetensors"
KL_WEIGHT = 1e-6 * (4 / 64) / 3
"""LDM's (arXiv 2112.10752), as we count it, where it is trained on."""

NAMES = (
    (r"(en|de)coder\.conv_norm_out", r"\1coder.norm_out"),
    (r"coder\.mid_block\.resnets\.0\.", "coder.mid.block_1."),
    (r"coder\.mid_block\.resnets\.1\.", "coder.mid.block_2."),
    (r"coder\.mid_block\.attentions\.0\.(group_norm)", "coder.mid.attn_1.norm"),
    (r"coder\.mid_block\.attentions\.0\.(to_out\.0|proj_attn)", "coder.mid.attn_1.proj_out"),
    (r"coder\.mid_block\.attentions\.0\.(to_q|query)", "coder.mid.attn_1.q"),
    (r"coder\.mid_block\.attentions\.0\.(to_k|key)", "coder.mid.attn_1.k"),
    (r"coder\.mid_block\.attentions\.0\.(to_v|value)", "coder.mid.attn_1.v"),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2"),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv", r"encoder.down.\1.downsample.conv"),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)", r"decoder.up.\1.block.\2"),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.conv", r"decoder.up.\1.upsample.conv"),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)
"""Of a name in the file, and what each becomes."""


def is_autoencoder_kl(source: str | Path) -> bool:
    """Whether a local folder holds such an autoencoder."""
    path = Path(source).expanduser()
    return (path / WEIGHTS).is_file() and read_config(path).get("_class_name") == CLASS


def load_autoencoder_kl(source: str | Path, image_size: int) -> ImageTokenizer:
    """Such an autoencoder of a folder, for images of this size, frozen, in float32.

    Raises:
        ValueError: there is none, it is of a form that unimm does not have, or its weights do not fit its config.
    """
    folder = find_folder(source)
    config = read_sizes(read_config(folder), image_size)
    settings, files = read_config(folder), SafetensorFiles(folder, torch.device("cpu"), [folder / WEIGHTS])
    with empty_parameters():
        tokenizer = ImageTokenizer(config, learns=False)
    own = dict(tokenizer.named_parameters())
    theirs = {own_name(name): name for name in files.shapes}
    found = {name: files.shapes[theirs[name]] for name in theirs}
    expected = {name: _stored_shape(tuple(tensor.shape), found.get(name)) for name, tensor in own.items()}
    files.shapes = found
    files.check(expected)
    state: dict[str, Tensor] = {name: files.read(theirs[name]).float().reshape(own[name].shape) for name in own}
    tokenizer.load_state_dict(state, strict=False, assign=True)
    tokenizer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert isinstance(tokenizer.quantize, GaussianQuantizer)
    ones = torch.ones(config.code_dim)
    scale, shift = float(settings.get("scaling_factor") or 1.0), float(settings.get("shift_factor") or 0.0)
    tokenizer.quantize.set_statistics(shift * ones, ones / scale)
    return tokenizer.freeze()


def read_sizes(settings: Mapping[str, Any], image_size: int) -> ImageTokenizerConfig:
    """The sizes that its config.json says, for images of this size. ValueError: it is of a form that unimm does not have."""
    if settings.get("_class_name") != CLASS:
        raise ValueError(f"This config.json is of {settings.get('_class_name')!r}, not of diffusers' {CLASS}.")
    channels, blocks = [int(one) for one in settings["block_out_channels"]], int(settings.get("layers_per_block", 1))
    wanted = {
        "act_fn": "silu",
        "norm_num_groups": NUM_GROUPS,
        "in_channels": 3,
        "out_channels": 3,
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }
    others = [f"{name} {settings[name]!r}" for name, value in wanted.items() if settings.get(name, value) != value]
    if others or any(one % channels[0] for one in channels):
        what = ", ".join(others) or f"channels {channels}"
        raise ValueError(f"unimm has no autoencoder with {what}: it reads those of Stable Diffusion and SDXL.")
    latents = int(settings.get("latent_channels", 4))
    return ImageTokenizerConfig(
        image_size,
        channels[0],
        tuple(one // channels[0] for one in channels),
        blocks,
        latents,
        quantizer=GaussianConfig(latents, KL_WEIGHT),
        coarsest_attends=False,
    )


def own_name(name: str) -> str:
    """Our name of a tensor of such a file."""
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _stored_shape(own: tuple[int, ...], stored: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that a tensor has in the file: a map of 1 x 1 may be a matrix there."""
    return own[:2] if stored is not None and own[2:] == (1, 1) and stored == own[:2] else own
