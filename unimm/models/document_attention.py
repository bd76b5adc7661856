"""Causal attention document by document, for training on a CPU: a few documents of about the same length at a time.

The scores of a few documents stay in the caches of the cores between product, softmax and product, which those of whole rows
do not; that is worth more than any kernel that was tried (recipes/LOG.md). All documents are gathered at once, into one piece
of memory of which a group is a slice, and gathered back out of one: a call for each group would take several times as long.

Shapes: as in `unimm.models.document_layout`; M positions that ask, of N.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from unimm.models.document_layout import Layout, arrange_all, arrange_asking


@torch.compiler.disable()
def attend_within_documents(
    q_MHE: torch.Tensor,
    k_NGE: torch.Tensor,
    v_NGE: torch.Tensor,
    sizes: torch.Tensor,
    wanted_M: torch.Tensor | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of each document to itself, rows one after another; G heads of keys that H heads share.

    Args:
        q_MHE: scaled queries, in the dtype of keys and values: of every position (M = N), or of those that are wanted.
        sizes: of the documents, as `unimm.models.attention.document_sizes` gives them.
        wanted_M: long, rising: the positions that ask. None: all.

    Returns:
        (M, H, E), zero where there is padding.
    """
    heads = q_MHE.shape[1], k_NGE.shape[1]
    layout = arrange_all(tuple(sizes.tolist()), *heads) if wanted_M is None else arrange_asking(sizes, wanted_M, *heads)
    with torch.autocast(v_NGE.device.type, enabled=False):
        return _ByDocument.apply(q_MHE, k_NGE, v_NGE, layout, dropout)  # pyright: ignore[reportReturnType]


class _ByDocument(torch.autograd.Function):
    """softmax(q @ k.T) @ v of each document, (M, H, E); by hand, for autograd would copy every piece of every document."""

    @staticmethod
    def forward(
        ctx: Any, q_MHE: torch.Tensor, k_NGE: torch.Tensor, v_NGE: torch.Tensor, layout: Layout, dropout: float
    ) -> torch.Tensor:
        groups, queries, keys, num_heads, _ = layout
        rows = q_RE, k_RE, v_RE = queries.gather(q_MHE), keys.gather(k_NGE), keys.gather(v_NGE)
        seen_SE, kept = queries.empty(v_RE), []
        for one in groups:
            q, seen = one.of(num_heads, one.queries, q_RE, seen_SE)
            k, v = one.of(num_heads, one.keys, k_RE, v_RE)
            weights_KlL = torch.baddbmm(one.mask(num_heads, q.dtype), q, k.transpose(1, 2)).softmax(-1)
            kept.append(weights_KlL)
            if dropout:
                kept.append(torch.empty_like(weights_KlL).bernoulli_(1 - dropout).div_(1 - dropout))
                weights_KlL = weights_KlL * kept[-1]
            torch.bmm(weights_KlL, v, out=seen)
        ctx.save_for_backward(*rows, *kept)
        ctx.layout, ctx.has_dropout = layout, dropout > 0
        return queries.scatter(seen_SE, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        groups, queries, keys, num_heads, num_key_heads = ctx.layout
        q_RE, k_RE, v_RE, *kept = ctx.saved_tensors
        slope_RE = queries.gather_or_zero(grad_outputs[0])
        q_slope_SE, k_slope_SE, v_slope_SE = queries.empty(q_RE), keys.empty(k_RE), keys.empty(v_RE)
        for one in groups:
            weights_KlL, *dropped = (kept.pop(0) for _ in range(1 + ctx.has_dropout))
            q, slope, q_slope = one.of(num_heads, one.queries, q_RE, slope_RE, q_slope_SE)
            k, v, k_slope, v_slope = one.of(num_heads, one.keys, k_RE, v_RE, k_slope_SE, v_slope_SE)
            inner_KlL = torch.bmm(slope, v.transpose(1, 2))
            used_KlL = weights_KlL
            for factor_KlL in dropped:
                used_KlL, inner_KlL = weights_KlL * factor_KlL, inner_KlL * factor_KlL
            torch.bmm(used_KlL.transpose(1, 2), slope, out=v_slope)
            scores_KlL = torch.ops.aten._softmax_backward_data(inner_KlL, weights_KlL, -1, weights_KlL.dtype)
            torch.bmm(scores_KlL, k, out=q_slope)
            torch.bmm(scores_KlL.transpose(1, 2), q, out=k_slope)
        slopes = [queries.scatter(q_slope_SE, num_heads)]
        for slope_SE in (k_slope_SE, v_slope_SE):
            slope_NHE = keys.scatter(slope_SE, num_heads)
            is_shared = num_key_heads != num_heads
            slopes.append(slope_NHE.unflatten(1, (num_key_heads, -1)).sum(2) if is_shared else slope_NHE)
        return *slopes, None, None
