"""Attention within the documents of packed rows, and never across them, by three backends with the same result: a CPU kernel
of our own (`document_attention`), FlexAttention, SDPA with a mask.

    sdpa             torch's fused kernels over whole rows, with a mask: anywhere, and the only one that takes a cache
    documents        document by document, by a kernel of our own: training on a CPU (rows of any length cost the same there)
    flex_attention   FlexAttention over those blocks of a row that hold something: training on a GPU

Padding belongs to no document. What the trunk makes of it depends on the backend, and nothing reads it.
"""

from inspect import signature
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from unimm.batch import Batch
from unimm.models.document_attention import attend_within_documents

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BACKENDS = ("sdpa", "documents", "flex_attention")

Mask: TypeAlias = "torch.Tensor | BlockMask"
"""(B, 1, T, S) bool, true where a position may look, for "sdpa"; (M,) sizes for "documents"; blocks for "flex_attention"."""


def choose_attention(device: str, is_compiled: bool) -> str:
    """The default backend of a training. device: its type, such as "cuda"."""
    if device == "cpu":
        return "documents"
    return "flex_attention" if is_compiled and device == "cuda" else "sdpa"


def register_documents() -> None:
    """Register the backend "documents" with `transformers`, for its trunks."""
    # Imported here: it loads every library for quantized weights that is installed, and they print.
    from transformers import AttentionInterface

    AttentionInterface.register("documents", torch.compiler.disable(attend_by_document))


def cache_keyword(model: Any) -> str:
    """What a model of `transformers` calls the cache it is given: "past_key_values" up to 5.23, "cache" from 5.24 on."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def mask_of(backend: str, batch: Batch) -> Mask:
    """A batch's documents as a backend takes them."""
    if backend == "documents":
        return document_sizes(batch.documents)
    if backend == "flex_attention":
        return block_mask(batch.documents)
    return batch.attention_mask()


def document_sizes(documents_BT: torch.Tensor) -> torch.Tensor:
    """(M,) long on the CPU: how many positions each document takes, row after row; of padding the same, negative."""
    num_positions = documents_BT.shape[1]
    in_row_B1 = torch.arange(len(documents_BT), device=documents_BT.device)[:, None] * (num_positions + 1)
    numbers_M, sizes_M = torch.unique_consecutive(documents_BT + in_row_B1, return_counts=True)
    return torch.where(numbers_M % (num_positions + 1) == 0, -sizes_M, sizes_M).cpu()


def block_mask(documents_BT: torch.Tensor) -> "BlockMask":
    """The blocks that FlexAttention computes, for the documents of every row."""
    from torch.nn.attention.flex_attention import create_block_mask  # loads sympy, half a second

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
