"""How the trunk attends within the documents of packed rows, and never across them: three ways with the same result.

    sdpa             torch's fused kernels over whole rows, with a mask: anywhere, and the only way that takes a cache
    documents        document by document, plain products: training on a CPU (rows of any length cost the same there)
    flex_attention   FlexAttention over those blocks of a row that hold something: training on a GPU

Padding is nobody's document. What the trunk makes of it depends on the way, and nothing looks at it.
"""

from collections.abc import Iterator
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from unimm.batch import Batch

WAYS = ("sdpa", "documents", "flex_attention")

Mask = torch.Tensor | BlockMask
"""(B, 1, T, S) bool, true where a position may look, for "sdpa"; (M,) sizes for "documents"; blocks for "flex_attention"."""


def choose_way(trunk: Any, way: str) -> None:
    """Have a trunk of `transformers` attend in one of `WAYS` from now on."""
    # Here, for it loads every library for quantized weights that is installed, and they talk.
    from transformers import AttentionInterface

    AttentionInterface.register("documents", attend_by_document)
    trunk.set_attn_implementation(way)


def cache_keyword(model: Any) -> str:
    """What a model of `transformers` calls the cache it is given: "past_key_values" up to 5.23, "cache" from 5.24 on."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def mask_of(way: str, batch: Batch) -> Mask:
    """What the trunk needs to know of a batch's documents."""
    if way == "documents":
        return document_sizes(batch.documents)
    if way == "flex_attention":
        return block_mask(batch.documents)
    return batch.attention_mask()


def document_sizes(documents_BT: torch.Tensor) -> torch.Tensor:
    """(M,) long on the CPU: how many positions each document takes, row after row; of padding the same, negative."""
    num_positions = documents_BT.shape[1]
    in_row_B1 = torch.arange(len(documents_BT), device=documents_BT.device)[:, None] * (num_positions + 1)
    numbers_M, sizes_M = torch.unique_consecutive(documents_BT + in_row_B1, return_counts=True)
    return torch.where(numbers_M % (num_positions + 1) == 0, -sizes_M, sizes_M).cpu()


def block_mask(documents_BT: torch.Tensor) -> BlockMask:
    """What FlexAttention may skip and what it must look at, for the documents of every row."""

    def sees(row: torch.Tensor, head: torch.Tensor, position: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (documents_BT[row, position] == documents_BT[row, other]) & (other <= position)

    num_rows, num_positions = documents_BT.shape
    return create_block_mask(sees, num_rows, None, num_positions, num_positions, device=str(documents_BT.device))


@torch.compiler.disable
def attend_by_document(
    module: torch.nn.Module,
    query_BHTE: torch.Tensor,
    key_BGTE: torch.Tensor,
    value_BGTE: torch.Tensor,
    attention_mask: Any,
    *,
    scaling: float,
    dropout: float = 0.0,
    sizes: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each document to itself, as `transformers` calls it: B rows, H heads, G heads of keys, E wide.

    The scores of one document stay in the cache of a core between product, softmax and product, which rows do not; that is
    worth more than any kernel that was tried (recipes/LOG.md).

    Returns:
        (B, T, H, E), zero where there is padding, and no weights.
    """
    num_rows, num_heads, num_positions, width = query_BHTE.shape
    # Rotated queries and keys are wider than the values under autocast; it would widen the softmax, too. All is done in the
    # values' dtype, and the queries are scaled before they are rounded.
    query, key, value = (_rows_joined(x, num_heads, value_BGTE.dtype) for x in (query_BHTE * scaling, key_BGTE, value_BGTE))
    with torch.autocast(value.device.type, enabled=False):
        seen_HNE = _ByDocument.apply(query, key, value, sizes.tolist(), dropout if module.training else 0.0)
    return seen_HNE.transpose(0, 1).reshape(num_rows, num_positions, num_heads, width), None


def _rows_joined(x_BGTE: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
    """(H, N, E) with N = B * T, keys and values repeated for every head that reads them."""
    x_GNE = x_BGTE.to(dtype).transpose(0, 1).flatten(1, 2)
    return x_GNE.repeat_interleave(num_heads // len(x_GNE), 0) if len(x_GNE) != num_heads else x_GNE.contiguous()


class _ByDocument(torch.autograd.Function):
    """softmax(q @ k.T) @ v of each document, (H, N, E); by hand, for autograd would copy every piece of every document."""

    @staticmethod
    def forward(
        ctx: Any, q_HNE: torch.Tensor, k_HNE: torch.Tensor, v_HNE: torch.Tensor, sizes: list[int], dropout: float
    ) -> torch.Tensor:
        seen_HNE, kept = torch.zeros_like(v_HNE), []
        for here in _spans(sizes):
            causal_LL = _causal(here.stop - here.start, q_HNE.dtype)
            weights_HLL = torch.baddbmm(causal_LL, q_HNE[:, here], k_HNE[:, here].transpose(1, 2)).softmax(-1)
            kept.append(weights_HLL)
            if dropout:
                kept.append(torch.empty_like(weights_HLL).bernoulli_(1 - dropout).div_(1 - dropout))
                weights_HLL = weights_HLL * kept[-1]
            seen_HNE[:, here] = weights_HLL @ v_HNE[:, here]
        ctx.save_for_backward(q_HNE, k_HNE, v_HNE, *kept)
        ctx.sizes, ctx.has_dropout = sizes, dropout > 0
        return seen_HNE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q_HNE, k_HNE, v_HNE, *kept = ctx.saved_tensors
        slope_HNE = grad_outputs[0].contiguous()
        q_slope, k_slope, v_slope = (torch.zeros_like(x) for x in (q_HNE, k_HNE, v_HNE))
        step = 1 + ctx.has_dropout
        for number, here in enumerate(_spans(ctx.sizes)):
            weights_HLL, *dropped = kept[step * number : step * (number + 1)]
            inner_HLL = slope_HNE[:, here] @ v_HNE[:, here].transpose(1, 2)
            used_HLL = weights_HLL
            for factor_HLL in dropped:
                used_HLL, inner_HLL = weights_HLL * factor_HLL, inner_HLL * factor_HLL
            v_slope[:, here] = used_HLL.transpose(1, 2) @ slope_HNE[:, here]
            scores_HLL = torch.ops.aten._softmax_backward_data(inner_HLL, weights_HLL, -1, weights_HLL.dtype)
            q_slope[:, here] = scores_HLL @ k_HNE[:, here]
            k_slope[:, here] = scores_HLL.transpose(1, 2) @ q_HNE[:, here]
        return q_slope, k_slope, v_slope, None, None


def _spans(sizes: list[int]) -> Iterator[slice]:
    """Where the documents lie; padding is passed over."""
    start = 0
    for size in sizes:
        if size > 0:
            yield slice(start, start + size)
        start += abs(size)


def _causal(length: int, dtype: torch.dtype) -> torch.Tensor:
    """(L, L): what is added to the scores; a view of a larger one that is kept."""
    return _triangle(1 << (length - 1).bit_length(), dtype)[:length, :length]


@lru_cache(maxsize=8)
def _triangle(length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
