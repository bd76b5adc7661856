"""Linear layers for a few rows at a time, weight-only int8 and int4 among them: reading the weights is all the time there is.

On a CPU, PyTorch rearranges the weights of a bfloat16 product at every call; `PackedLinear` does it once (oneDNN's own layout,
through the operators that torch.compile uses). Weights of 8 or 4 bits are read faster still: on a CPU through PyTorch's own
products, on a GPU through torchao. Everything else is `torch.nn.Linear`.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from unimm.runtime.devices import cpu_has_vnni

Linear = Callable[[torch.Tensor], torch.Tensor]

QUANTIZED = ("int8", "int4", "fp8")
"""Weights of fewer bits: 8 with a scale a row, 4 with a scale and a zero for every `GROUP` of a row, float8 (e4m3) with a scale
a row. Products are in bfloat16; of int8 on a CPU that has them, in integers."""

GROUP = 64
"""Weights that share a scale in int4."""

BLOCK = 16
"""Of inputs (int8 without integer products) or outputs (int4), PyTorch's kernels for CPUs take multiples of this, or crash."""

ROWS = 16
"""The number of rows that weights are packed for; others work too."""


class PackedLinear:
    """weight (O, I), bias (O,) or None, packed once; x (R, I) -> (R, O)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class IntegerLinear:
    """weight (O, I) as int8 with a scale a row, and so is x (R, I) bfloat16, at every call; -> (R, O), on a CPU.

    Integers are multiplied four at a time (VNNI), through FBGEMM. Each row of x has a scale of its own, its largest value: what
    comes of a row does not depend on the others, as it would by PyTorch's "dynamic" product, which has one for all.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        weight = weight.detach().float()
        scale_O = _scales(weight)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*are deprecated")
            whole = torch.quantize_per_channel(
                weight, scale_O.double(), torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8
            )
        self.weight = torch.ops.quantized.linear_prepack(whole, None)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        largest_R1 = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True, dtype=torch.float32).clamp_(min=1e-12)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        out = multiply(x / largest_R1, 1 / 127, 128, self.weight).mul_(largest_R1).to(x.dtype)
        return out if self.bias is None else out + self.bias


class Int8Linear:
    """weight (O, I) as int8 with a scale a row; x (R, I) bfloat16 -> (R, O), on a CPU without `IntegerLinear`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, scale_O = quantize_rows(weight)
        self.scale = scale_O.to(torch.bfloat16)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.weight, self.scale)
        return out if self.bias is None else out + self.bias


class Int4Linear:
    """weight (O, I) as int4 with a scale and a zero for every `GROUP` of a row; x (R, I) bfloat16 -> (R, O), on a CPU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        groups_OGg = weight.detach().float().unflatten(1, (-1, GROUP))
        low_OG, high_OG = groups_OGg.amin(-1), groups_OGg.amax(-1)
        scale_OG = (high_OG - low_OG).clamp(min=1e-12) / 15
        steps_OGg = ((groups_OGg - low_OG[..., None]) / scale_OG[..., None]).round().clamp(0, 15)
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps_OGg.flatten(1).to(torch.int32), 1)
        # The product takes (steps - 8) * scale + zero.
        zero_OG = low_OG + 8 * scale_OG
        self.scales_and_zeros = torch.stack([scale_OG, zero_OG], dim=-1).transpose(0, 1).contiguous().to(torch.bfloat16)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.weight, GROUP, self.scales_and_zeros)
        return out if self.bias is None else out + self.bias


def quantize_by_torchao(weight: torch.Tensor, bias: torch.Tensor | None, bits: str) -> Linear:
    """The same by torchao, for GPUs (and for CPUs, slowly).

    Raises:
        ImportError: torchao is not installed.
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    if bits == "int4":
        quantize_(layer, Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D))
    else:
        quantize_(layer, Int8WeightOnlyConfig() if bits == "int8" else Float8WeightOnlyConfig())
    return layer


def make_joint_linear(layers: list[nn.Linear], weights: str | None = None) -> Linear:
    """Linear layers that read the same input as one: x (R, I) -> (R, O1 + O2 + ...), by PyTorch's own product.

    weights: one of `QUANTIZED`, by torchao, or None: the layers' own, which become parts of one tensor: there are no copies.
    """
    weight, bias = join(layers)
    if weights is not None and not (weights == "int4" and weight.shape[1] % GROUP):
        return quantize_by_torchao(weight, bias, weights)
    share(layers, weight, bias)
    return lambda x: F.linear(x, weight, bias)


def make_cpu_linear(layers: list[nn.Linear], weights: str | None = None) -> Linear:
    """The same on a CPU, with copies of the weights that are arranged for it where it has such products.

    A layer that has no whole groups (int4) or whole blocks (PyTorch's kernels) keeps its bits.
    """
    weight, bias = join(layers)
    num_outputs, num_inputs = weight.shape
    if weights == "int4" and num_inputs % GROUP == 0 and num_outputs % BLOCK == 0:
        return Int4Linear(weight, bias)
    if weights == "int8" and has_integer_products():
        return IntegerLinear(weight, bias)
    if weights == "int8" and num_inputs % BLOCK == 0:
        return Int8Linear(weight, bias)
    if can_pack(weight.dtype):
        return PackedLinear(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def join(layers: list[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight (O1 + O2 + ..., I) and bias (O1 + O2 + ...,) of layers that read the same input; no copies of parts that are
    shared already (`share`), so that several decoders of one model leave its weights where they are."""
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers)), "either all of them have a bias or none"
    return _joined([layer.weight.detach() for layer in layers]), _joined(biases) if biases else None


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """One behind another along their first axis: the memory in which they lie so, or a copy."""
    first, end = parts[0], parts[0].data_ptr()
    if len(parts) == 1:
        return first
    for part in parts:
        if not part.is_contiguous() or part.data_ptr() != end or part.dtype != first.dtype:
            return torch.cat(parts)
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(parts)  # neighbours by chance
        end += part.nbytes
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())


def share(layers: list[nn.Linear], weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Let the layers' own weights and biases be the parts of the joint ones (O1 + O2 + ..., I), which then follow them."""
    if len(layers) > 1:
        sizes = [layer.out_features for layer in layers]
        for layer, part in zip(layers, weight.split(sizes), strict=True):
            layer.weight.data = part
        for layer, part in zip(layers, () if bias is None else bias.split(sizes), strict=bias is not None):
            layer.bias.data = part


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and this processor have packed products of that dtype."""
    if dtype not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def has_integer_products() -> bool:
    """Whether this PyTorch and this processor multiply integers of 8 bits exactly: without VNNI, sums of two overflow."""
    if torch.backends.quantized.engine not in ("fbgemm", "x86") or not cpu_has_vnni():
        return False
    return hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (O, I) as int8, and (O,) float32 what a step of it is worth in each row."""
    weight = weight.detach().float()
    scale_O = _scales(weight)
    return (weight / scale_O[:, None]).round().to(torch.int8), scale_O


def _scales(weight: torch.Tensor) -> torch.Tensor:
    """(O,) what a step of int8 is worth in each row."""
    return weight.abs().amax(dim=1).clamp(min=1e-12) / 127
