"""How the trunk attends within the documents of packed rows, and never across them: three ways with the same result.

    sdpa             torch's fused kernels over whole rows, with a mask: anywhere, and the only way that takes a cache
    documents        document by document, plain products: training on a CPU (rows of any length cost the same there)
    flex_attention   FlexAttention over those blocks of a row that hold something: training on a GPU

Padding is nobody's document. What the trunk makes of it depends on the way, and nothing looks at it.
"""

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional
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
    lengths = sizes.tolist()
    parts = [abs(length) for length in lengths]
    # Autocast would widen the softmax, and rotated queries and keys are wide already: all is done in the values' dtype.
    with torch.autocast(value_BGTE.device.type, enabled=False):
        query, key, value = (_by_document(x, num_heads, value_BGTE.dtype, parts) for x in (query_BHTE, key_BGTE, value_BGTE))
        seen = []
        for length, q_HLE, k_HLE, v_HLE in zip(lengths, query, key, value, strict=True):
            if length < 0:
                seen.append(q_HLE.new_zeros(-length, num_heads, width))
                continue
            scores_HLL = torch.baddbmm(_causal(length, q_HLE.dtype), q_HLE, k_HLE.transpose(1, 2), alpha=scaling)
            weights_HLL = functional.dropout(scores_HLL.softmax(-1), dropout, module.training)
            seen.append((weights_HLL @ v_HLE).transpose(0, 1))
        return torch.cat(seen).view(num_rows, num_positions, num_heads, width), None


def _by_document(x_BHTE: torch.Tensor, num_heads: int, dtype: torch.dtype, parts: list[int]) -> tuple[torch.Tensor, ...]:
    x_HNE = x_BHTE.to(dtype).transpose(0, 1).flatten(1, 2)
    if len(x_HNE) != num_heads:
        x_HNE = x_HNE.repeat_interleave(num_heads // len(x_HNE), 0)
    return x_HNE.split(parts, 1)


def _causal(length: int, dtype: torch.dtype) -> torch.Tensor:
    """(L, L): what is added to the scores; a view of a larger one that is kept."""
    return _triangle(1 << (length - 1).bit_length(), dtype)[:length, :length]


@lru_cache(maxsize=8)
def _triangle(length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
