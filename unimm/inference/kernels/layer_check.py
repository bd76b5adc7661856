"""Layers by other kernels, compared with PyTorch's operation by operation: the same random step over the same random cache.

Each operation gets what PyTorch's operation before it has made, so an error is named where it arises and is not carried on.

Shapes: R rows, P new positions of all of them, D trunk width, d head width.
"""

from typing import Any

import torch
from torch import nn

from unimm.inference.decode.kv_cache import RowCache, RowCacheLayer
from unimm.inference.decode.paged_cache import PagedCache
from unimm.inference.kernels.decode_kernels import DecodeKernels, LayerKernels
from unimm.inference.kernels.quantized_linear import Linear, join, quantize_rows
from unimm.inference.kernels.step_inputs import StepInputs, Windows

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far an operation may be off, relative to what it gives."""


class Dequantized(DecodeKernels):
    """PyTorch's products of weights that were rounded to 8 bits and back: what a kernel for int8 weights must give."""

    def linear(self, layers: list[nn.Linear], weights: str | None = None) -> Linear:
        weight, bias = join(layers)
        if weights is not None:
            whole, scale_O = quantize_rows(weight)
            weight = (whole.float() * scale_O.float()[:, None]).to(weight.dtype)
        return lambda x: nn.functional.linear(x, weight, bias)


@torch.inference_mode()
def layer_errors(
    own: LayerKernels, reference: LayerKernels, layer: Any, widths: list[int], lengths: list[int], seed: int = 0
) -> dict[str, float]:
    """The relative error of each operation of a layer: of what it gives, and of the keys and values that it writes and of those
    that it must leave as they are.

    Args:
        layer: whose sizes, dtype and device are taken.
        widths: new positions of each row. lengths: of each row before.
    """
    step, x_PD, stores, rows_P = _random_step(layer, [*widths, 1], lengths, seed)
    real = slice(0, sum(widths))
    projected, expected = (one.project(x_PD, step, store) for one, store in zip((own, reference), stores, strict=True))
    # What is added to is of the size of what the layer adds: else nothing would be seen but how their sum is rounded.
    mixed, expected_mixed = own.attend(projected, step), reference.attend(expected, step)
    residual_PD = reference.add_output(torch.zeros_like(x_PD), expected_mixed).flip(-1)
    attended = own.add_output(residual_PD, mixed), reference.add_output(residual_PD, expected_mixed)
    gated, gated_PF = own.gate(x_PD), reference.gate(x_PD)
    residual_PD = reference.add_down(torch.zeros_like(x_PD), gated_PF).flip(-1)
    down = own.add_down(residual_PD, gated_PF), reference.add_down(residual_PD, gated_PF)
    new, pairs = (rows_P[real], slice(None), slice(None), step.positions_P[real]), {}
    both = [torch.stack([store.read(row, 0, step.used) for row in range(len(widths))]) for store in stores]  # (R, 2, G, S, d)
    written = [states[new] for states in both]  # (P, 2, G, d)
    for states in both:
        states[new] = 0.0
        for row, end in enumerate(map(sum, zip(widths, lengths, strict=True))):
            states[row, :, :, end:] = 0.0  # what is behind a row is nobody's
    for number, name in enumerate(("keys", "values")):
        pairs[name] = written[0][:, number], written[1][:, number]
        pairs[f"older {name}"] = both[0][:, number], both[1][:, number]
    pairs |= {"attention": (attended[0][real], attended[1][real]), "gate and up": (gated, gated_PF), "down": down}
    found = {name: _relative_error(*pair) for name, pair in pairs.items()}
    return found if bool(attended[0].isfinite().all()) else found | {"attention": float("inf")}


def _random_step(
    layer: Any, widths: list[int], lengths: list[int], seed: int
) -> tuple[StepInputs, torch.Tensor, list[RowCacheLayer], torch.Tensor]:
    """A step, its input (P, D), two equal stores that it writes to, and the row of each position. The last row is padding."""
    attention, weight = layer.self_attn, layer.self_attn.q_proj.weight
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(weight.device, weight.dtype)

    places = [length + offset for width, length in zip(widths[:-1], lengths, strict=True) for offset in range(width)]
    used = max(places) + 1
    paged = PagedCache(1, len(widths), used, weight.device)
    for _ in range(2):  # the second time from the last block to the first, so that they do not lie in order
        paged.free(0, len(lengths))
        paged.reserve_rows(0, [length + width for width, length in zip(widths[:-1], lengths, strict=True)])
    places.append(paged.num_slots - 1)
    positions_P = torch.tensor(places, device=weight.device)
    rows_P = torch.tensor([row for row, width in enumerate(widths) for _ in range(width)], device=weight.device)
    windows = Windows.of(widths, weight.device) if max(widths) > 1 else None
    turns_Pd = positions_P[:, None] * torch.linspace(0, 1, attention.head_dim // 2, device=weight.device).repeat(2)
    cos_P1d, sin_P1d = (turn.to(weight.dtype)[:, None] for turn in (turns_Pd.cos(), turns_Pd.sin()))
    given = random(len(widths), attention.k_proj.out_features // attention.head_dim, used, attention.head_dim)
    stores = []
    rectangle = RowCache(1)
    rectangle.reserve(len(widths), paged.num_slots)
    for cache in (paged, rectangle):
        store = cache.layers[0]
        assert isinstance(store, RowCacheLayer)
        cache.prepare(slice(0, len(widths)), torch.arange(used, device=weight.device).expand(len(widths), -1), used)
        store.write(given, given.flip(0))
        cache.prepare(slice(0, len(widths)), positions_P[:, None], used, None if windows is None else rows_P[:, None])
        stores.append(store)
    step = StepInputs(cos_P1d, sin_P1d, positions_P, used, windows)
    return step, random(len(places), weight.shape[1]), stores, rows_P


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = float((found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30))
    return error if error < float("inf") else float("inf")  # no number compares as less
