"""Convolutions of an image tokenizer's decoder in integers of 8 bits, for CPUs: each in half the time of bfloat16.

oneDNN multiplies them four at a time (VNNI, AMX). Weights have a scale an output channel; every map has a scale and a zero of
its own, taken from its values as they come, so nothing needs to be calibrated. Maps are bytes without a sign: what comes out
of swish is never below -0.28, and hardly a level is lost to negative numbers that do not occur.
"""

import copy
from functools import cache

import torch
from torch import nn

from unimm.models.image_tokenizer import ImageTokenizer
from unimm.models.upsample import Upsample, join_parities, parity_weights

WIDE = 128
"""Channels of the finest level from which integers are faster: with fewer, what is done around the products costs more."""

STEPS = 252
"""Between the least and the largest value of a map: of 255, one at either end is for what bfloat16 rounds away."""

MIDDLE = 128


class IntegerConv2d(nn.Module):
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
        if len(x_1CHW) != 1:
            raise ValueError(f"Integer convolutions take one image at a time, not {len(x_1CHW)}.")
        levels, scale, zero = quantize(x_1CHW)
        weight = (self.packed, self.scale_K, self.zero_K, self.bias_K)
        shape = ([1, 1], self.padding, [1, 1], 1)  # stride, padding, dilation, groups
        output = (1.0, 0, x_1CHW.dtype, "none", [], "")  # scale, zero, dtype; nothing after it
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
    low, high = min(0.0, least.item()), max(0.0, largest.item())
    scale = max(high - low, 1e-12) / STEPS
    zero = 1 + round(-low / scale)
    # PyTorch narrows to int8 four times faster than to uint8: shifted by half the range, and back by the highest bit.
    levels = torch.add(x.new_tensor(zero - MIDDLE), x, alpha=1 / scale).round_().to(torch.int8)
    return levels.bitwise_xor_(-MIDDLE).view(torch.uint8), scale, zero


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
    if not torch.backends.mkldnn.is_available() or not torch.cpu._is_vnni_supported():
        return False
    return hasattr(torch.ops.onednn, "qconv2d_pointwise") and hasattr(torch.ops.onednn, "qconv_prepack")
