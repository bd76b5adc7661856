"""Checkpoints with random weights and true sizes: what a benchmark needs of a model, without a download."""

from pathlib import Path

import torch
from accelerate import init_empty_weights

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.text import SPECIAL_NAMES, train_byte_bpe
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.unified import UnifiedConfig, UnifiedModel

STD = 0.02


@torch.no_grad()
def write_random_checkpoint(
    folder: Path,
    config: UnifiedConfig,
    image_tokenizer: ImageTokenizerConfig,
    dtype: torch.dtype,
    seed: int = 0,
    device: torch.device | None = None,
) -> None:
    """A whole model folder: weights drawn from N(0, 0.02^2), a byte-level text tokenizer with Janus' special tokens.

    device: that draws the numbers [default: the CPU, half a minute for two billion].
    """
    generator = torch.Generator(device or "cpu").manual_seed(seed)
    with init_empty_weights(include_buffers=False):
        model = UnifiedModel(config)
    model.to(dtype).to_empty(device="cpu")
    tokenizer = ImageTokenizer(image_tokenizer).to(dtype).freeze()
    for parameter in [*model.parameters(), *tokenizer.parameters()]:
        drawn = torch.empty_like(parameter, device=generator.device).normal_(0.0, STD, generator=generator)
        parameter.copy_(drawn)
    text = train_byte_bpe([], 256 + len(SPECIAL_NAMES))
    ModelBundle(model, {DEFAULT: tokenizer}, text).save(folder)
