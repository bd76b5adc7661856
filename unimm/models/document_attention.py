"""Causal attention document by document, for training on a CPU: a few documents of about the same length at a time.

The scores of a few documents stay in the caches of the cores between product, softmax and product, which those of whole rows
do not; that is worth more than any kernel that was tried. Lengths are rounded up, for oneDNN compiles every product anew for
every shape, half a millisecond each, and forgets the oldest of a thousand. All documents are gathered at once, into one piece
of memory of which a group is a slice, and what they see is gathered back out of one: a call for each group would take several
times as long (recipes/LOG.md).

Shapes: N positions, M of them ask, H heads, G heads of keys that H heads share, E head width; n documents of L keys and l
queries side by side, K = n * H; R rows of E numbers, those of all groups one after another.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

ROUNDED = 16
"""What numbers of keys and of queries are a multiple of."""

TOGETHER = 768
"""Positions of documents side by side, where these are short enough."""

ALIKE = 1.25
"""How much longer than the shortest of them the longest may be."""


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


class Group(NamedTuple):
    """Documents side by side.

    num_documents: n. queries, keys: their slices of R.
    asking: (n, l) long, which of their own positions ask; None: all, L = l.
    """

    num_documents: int
    queries: slice
    keys: slice
    asking: torch.Tensor | None

    def mask(self, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores, minus infinity for the future: (L, L) for all, or (K, l, L)."""
        future_LL = _future((self.keys.stop - self.keys.start) // (self.num_documents * num_heads), dtype)
        return future_LL if self.asking is None else future_LL[self.asking].repeat_interleave(num_heads, 0)

    def of(self, num_heads: int, side: slice, *rows_RE: torch.Tensor) -> list[torch.Tensor]:
        """This group's own of what lies by queries, or by keys: views (K, L, E)."""
        return [x[side].unflatten(0, (self.num_documents * num_heads, -1)) for x in rows_RE]


class Places(NamedTuple):
    """Where what lies by position and head, (N, H, E), lies by group, (R, E): document, head, position of the document.

    read: (R,) long: which row of (N * H, E) each is, or of (N * G, E) where heads share it; some row of the same document
        where the document is shorter than its group: such a row is nobody's.
    nobodys: long: which of R they are.
    back: (N * H,) long: where each lies among R; R itself for what belongs to no document.
    """

    read: torch.Tensor
    nobodys: torch.Tensor
    back: torch.Tensor

    def gather(self, x_NHE: torch.Tensor) -> torch.Tensor:
        """(R, E)."""
        return x_NHE.reshape(-1, x_NHE.shape[-1]).index_select(0, self.read)

    def gather_or_zero(self, x_NHE: torch.Tensor) -> torch.Tensor:
        """The same, zero for nobody's."""
        return self.gather(x_NHE).index_fill_(0, self.nobodys, 0)

    def empty(self, like: torch.Tensor) -> torch.Tensor:
        """(R + 1, E), for what `scatter` takes."""
        return like.new_empty(len(self.read) + 1, like.shape[-1])

    def scatter(self, x_SE: torch.Tensor, num_heads: int) -> torch.Tensor:
        """(R + 1, E) -> (N, H, E), zero for what belongs to no document."""
        x_SE[-1] = 0
        return x_SE.index_select(0, self.back).unflatten(0, (-1, num_heads))


class Layout(NamedTuple):
    """Where the documents of a batch lie while they attend."""

    groups: list[Group]
    queries: Places
    keys: Places
    num_heads: int
    num_key_heads: int


class _ByDocument(torch.autograd.Function):
    """softmax(q @ k.T) @ v of each document, (M, H, E); by hand, for autograd would copy every piece of every document."""

    @staticmethod
    def forward(
        ctx: Any, q_MHE: torch.Tensor, k_NGE: torch.Tensor, v_NGE: torch.Tensor, layout: Layout, dropout: float
    ) -> torch.Tensor:
        groups, queries, keys, num_heads, _ = layout
        rows = q_RE, k_RE, v_RE = queries.gather(q_MHE), keys.gather(k_NGE), keys.gather(v_NGE)
        seen_SE, kept = queries.empty(q_MHE), []
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


@lru_cache(maxsize=8)
def arrange_all(sizes: tuple[int, ...], num_heads: int, num_key_heads: int) -> Layout:
    """The documents of these sizes, one after another, of which every position asks; those below 0 are padding."""
    sizes_m = torch.tensor(sizes, dtype=torch.long)
    starts_m, num_positions = sizes_m.abs().cumsum(0) - sizes_m.abs(), int(sizes_m.abs().sum())
    chosen = _alike(sizes_m, (sizes_m > 0).nonzero().squeeze(1))
    laid = _side_by_side(chosen, starts_m, sizes_m)
    queries = _places(laid, num_positions, num_heads, num_heads)
    keys = queries if num_key_heads == num_heads else _places(laid, num_positions, num_heads, num_key_heads)
    rows = _by_head(laid, num_heads)
    groups = [Group(len(each), own, own, None) for each, own in zip(chosen, rows, strict=True)]
    return Layout(groups, queries, keys, num_heads, num_key_heads)


def arrange_asking(sizes_m: torch.Tensor, wanted_M: torch.Tensor, num_heads: int, num_key_heads: int) -> Layout:
    """The same where only the wanted positions ask; documents in which nothing does are passed over."""
    wanted_M = wanted_M.to(sizes_m.device)
    ends_m = sizes_m.abs().cumsum(0)
    starts_m, num_positions = ends_m - sizes_m.abs(), int(sizes_m.abs().sum())
    firsts_m, lasts_m = torch.searchsorted(wanted_M, starts_m), torch.searchsorted(wanted_M, ends_m)
    chosen = _alike(sizes_m, ((sizes_m > 0) & (firsts_m < lasts_m)).nonzero().squeeze(1))
    asks, told = _side_by_side(chosen, firsts_m, lasts_m - firsts_m), _side_by_side(chosen, starts_m, sizes_m)
    asking_P = wanted_M[asks.positions]
    groups = [
        Group(len(each), own, others, asking_P[place].view(len(each), -1) - starts_m[each, None])
        for each, place, own, others in zip(
            chosen, asks.groups, _by_head(asks, num_heads), _by_head(told, num_heads), strict=True
        )
    ]
    queries = _places(asks, len(wanted_M), num_heads, num_heads)
    return Layout(groups, queries, _places(told, num_positions, num_heads, num_key_heads), num_heads, num_key_heads)


def _alike(sizes_m: torch.Tensor, chosen_m: torch.Tensor) -> list[torch.Tensor]:
    """Documents by the group: numbers (n,), those of about the same length together."""
    groups: list[list[int]] = []
    for number in chosen_m[sizes_m[chosen_m].argsort(stable=True)].tolist():
        length = _rounded(int(sizes_m[number]))
        group = groups[-1] if groups else []
        if not group or length * (len(group) + 1) > TOGETHER or length > ALIKE * _rounded(int(sizes_m[group[0]])):
            groups.append(group := [])
        group.append(number)
    return [torch.tensor(group) for group in groups]


class _SideBySide(NamedTuple):
    """Positions by group and document, P in all with nobody's.

    positions: (P,) long, of nobody's the first of the document. is_nobodys: (P,) bool.
    firsts, lengths: (P,) long: where in P the document begins, and how many it takes there.
    groups: the groups' slices of P.
    """

    positions: torch.Tensor
    is_nobodys: torch.Tensor
    firsts: torch.Tensor
    lengths: torch.Tensor
    groups: list[slice]


def _side_by_side(groups: list[torch.Tensor], starts_m: torch.Tensor, sizes_m: torch.Tensor) -> _SideBySide:
    """Documents that begin at these positions and take so many each, group after group, all of a group equally long."""
    numbers_d = torch.cat([torch.empty(0, dtype=torch.long), *groups])
    lengths = [_rounded(int(sizes_m[group].max())) for group in groups]
    slices, end = [], 0
    for group, length in zip(groups, lengths, strict=True):
        slices.append(slice(end, end := end + len(group) * length))
    lengths_d = torch.tensor(lengths, dtype=torch.long).repeat_interleave(torch.tensor([len(group) for group in groups]).long())
    firsts_d = lengths_d.cumsum(0) - lengths_d
    firsts_P, lengths_P, starts_P, sizes_P = (
        each.repeat_interleave(lengths_d) for each in (firsts_d, lengths_d, starts_m[numbers_d], sizes_m[numbers_d])
    )
    offsets_P = torch.arange(end) - firsts_P
    is_nobodys_P = offsets_P >= sizes_P
    return _SideBySide(starts_P + offsets_P.masked_fill(is_nobodys_P, 0), is_nobodys_P, firsts_P, lengths_P, slices)


def _by_head(laid: _SideBySide, num_heads: int) -> list[slice]:
    """The groups' slices of R."""
    return [slice(each.start * num_heads, each.stop * num_heads) for each in laid.groups]


def _places(laid: _SideBySide, num_positions: int, num_heads: int, num_key_heads: int) -> Places:
    """Where every head of `num_positions` positions lies by group."""
    heads_H = torch.arange(num_heads)
    # A document's heads lie one after another, its positions within them.
    offsets_P = torch.arange(len(laid.positions)) - laid.firsts
    rows_PH = (laid.firsts * num_heads + offsets_P)[:, None] + laid.lengths[:, None] * heads_H
    read_R = torch.empty(rows_PH.numel(), dtype=torch.long)
    read_R[rows_PH] = laid.positions[:, None] * num_key_heads + heads_H // (num_heads // num_key_heads)
    back_NH = torch.full((num_positions, num_heads), rows_PH.numel())
    back_NH[laid.positions[~laid.is_nobodys]] = rows_PH[~laid.is_nobodys]
    return Places(read_R, rows_PH[laid.is_nobodys].flatten(), back_NH.flatten())


def _rounded(length: int) -> int:
    return -(-length // ROUNDED) * ROUNDED


@lru_cache(maxsize=64)
def _future(length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
