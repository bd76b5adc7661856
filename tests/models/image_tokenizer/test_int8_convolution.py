"""Integer convolutions give what the weights and maps give that they round to, and pictures hardly tell."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import unimm
from unimm.data.worlds.shapes import ShapesWorld
from unimm.inference import engine_parts
from unimm.inference.engine_parts import ImageCoder
from unimm.models.image_tokenizer import int8_convolution
from unimm.models.image_tokenizer.int8_convolution import (
    IntegerConv2d,
    IntegerUpsample,
    gains_from_integers,
    has_integer_convolutions,
    quantize,
    quantize_swish,
    with_integer_decoder,
)
from unimm.models.image_tokenizer.layers import GroupNorm, Upsample
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig
from unimm.native import library_beside

pytestmark = pytest.mark.skipif(not has_integer_convolutions(), reason="this processor has no integer convolutions")

DTYPES = (torch.float32, torch.bfloat16)


def make_map(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normal numbers (1, C, H, W), channels-last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def make_tokenizer(**words: int) -> ImageTokenizer:
    """A small one with random weights: 32 px, 64 codes."""
    torch.manual_seed(0)
    sizes = ImageTokenizerConfig(32, 32, (1, 2, 2), 1, 32, quantizer=QuantizerConfig(codebook_size=64), **words)  # pyright: ignore[reportArgumentType]
    return ImageTokenizer(sizes).eval()


def error(made: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square, in units of the exact one's."""
    return ((made.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (300.0, 0.0), (1e-3, 0.0), (1.0, 5.0), (1.0, -5.0), (0.0, 0.0), (0.0, 3.0), (0.0, -3.0)]
)
def test_levels_stay_in_their_byte_and_mean_the_numbers(dtype, scale, shift):
    """Also at both ends, where one step more would come round at the other end; 0 (a convolution's border) is a level."""
    x = (make_map(1, 16, 24, 24) * scale + shift).to(dtype)
    levels, step, zero = quantize(x)
    assert levels.dtype == torch.uint8 and 0 <= zero <= 255
    meant = (levels.double() - zero) * step
    # Half a step, and what bfloat16 rounds away of up to 252 steps: another half for the product and one for the sum.
    off = 0.51 if dtype == torch.float32 else 1.51
    assert (meant - x.double()).abs().max() <= off * step
    least, largest = min(0.0, x.min().item()), max(0.0, x.max().item())
    assert step == pytest.approx(max(largest - least, 1e-12) / 252)


@pytest.fixture(params=[True, False], ids=["own kernel", "no compiler"])
def has_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether our own kernel can be had."""
    library_beside.cache_clear()
    if not request.param:
        monkeypatch.setenv("CXX", "no-such-compiler")
    yield library_beside(int8_convolution.__file__, "slow") is not None
    library_beside.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0.0, 30.0, -3.0, None], ids=["around 0", "large", "small", "constant"])
@pytest.mark.parametrize("size", [(3, 5), (40, 41)])
def test_levels_of_norm_and_swish_mean_their_numbers(has_compiler, dtype, shift, size):
    """To half a step, and what bfloat16 rounds where PyTorch works; the range is used up to where the numbers are."""
    norm = GroupNorm(4, 48, eps=1e-6).to(dtype)
    norm.weight.data, bias = (torch.randn(2, 48, generator=torch.Generator().manual_seed(1))).to(dtype)
    norm.bias.data = bias + (shift or 0.0)
    x = torch.full((1, 48, *size), 3.0, dtype=dtype) if shift is None else make_map(1, 48, *size, dtype=dtype) * 5 + 2
    x = x.contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    with torch.inference_mode():
        levels, step, zero = quantize_swish(norm, x)
        exact = F.silu(F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps))
    assert levels.dtype == torch.uint8 and torch.equal(x, kept)
    least, largest = min(0.0, exact.min().item()), max(0.0, exact.max().item())
    off = 0.55 if has_compiler or dtype == torch.float32 else 3.0
    assert step == pytest.approx((largest - least) / 252, rel=1e-3 if has_compiler or dtype == torch.float32 else 2e-2)
    assert (((levels.double() - zero) * step - exact).abs().max() <= off * step).item()


def test_what_is_not_finite_is_refused(has_compiler):
    """Else it would become a picture like any other."""
    norm, x = GroupNorm(4, 48, eps=1e-6), make_map(1, 48, 9, 9)
    x[0, 3, 2, 2] = float("nan")
    with torch.inference_mode(), pytest.raises(ValueError, match="not finite"):
        quantize_swish(norm, x)
    with pytest.raises(ValueError, match="not finite"):
        quantize(make_map(1, 16, 9, 9) + float("inf"))


def test_order_of_channels_in_memory_and_odd_numbers_of_them_are_seen():
    """What the kernel does not take goes another way, to the same levels."""
    norm, x = GroupNorm(4, 40, eps=1e-6), make_map(1, 40, 9, 9)
    assert torch.equal(quantize_swish(norm, x)[0], quantize(F.silu(norm(x)))[0])
    norm, x = GroupNorm(4, 32, eps=1e-6), torch.randn(1, 32, 9, 9)
    assert torch.equal(quantize_swish(norm, x)[0], quantize(F.silu(norm(x)))[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "num_outputs", "side", "size"), [(3, 5, 7, 3), (32, 32, 16, 3), (64, 3, 9, 3), (16, 8, 6, 2)]
)
def test_is_the_convolution_of_rounded_numbers(dtype, channels, num_outputs, side, size):
    x = F.silu(make_map(1, channels, side, side + 1, dtype=dtype))
    weight, bias = make_map(num_outputs, channels, size, size, seed=1), torch.randn(num_outputs)
    kept = x.clone()
    made = IntegerConv2d(weight, bias, padding=1)(x)
    assert made.dtype == dtype and torch.equal(x, kept)
    levels, step, zero = quantize(x)
    scales = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    rounded = (weight / scales).round().double() * scales.double()
    exact = F.conv2d((levels.double() - zero) * step, rounded, bias.double(), padding=1)
    assert error(made, exact) < (1e-6 if dtype == torch.float32 else 3e-3)  # the border's zeros, too, are exact
    assert error(made, F.conv2d(x.double(), weight.double(), bias.double(), padding=1)) < 0.015


def test_upsample_and_no_bias():
    upsample, x = Upsample(32), make_map(1, 32, 12, 10)
    with torch.inference_mode():
        made, exact = IntegerUpsample(upsample)(x), upsample(x)
    assert made.shape == (1, 32, 24, 20) and made.is_contiguous(memory_format=torch.channels_last)
    assert error(made, exact.double()) < 0.015
    weight = make_map(4, 32, 3, 3)
    without, zero = IntegerConv2d(weight, None, padding=1)(x), IntegerConv2d(weight, torch.zeros(4), padding=1)(x)
    assert torch.equal(without, zero)


def test_several_images_are_refused():
    with pytest.raises(ValueError, match="one image at a time, not 2"):
        IntegerConv2d(make_map(4, 8, 3, 3), None, padding=1)(make_map(2, 8, 5, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decoder_in_integers(dtype):
    """Near the plain one; every 3x3 convolution is replaced, nothing of the given tokenizer is changed or copied."""
    tokenizer = make_tokenizer().to(dtype)
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    twin = with_integer_decoder(tokenizer)
    codes = torch.randint(0, 64, (1, 64), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        plain, made = tokenizer.decode(codes), twin.decode(codes)
        assert torch.equal(tokenizer.decode(codes), plain) and torch.equal(twin.decode(codes), made)
    assert made.dtype == dtype and 0 < error(made, plain.double()) < 0.1  # nothing averages out here
    left = [module.kernel_size for module in twin.decoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert set(left) == {(1, 1)}
    given = {id(tensor) for tensor in tokenizer.parameters()}
    assert all(id(tensor) in given for tensor in twin.parameters())
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_who_gains(monkeypatch):
    """Wide ones on a CPU that has the products, in the dtypes that they have; `int8` alone asks for them."""
    narrow, wide = make_tokenizer(), make_tokenizer()
    assert not gains_from_integers(narrow)
    monkeypatch.setattr(int8_convolution, "WIDE", 32)
    assert gains_from_integers(wide) and gains_from_integers(make_tokenizer().bfloat16())
    assert not gains_from_integers(make_tokenizer().half()) and not gains_from_integers(make_tokenizer().to("meta"))
    made = []
    monkeypatch.setattr(engine_parts, "with_integer_decoder", lambda given: made.append(given) or with_integer_decoder(given))
    for weights in (None, "int4"):
        ImageCoder(wide, weights=weights)
    assert not made
    ImageCoder(wide, weights="int8")
    assert made == [wide]
    monkeypatch.setattr(int8_convolution, "has_integer_convolutions", lambda: False)
    assert not gains_from_integers(wide)


def test_where_sums_overflow_there_are_none():
    """The processor has VNNI, but oneDNN is kept from it: it would go on with sums of 16 bits, and pictures be wrong."""
    code = "from unimm.models.image_tokenizer.int8_convolution import has_integer_convolutions as has; print(has())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said.stdout.strip() == "False", said.stderr


def test_an_image_does_not_hang_on_its_company(monkeypatch):
    monkeypatch.setattr(int8_convolution, "WIDE", 32)
    coder = ImageCoder(make_tokenizer().bfloat16(), weights="int8")
    codes = torch.randint(0, 64, (3, 64), generator=torch.Generator().manual_seed(3))
    together = coder.decode(codes)
    assert len({image.tobytes() for image in together}) == 3
    assert [coder.decode(one)[0].tobytes() for one in codes] == [image.tobytes() for image in together]


def test_pictures_hardly_tell():
    """What the shipped tokenizer makes of pictures it never saw, in integers: near its own, and as near to the pictures."""
    engine = unimm.load("demo", device="cpu")
    world = ShapesWorld(num_records=16, seed=5)
    pictures = [world[index].image for index in range(16)]
    codes = engine.coder.encode(pictures)  # pyright: ignore[reportArgumentType]
    twin = with_integer_decoder(engine.image_tokenizer)
    with torch.inference_mode():
        made = torch.cat([twin.decode(one[None]) for one in codes]).clamp(-1, 1)
        plain = engine.image_tokenizer.decode(codes).clamp(-1, 1)
    true = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1  # pyright: ignore[reportCallIssue, reportArgumentType]
    psnr = {name: 10 * torch.log10(4 / (image - other).square().mean()).item() for name, image, other in [
        ("own", plain, true), ("integers", made, true), ("between", made, plain)]}  # fmt: skip
    assert psnr["own"] > 33 and psnr["integers"] > psnr["own"] - 1 and psnr["between"] > 42
