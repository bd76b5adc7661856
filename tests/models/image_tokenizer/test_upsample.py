"""Doubling and convolving from the small map is doubling and then convolving, edges and all; under autograd nothing changes."""

import pytest
import torch
import torch.nn.functional as F

from unimm.models.image_tokenizer import layers
from unimm.models.image_tokenizer.layers import Upsample, convolve_doubled, parity_weights
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig


def make_case(height: int, width: int, channels: int = 8, num_outputs: int = 8) -> tuple[torch.Tensor, ...]:
    """x (2, C, H, W) channels-last, weight (K, C, 3, 3), bias (K,), float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, channels, height, width), (num_outputs, channels, 3, 3), (num_outputs,)]
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def double_then_convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (3, 2), (7, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_is_exact_at_every_size(height, width, dtype):
    x, weight, bias = (tensor.to(dtype) for tensor in make_case(height, width, num_outputs=6))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    fast = convolve_doubled(x, weight, bias)
    torch.testing.assert_close(fast, double_then_convolve(x, weight, bias), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        convolve_doubled(x, weight, None), double_then_convolve(x, weight, None), atol=tolerance, rtol=tolerance
    )
    assert fast.is_contiguous(memory_format=torch.channels_last)  # else every operation after it would copy


def test_weights_of_a_parity_add_up_to_the_kernel():
    _, weight, _ = make_case(1, 1)
    sums = parity_weights(weight).unflatten(0, (4, -1)).sum((-2, -1))
    torch.testing.assert_close(sums, weight.sum((-2, -1)).expand(4, -1, -1))


def test_bfloat16_errs_as_a_rounding_does():
    """Weights are rounded once more, and nothing else is: the error stays within twice that of the plain way."""
    x, weight, bias = (tensor.bfloat16() for tensor in make_case(24, 24, 64, 64))
    exact = double_then_convolve(x.double(), weight.double(), bias.double())
    errors = [
        (made.double() - exact).square().mean().sqrt() / exact.std()
        for made in (double_then_convolve(x, weight, bias), convolve_doubled(x, weight, bias))
    ]
    assert errors[0] < 0.003 and errors[1] < 2 * errors[0]


def test_only_large_maps_without_autograd_take_it(monkeypatch):
    taken = []
    monkeypatch.setattr(layers, "convolve_doubled", lambda *given: taken.append(given) or convolve_doubled(*given))
    block = Upsample(8)
    for side, grad, takes in [(24, False, True), (23, False, False), (24, True, False)]:
        taken.clear()
        with torch.set_grad_enabled(grad):
            x = torch.randn(1, 8, side, side, requires_grad=grad)
            made = block(x)
        assert bool(taken) == takes
        torch.testing.assert_close(made, double_then_convolve(x, block.conv.weight, block.conv.bias), atol=1e-5, rtol=1e-5)
        assert made.requires_grad == grad


def test_decoder_is_the_same_with_and_without_autograd(monkeypatch):
    """The tokenizer's own decode: fast in inference, plain where it learns, nobody's inputs or weights changed."""
    monkeypatch.setattr(layers, "SMALL_MAP", 0)
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(
        ImageTokenizerConfig(32, 32, (1, 2, 2), 1, 32, quantizer=QuantizerConfig(codebook_size=64))
    ).eval()
    codes, latents = torch.randint(0, 64, (2, 64)), torch.randn(2, 64, 8)
    before = [tensor.clone() for tensor in (latents, *tokenizer.state_dict().values())]
    plain = tokenizer.decode(codes)
    assert plain.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(tokenizer.decode(codes), plain, atol=1e-5, rtol=1e-5)
        first, again = tokenizer.decode_latents(latents), tokenizer.decode_latents(latents)
        pixels = torch.rand(2, 3, 32, 32)
        kept = pixels.clone()
        tokenizer.encode(pixels)
    assert torch.equal(first, again) and torch.equal(pixels, kept)
    for tensor, old in zip((latents, *tokenizer.state_dict().values()), before, strict=True):
        assert torch.equal(tensor, old)
