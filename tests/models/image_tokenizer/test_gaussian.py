"""An image tokenizer with latents: only the quantizer differs, and what is stored and drawn has unit variance."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unimm.checkpoints.image_tokenizer_folder import fingerprint, load_image_tokenizer, save_image_tokenizer
from unimm.models.image_tokenizer.gaussian import GaussianConfig
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig

SIZES = ImageTokenizerConfig(
    16, 32, (1, 1, 1), num_res_blocks=1, latent_channels=32, quantizer=GaussianConfig(code_dim=3, kl_weight=0.5)
)


@pytest.fixture
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(SIZES).eval()


def pixels(num_images: int = 6) -> torch.Tensor:
    return torch.rand(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_training_draws_latents_and_evaluation_takes_their_mean(tokenizer: ImageTokenizer) -> None:
    said_NTD = tokenizer.latents(pixels())
    mean, log_variance = said_NTD.chunk(2, dim=-1)
    one, other = tokenizer.quantize(said_NTD), tokenizer.quantize(said_NTD)
    assert torch.equal(one.latents, mean) and torch.equal(other.latents, mean) and one.codes.shape == (6, 0)
    drawn = tokenizer.train().quantize(said_NTD.expand(3000, 6, 16, 6)[:, 0]).latents
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.12, rtol=0)
    torch.testing.assert_close(drawn.std(0), (0.5 * log_variance[0]).exp(), atol=0.1, rtol=0.1)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(one.loss, 0.5 * divergence)
    tokenizer(pixels()).quantizer_loss.backward()
    assert tokenizer.quant_conv.weight.grad is not None and tokenizer.quant_conv.weight.grad.abs().sum() > 0


def test_latents_have_unit_variance_and_are_drawn_as_they_were(tokenizer: ImageTokenizer) -> None:
    tokenizer.measure_latents(pixels(), batch_size=4)
    latents = tokenizer.encode_latents(pixels())
    assert latents.shape == (6, *tokenizer.latent_shape) == (6, 3, 4, 4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.draw_latents(latents), tokenizer(pixels()).pixels, atol=1e-4, rtol=0)


def test_it_is_saved_and_its_fingerprint_knows_the_statistics(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    before = fingerprint(tokenizer)
    tokenizer.measure_latents(pixels())
    save_image_tokenizer(tmp_path / "vae", tokenizer)
    again = load_image_tokenizer(tmp_path / "vae")
    assert again.config == SIZES and fingerprint(again) == fingerprint(tokenizer) != before
    assert torch.equal(again.encode_latents(pixels()), tokenizer.encode_latents(pixels()))
    half = again.to(torch.bfloat16)
    assert half.quantize.std.dtype == torch.float32 and half.decoder.conv_in.weight.dtype == torch.bfloat16


def test_codes_and_latents_are_not_mistaken_for_each_other(tokenizer: ImageTokenizer) -> None:
    codes = ImageTokenizer(replace(SIZES, quantizer=ImageTokenizerConfig().quantizer))
    for ask, match in (
        (lambda: tokenizer.encode(pixels()), "has latents, no codes"),
        (lambda: tokenizer.decode(torch.zeros(1, 16, dtype=torch.long)), "has latents, no codes"),
        (lambda: codes.encode_latents(pixels()), "has codes, no latents"),
        (lambda: tokenizer.draw_latents(torch.zeros(1, 4, 3, 4)), r"latents \(3, 4, 4\); \(1, 4, 3, 4\) are not"),
    ):
        with pytest.raises(ValueError, match=match):
            ask()


def test_sdxls_has_as_many_parameters_as_the_released_one() -> None:
    sizes = ImageTokenizerConfig(384, 128, (1, 2, 4, 4), 2, 4, quantizer=GaussianConfig(), coarsest_attends=False)
    with torch.device("meta"):
        tokenizer = ImageTokenizer(sizes)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 83_653_863
    assert tokenizer.latent_shape == (4, 48, 48)
