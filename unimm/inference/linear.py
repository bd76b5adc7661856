"""Linear layers for a few rows at a time, where reading the weights is all the time there is.

On a CPU, PyTorch rearranges the weights of a bfloat16 product at every call; `PackedLinear` does it once (oneDNN's own layout,
through the operators that torch.compile uses), and `Int8Linear` reads half the bytes. Everything else is `torch.nn.Linear`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Linear = Callable[[torch.Tensor], torch.Tensor]

ROWS = 16
"""The number of rows that weights are packed for; others work too."""


class PackedLinear:
    """weight (O, I), bias (O,) or None, packed once; x (R, I) -> (R, O)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Int8Linear:
    """weight (O, I) as int8 with a scale a row; x (R, I) bfloat16 -> (R, O)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        weight = weight.detach().float()
        scale_O = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.weight = (weight / scale_O[:, None]).round().to(torch.int8)
        self.scale = scale_O.to(torch.bfloat16)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scale)
        return out if self.bias is None else out + self.bias


def make_linear(layers: list[nn.Linear], int8: bool = False) -> Linear:
    """Linear layers that read the same input as one: x (R, I) -> (R, O1 + O2 + ...), as fast as the device has it."""
    weight = torch.cat([layer.weight.detach() for layer in layers]) if len(layers) > 1 else layers[0].weight.detach()
    biases = [layer.bias for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers)), "either all of them have a bias or none"
    bias = torch.cat([one.detach() for one in biases]) if biases else None
    if int8:
        return Int8Linear(weight, bias)
    if weight.device.type == "cpu" and can_pack(weight.dtype):
        return PackedLinear(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and this processor have packed products of that dtype."""
    if dtype not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
