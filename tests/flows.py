"""A tiny model that draws by a flow, with random weights, and the image tokenizer of its latents."""

from dataclasses import replace

import torch
from conftest import tiny_image_tokenizer, tiny_model, tiny_text_tokenizer

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.checkpoints.drawing_defaults import FlowDefaults
from unimm.data.records import LATENTS
from unimm.inference.engine import Engine
from unimm.models.image_tokenizer.gaussian import GaussianConfig
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.ports.latents import LatentsConfig
from unimm.models.unified import UnifiedModel
from unimm.runtime.counter_noise import normal

FLOW = LatentsConfig(channels=2, latent_size=8, patch_size=2, width=16, num_blocks=1)


def make_vae() -> ImageTokenizer:
    torch.manual_seed(1)
    return ImageTokenizer(ImageTokenizerConfig(16, 32, (1, 1), 1, 32, quantizer=GaussianConfig(2))).freeze()


def make_engine(codes: bool = True) -> Engine:
    """The tiny model, which draws by a flow, and by codes, too, or not."""
    tokenizer = tiny_text_tokenizer()
    config = replace(tiny_model(len(tokenizer)).config, ports={"latents": FLOW})
    torch.manual_seed(0)
    model = UnifiedModel(config if codes else replace(config, codes=None)).eval()
    with torch.no_grad():  # what begins at nothing says something
        for parameter in model.latents.parameters():
            parameter.add_(0.05 * normal(torch.tensor([parameter.numel()]), parameter.numel()).view(parameter.shape))
    tokenizers = {LATENTS: make_vae(), **({DEFAULT: tiny_image_tokenizer()} if codes else {})}
    return Engine(ModelBundle(model, tokenizers, tokenizer, flow=FlowDefaults(steps=4)))
