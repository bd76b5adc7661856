"""Convolutions of an image tokenizer's decoder in integers of 8 bits, for CPUs: each in half the time of bfloat16.

oneDNN multiplies them four at a time (VNNI, AMX). Weights have a scale an output channel; every map has a scale and a zero of
its own, taken from its values as they come, so nothing needs to be calibrated. Maps are bytes without a sign: what comes out
of swish is never below -0.28, and hardly a level is lost to negative numbers that do not occur.
"""

import copy
import ctypes
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from unimm.models.image_tokenizer.blocks import ConvolvesSwish
from unimm.models.image_tokenizer.layers import GroupNorm, Upsample, join_parities, parity_weights
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.native import library_beside
from unimm.runtime.devices import cpu_has_vnni

WIDE = 128
"""Channels of the finest level from which integers are faster: with fewer, what is done around the products costs more."""

STEPS = 252
"""Between the least and the largest value of a map: of 255, one at either end is for what bfloat16 rounds away."""

MIDDLE = 128

WIDEST_VECTOR = 16
"""Channels that our own kernel takes at once, at most."""


LEAST_SWISH_AT, LEAST_SWISH = -1.2784645, -0.2784646
"""Where x sigmoid(x) is least, and what it is there."""


class IntegerConv2d(ConvolvesSwish):
    """A convolution of stride 1: x (1, C, H, W) to (1, K, H', W') channels-last in x's dtype.

    One image at a time: with a scale for several, what becomes of one would depend on the others.
    """

    def __init__(self, weight_KCab: torch.Tensor, bias_K: torch.Tensor | None, padding: int) -> None:
        super().__init__()
        weight = weight_KCab.detach().float()
        self.scale_K = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        self.zero_K = torch.zeros(len(weight), dtype=torch.long)
        self.bias_K = None if bias_K is None else bias_K.detach().float()
        self.padding = [padding, padding]
        whole = (weight / self.scale_K[:, None, None, None]).round().to(torch.int8)
        # What is packed does not depend on the map's scale and zero, nor on its size: they are given with it.
        prepack = torch.ops.onednn.qconv_prepack
        self.packed = prepack(whole, self.scale_K, 1.0, MIDDLE, [1, 1], self.padding, [1, 1], 1, None)

    def forward(self, x_1CHW: torch.Tensor) -> torch.Tensor:
        return self._convolve(*quantize(x_1CHW), x_1CHW.dtype)

    def convolve_swish(self, norm: GroupNorm, x_NCHW: torch.Tensor) -> torch.Tensor:
        """What `forward` makes of swish(norm(x)), with two passes over the map before it instead of eight."""
        return self._convolve(*quantize_swish(norm, x_NCHW), x_NCHW.dtype)

    def _convolve(self, levels: torch.Tensor, scale: float, zero: int, dtype: torch.dtype) -> torch.Tensor:
        if len(levels) != 1:
            raise ValueError(f"Integer convolutions take one image at a time, not {len(levels)}.")
        weight = (self.packed, self.scale_K, self.zero_K, self.bias_K)
        shape = ([1, 1], self.padding, [1, 1], 1)  # stride, padding, dilation, groups
        output = (1.0, 0, dtype, "none", [], "")  # scale, zero, dtype; nothing after it
        return torch.ops.onednn.qconv2d_pointwise(levels, scale, zero, *weight, *shape, *output)


class IntegerUpsample(nn.Module):
    """`Upsample` in integers: all parities are one convolution of the small map."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        weight, bias = upsample.conv.weight.detach().float(), upsample.conv.bias
        self.conv = IntegerConv2d(parity_weights(weight), None if bias is None else bias.repeat(4), padding=1)

    def forward(self, x_1CHW: torch.Tensor) -> torch.Tensor:
        return join_parities(self.conv(x_1CHW))


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    """Levels uint8, scale and zero: x is about (levels - zero) * scale, to half a step, and 0 is exactly 0."""
    least, largest = x.permute(0, 2, 3, 1).aminmax()  # in the order of memory four times faster
    scale, zero = _scale(least.item(), largest.item())
    # PyTorch narrows to int8 four times faster than to uint8: shifted by half the range, and back by the highest bit.
    levels = torch.add(x.new_tensor(zero - MIDDLE), x, alpha=1 / scale).round_().to(torch.int8)
    return levels.bitwise_xor_(-MIDDLE).view(torch.uint8), scale, zero


def quantize_swish(norm: GroupNorm, x_NCHW: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    """What `quantize` gives of swish(norm(x)), by our own kernel (convolution.cpp), which rounds nothing before."""
    num_channels, count = x_NCHW.shape[1], x_NCHW.numel()
    is_its_own = num_channels % WIDEST_VECTOR == 0 and x_NCHW.device.type == "cpu" and type(x_NCHW) is torch.Tensor
    is_its_own = is_its_own and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    library = library_beside(__file__, "Codes to pixels take longer than they could") if is_its_own else None
    if library is None or len(x_NCHW) != 1 or x_NCHW.dtype not in (torch.bfloat16, torch.float32):
        return quantize(F.silu(norm(x_NCHW), inplace=not torch.is_grad_enabled()))
    is_bfloat16 = ctypes.c_bool(x_NCHW.dtype == torch.bfloat16)
    sizes = ctypes.c_long(count // num_channels), ctypes.c_long(num_channels)
    ends_2C, sums_2C = torch.empty(2, num_channels), torch.empty(2, num_channels, dtype=torch.float64)
    library.measure_channels(_at(x_NCHW), is_bfloat16, *sizes, *map(_at, (*ends_2C, *sums_2C)))
    mean_G, square_G = sums_2C.view(2, norm.num_groups, -1).sum(-1) * norm.num_groups / count
    slope_G = (square_G - mean_G**2).clamp(min=0).add(norm.eps).rsqrt()
    mean_C, slope_C = (each_G.repeat_interleave(num_channels // norm.num_groups) for each_G in (mean_G, slope_G))
    factor_C = norm.weight.double() * slope_C
    offset_C = norm.bias.double() - mean_C * factor_C
    ends_2C = ends_2C * factor_C + offset_C
    is_there = ((ends_2C.amin(0) < LEAST_SWISH_AT) & (ends_2C.amax(0) > LEAST_SWISH_AT)).any().item()
    swish_2C = F.silu(ends_2C)
    least = min(swish_2C.min().item(), LEAST_SWISH) if is_there else swish_2C.min().item()
    scale, zero = _scale(least, swish_2C.max().item())
    factor_C, offset_C, levels = factor_C.float(), offset_C.float(), torch.empty_like(x_NCHW, dtype=torch.uint8)
    step = ctypes.c_float(scale), ctypes.c_float(zero)
    library.swish_to_levels(_at(x_NCHW), is_bfloat16, *sizes, _at(factor_C), _at(offset_C), *step, _at(levels))
    return levels, scale, zero


def _scale(least: float, largest: float) -> tuple[float, int]:
    """Scale and zero of a map with such values: `STEPS` steps, and 0 is a whole one.

    Raises:
        ValueError: they are not finite.
    """
    if not math.isfinite(least + largest):
        raise ValueError("The image tokenizer's maps hold numbers that are not finite: its weights are damaged, or too large.")
    low, high = min(0.0, least), max(0.0, largest)
    scale = max(high - low, 1e-12) / STEPS
    return scale, 1 + round(-low / scale)


def _at(x: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def with_integer_decoder(tokenizer: ImageTokenizer) -> ImageTokenizer:
    """A tokenizer that decodes with integer convolutions, one image at a time; all its other tensors are the given one's."""
    shared = {id(tensor): tensor for tensor in (*tokenizer.parameters(), *tokenizer.buffers())}
    twin = copy.deepcopy(tokenizer, shared)
    for module in list(twin.decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Upsample):
                setattr(module, name, IntegerUpsample(child))
            elif isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3) and not isinstance(module, Upsample):
                setattr(module, name, IntegerConv2d(child.weight, child.bias, padding=1))
    return twin


def gains_from_integers(tokenizer: ImageTokenizer) -> bool:
    """Whether `with_integer_decoder` is faster where the tokenizer is."""
    weight = tokenizer.decoder.conv_in.weight
    fits = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32)
    return fits and tokenizer.config.base_channels >= WIDE and has_integer_convolutions()


@cache
def has_integer_convolutions() -> bool:
    """Whether this PyTorch and this processor have them, fast and exact (VNNI)."""
    if not torch.backends.mkldnn.is_available() or not cpu_has_vnni():
        return False
    return hasattr(torch.ops.onednn, "qconv2d_pointwise") and hasattr(torch.ops.onednn, "qconv_prepack") and _adds_exactly()


@torch.inference_mode()
def _adds_exactly() -> bool:
    """Whether the largest numbers add up. Where oneDNN is kept from VNNI (ONEDNN_MAX_CPU_ISA), sums of two products overflow
    and pictures are wrong without a word."""
    weight = torch.ones(16, 64, 3, 3)
    levels = torch.full((1, 64, 3, 3), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    made = IntegerConv2d(weight, None, padding=0)._convolve(levels, 1.0, 0, torch.float32)
    return torch.allclose(made, torch.full_like(made, 64.0 * 9 * 255), rtol=1e-5)
