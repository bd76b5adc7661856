"""Attention within the documents of packed rows, and never across them, by three backends with the same result.

    sdpa             torch's fused kernels over whole rows, with a mask: anywhere, and the only one that takes a cache
    documents        document by document, by a kernel of our own (attention.cpp): training on a CPU (rows of any length cost
                     the same there)
    flex_attention   FlexAttention over those blocks of a row that hold something: training on a GPU

Padding belongs to no document. What the trunk makes of it depends on the backend, and nothing reads it. The kernel takes
bfloat16 and float32. It is compiled when it is first needed; where there is no compiler, or where its inputs are of another
kind, documents attend one by one through PyTorch's own.

Shapes: N positions, M of them with queries, H heads, G heads of keys that H heads share, E head width, m documents.
"""

import ctypes
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from unimm.batch import Batch
from unimm.native import library_beside

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


BACKENDS = ("sdpa", "documents", "flex_attention")

Mask: TypeAlias = "torch.Tensor | BlockMask"
"""(B, 1, T, S) bool, true where a position may attend, for "sdpa"; (M,) sizes for "documents"; blocks for "flex_attention"."""


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


def attend_within_documents(
    q_MHE: torch.Tensor,
    k_NGE: torch.Tensor,
    v_NGE: torch.Tensor,
    sizes_m: torch.Tensor,
    loss_positions_M: torch.Tensor | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of each document to itself, rows one after another; G heads of keys that H heads share.

    Args:
        q_MHE: scaled queries, in the dtype of keys and values: of every position (M = N), or of those with a loss.
        sizes_m: of the documents, as `unimm.models.attention.document_sizes` gives them.
        loss_positions_M: long, rising: the positions that have queries. None: all.

    Returns:
        (M, H, E), zero where there is padding. Differentiable once.

    Raises:
        ValueError: documents, positions, queries and keys do not agree in number.
    """
    starts = F.pad(sizes_m.abs().cumsum(0), (1, 0))
    loss_positions_M = None if loss_positions_M is None else loss_positions_M.to(starts.device, torch.long).contiguous()
    numbers = int(starts[-1]), len(k_NGE if loss_positions_M is None else loss_positions_M)
    if numbers != (len(k_NGE), len(q_MHE)):
        raise ValueError(
            f"Documents of {numbers[0]} positions, {numbers[1]} of them with queries, have {len(k_NGE)} keys and {len(q_MHE)} "
            f"queries."
        )
    firsts = starts if loss_positions_M is None else torch.searchsorted(loss_positions_M, starts)
    with torch.autocast(v_NGE.device.type, enabled=False):
        if not dropout and _is_the_kernels(q_MHE, k_NGE, v_NGE) and _kernel() is not None:
            where = (starts, firsts, loss_positions_M, sizes_m < 0)
            return _ByKernel.apply(q_MHE.contiguous(), k_NGE.contiguous(), v_NGE.contiguous(), where)  # pyright: ignore[reportReturnType]
        return _one_by_one((q_MHE, k_NGE, v_NGE), (sizes_m, starts, firsts), loss_positions_M, dropout)


def _one_by_one(
    qkv: tuple[torch.Tensor, ...], sizes: tuple[torch.Tensor, ...], loss_positions_M: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """The same on any device, of any dtype, with values of another width, with weights dropped."""
    sizes_m, starts, firsts = sizes
    q_MHE, k_NHE, v_NHE = (x.repeat_interleave(qkv[0].shape[1] // x.shape[1], 1) for x in qkv)
    positions_M = torch.arange(len(q_MHE)) if loss_positions_M is None else loss_positions_M
    # Split, not cut out piece by piece: so their slopes are put together once.
    queries_m, positions_m = q_MHE.transpose(0, 1).split(firsts.diff().tolist(), 1), positions_M.split(firsts.diff().tolist())
    keys_m, values_m = (x.transpose(0, 1).split(sizes_m.abs().tolist(), 1) for x in (k_NHE, v_NHE))
    seen = []
    for number, size in enumerate(sizes_m.tolist()):
        q_HlE, positions_l, k_HLE, v_HLE = (each[number] for each in (queries_m, positions_m, keys_m, values_m))
        if size < 0:
            seen.append(v_HLE.new_zeros(len(q_HlE), len(positions_l), v_HLE.shape[-1]))
            continue
        is_future_lL = (torch.arange(size) + starts[number] > positions_l[:, None]).to(q_HlE.device)
        scores_HlL = (q_HlE @ k_HLE.transpose(1, 2)).masked_fill(is_future_lL, float("-inf"))
        seen.append(F.dropout(scores_HlL.softmax(-1), dropout) @ v_HLE)
    return torch.cat(seen, 1).transpose(0, 1).contiguous()


class _Documents(ctypes.Structure):
    """The documents as the kernel's own struct."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("num_documents", "num_heads", "num_key_heads", "width")),
        *((name, ctypes.c_void_p) for name in ("starts", "first_queries", "positions", "is_padding")),
    )


class _ByKernel(torch.autograd.Function):
    """softmax(q @ k.T) @ v of each document, (M, H, E)."""

    @staticmethod
    def forward(
        ctx: Any, q_MHE: torch.Tensor, k_NGE: torch.Tensor, v_NGE: torch.Tensor, where: tuple[Any, ...]
    ) -> torch.Tensor:
        ctx.where = where
        seen_MHE, denominators_MH = torch.empty_like(q_MHE), q_MHE.new_empty(q_MHE.shape[:2], dtype=torch.float32)
        _call("attend", where, q_MHE, k_NGE, v_NGE, seen_MHE, denominators_MH)
        ctx.save_for_backward(q_MHE, k_NGE, v_NGE, seen_MHE, denominators_MH)
        return seen_MHE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        slopes = [torch.empty_like(x) for x in saved[:3]]
        _call("attend_backward", ctx.where, *saved, grad_outputs[0].contiguous(), *slopes)
        return *slopes, None


def _call(
    name: str, where: tuple[torch.Tensor | None, ...], q_MHE: torch.Tensor, k_NGE: torch.Tensor, *rest: torch.Tensor
) -> None:
    """One of the kernel's two functions, its tensors in the order it declares them."""
    (num_heads, width), num_key_heads = q_MHE.shape[1:], k_NGE.shape[1]
    pointers = (None if x is None else x.data_ptr() for x in where)
    documents = _Documents(len(where[-1]), num_heads, num_key_heads, width, *pointers)  # pyright: ignore[reportArgumentType]
    tensors = (ctypes.c_void_p(x.data_ptr()) for x in (q_MHE, k_NGE, *rest))
    getattr(_kernel(), name)(ctypes.byref(documents), ctypes.c_bool(q_MHE.dtype == torch.bfloat16), *tensors)


def _is_the_kernels(q_MHE: torch.Tensor, k_NGE: torch.Tensor, v_NGE: torch.Tensor) -> bool:
    """Whether the kernel takes these: plain tensors on a CPU, of one dtype, rows a multiple of 32 bits."""
    qkv = (q_MHE, k_NGE, v_NGE)
    are_alike = all(type(x) is torch.Tensor and x.device.type == "cpu" and x.dtype == q_MHE.dtype for x in qkv)
    fits = k_NGE.shape == v_NGE.shape and q_MHE.shape[1] % k_NGE.shape[1] == 0 and q_MHE.shape[2] == k_NGE.shape[2]
    return are_alike and fits and q_MHE.dtype in (torch.bfloat16, torch.float32) and q_MHE.shape[2] % 2 == 0


def _kernel() -> ctypes.CDLL | None:
    return library_beside(__file__, "Attention takes several times as long as it could")
