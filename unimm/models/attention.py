"""How the trunk attends within the documents of packed rows, and never across them: three ways with the same result.

    sdpa             torch's fused kernels over whole rows, with a mask: anywhere, and the only way that takes a cache
    documents        document by document, plain products: training on a CPU (rows of any length cost the same there)
    flex_attention   FlexAttention over those blocks of a row that hold something: training on a GPU

Padding is nobody's document. What the trunk makes of it depends on the way, and nothing looks at it.
"""

from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple

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

    Returns:
        (B, T, H, E), zero where there is padding, and no weights.
    """
    # Rotated queries and keys are wider than the values under autocast; it would widen the softmax, too. All is done in the
    # values' dtype, and the queries are scaled before they are rounded.
    dtype = value_BGTE.dtype
    q_NHE, k_NGE, v_NGE = (x.to(dtype).transpose(1, 2).flatten(0, 1) for x in (query_BHTE * scaling, key_BGTE, value_BGTE))
    seen_NHE = attend_within_documents(q_NHE, k_NGE, v_NGE, sizes, None, dropout if module.training else 0.0)
    return seen_NHE.unflatten(0, (query_BHTE.shape[0], query_BHTE.shape[2])), None


@torch.compiler.disable()
def attend_within_documents(
    q_MHE: torch.Tensor,
    k_NGE: torch.Tensor,
    v_NGE: torch.Tensor,
    sizes: torch.Tensor,
    wanted: torch.Tensor | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of each document to itself: N positions, rows one after another, G heads of keys that H heads share.

    The scores of one document stay in the cache of a core between product, softmax and product, which rows do not; that is
    worth more than any kernel that was tried (recipes/LOG.md).

    Args:
        q_MHE: scaled queries, in the dtype of keys and values: of every position (M = N), or of those that are wanted.
        sizes: of the documents, as `document_sizes` gives them.
        wanted: (M,) long, rising: the positions that ask. None: all.

    Returns:
        (M, H, E), zero where there is padding.
    """
    groups = q_MHE.shape[1] // k_NGE.shape[1]
    k_NHE, v_NHE = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (k_NGE, v_NGE))
    with torch.autocast(v_NHE.device.type, enabled=False):
        return _ByDocument.apply(q_MHE, k_NHE, v_NHE, _documents(sizes, wanted), dropout)  # pyright: ignore[reportReturnType]


class _Document(NamedTuple):
    """Where a document lies: its keys among all positions, its queries among those that ask, and which of its own these are."""

    here: slice
    asking: slice
    rows: torch.Tensor | None


class _ByDocument(torch.autograd.Function):
    """softmax(q @ k.T) @ v of each document, (M, H, E); by hand, for autograd would copy every piece of every document."""

    @staticmethod
    def forward(
        ctx: Any,
        q_MHE: torch.Tensor,
        k_NHE: torch.Tensor,
        v_NHE: torch.Tensor,
        documents: list[_Document],
        dropout: float,
    ) -> torch.Tensor:
        seen_MHE, kept = torch.zeros_like(q_MHE), []
        for one in documents:
            # Whole pieces of memory: PyTorch's products would make them at every call.
            q, k, v = (x.transpose(0, 1).contiguous() for x in (q_MHE[one.asking], k_NHE[one.here], v_NHE[one.here]))
            causal_LL = _causal(k.shape[1], q.dtype)
            causal_lL = causal_LL if one.rows is None else causal_LL[one.rows]
            weights_HlL = torch.baddbmm(causal_lL, q, k.transpose(1, 2)).softmax(-1)
            kept += [q, k, v, weights_HlL]
            if dropout:
                kept.append(torch.empty_like(weights_HlL).bernoulli_(1 - dropout).div_(1 - dropout))
                weights_HlL = weights_HlL * kept[-1]
            seen_MHE[one.asking] = torch.bmm(weights_HlL, v).transpose(0, 1)
        ctx.save_for_backward(*kept)
        ctx.documents, ctx.has_dropout, ctx.num_keys = documents, dropout > 0, len(k_NHE)
        return seen_MHE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        slope_MHE = grad_outputs[0]
        q_slope = torch.zeros_like(slope_MHE, memory_format=torch.contiguous_format)
        k_slope, v_slope = (slope_MHE.new_zeros(ctx.num_keys, *slope_MHE.shape[1:]) for _ in range(2))
        step, kept = 4 + ctx.has_dropout, ctx.saved_tensors
        for number, one in enumerate(ctx.documents):
            q, k, v, weights_HlL, *dropped = kept[step * number : step * (number + 1)]
            slope = slope_MHE[one.asking].transpose(0, 1).contiguous()
            inner_HlL = torch.bmm(slope, v.transpose(1, 2))
            used_HlL = weights_HlL
            for factor_HlL in dropped:
                used_HlL, inner_HlL = weights_HlL * factor_HlL, inner_HlL * factor_HlL
            v_slope[one.here] = torch.bmm(used_HlL.transpose(1, 2), slope).transpose(0, 1)
            scores_HlL = torch.ops.aten._softmax_backward_data(inner_HlL, weights_HlL, -1, weights_HlL.dtype)
            q_slope[one.asking] = torch.bmm(scores_HlL, k).transpose(0, 1)
            k_slope[one.here] = torch.bmm(scores_HlL.transpose(1, 2), q).transpose(0, 1)
        return q_slope, k_slope, v_slope, None, None


def _documents(sizes: torch.Tensor, wanted: torch.Tensor | None) -> list[_Document]:
    """The documents in which something asks; padding is passed over."""
    ends = sizes.abs().cumsum(0)
    starts = ends - sizes.abs()
    if wanted is None:
        return [
            _Document(slice(start, end), slice(start, end), None)
            for start, end, size in zip(starts.tolist(), ends.tolist(), sizes.tolist(), strict=True)
            if size > 0
        ]
    wanted = wanted.to(sizes.device)
    firsts, lasts = torch.searchsorted(wanted, starts).tolist(), torch.searchsorted(wanted, ends).tolist()
    found = zip(starts.tolist(), ends.tolist(), firsts, lasts, sizes.tolist(), strict=True)
    return [
        _Document(slice(start, end), slice(first, last), wanted[first:last] - start)
        for start, end, first, last, size in found
        if size > 0 and first < last
    ]


def _causal(length: int, dtype: torch.dtype) -> torch.Tensor:
    """(L, L): what is added to the scores; a view of a larger one that is kept."""
    return _triangle(1 << (length - 1).bit_length(), dtype)[:length, :length]


@lru_cache(maxsize=8)
def _triangle(length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
