"""Causal attention document by document, for training on a CPU: a few documents of about the same length at a time.

The scores of a few documents stay in the caches of the cores between product, softmax and product, which those of whole rows
do not; that is worth more than any kernel that was tried. Lengths are rounded up, for oneDNN compiles every product anew for
every shape, half a millisecond each, and forgets the oldest of a thousand (recipes/LOG.md).

Shapes: N positions, M of them ask, H heads, E head width; n documents of L keys and l queries side by side, K = n * H.
"""

from collections.abc import Iterator
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
    num_shared = q_MHE.shape[1] // k_NGE.shape[1]
    k_NHE, v_NHE = (x if num_shared == 1 else x.repeat_interleave(num_shared, 1) for x in (k_NGE, v_NGE))
    groups = group_all(tuple(sizes.tolist())) if wanted_M is None else group_asking(sizes, wanted_M)
    with torch.autocast(v_NHE.device.type, enabled=False):
        return _ByDocument.apply(q_MHE, k_NHE, v_NHE, groups, dropout)  # pyright: ignore[reportReturnType]


class Places(NamedTuple):
    """Which rows of (N, ...) n documents take, L each; where one has fewer, the rest is nobody's.

    read: (n * L,) long, some row of the document for nobody's. write: the same, but N, one past the last, for nobody's.
    nobodys: (n, 1, L, 1) bool, or None where there is no such row.
    """

    num_documents: int
    read: torch.Tensor
    write: torch.Tensor
    nobodys: torch.Tensor | None

    def take(self, x_NHE: torch.Tensor) -> torch.Tensor:
        """(K, L, E), in whole pieces of memory, which PyTorch's products would make at every call."""
        x_nLHE = x_NHE[self.read].unflatten(0, (self.num_documents, -1))
        return x_nLHE.transpose(1, 2).flatten(0, 1).contiguous()

    def take_or_zero(self, x_NHE: torch.Tensor) -> torch.Tensor:
        """The same, zero for nobody's."""
        x_KLE = self.take(x_NHE)
        if self.nobodys is not None:
            x_KLE.unflatten(0, (self.num_documents, -1)).masked_fill_(self.nobodys, 0)
        return x_KLE

    def put(self, x_KLE: torch.Tensor, into_SHE: torch.Tensor) -> None:
        """Write (K, L, E) into (N + 1, H, E), whose last row is nobody's."""
        into_SHE[self.write] = x_KLE.unflatten(0, (self.num_documents, -1)).transpose(1, 2).flatten(0, 1)


class Group(NamedTuple):
    """Documents side by side: their queries, which of their own positions these are, (n, l) (None: all), and their keys."""

    queries: Places
    asking: torch.Tensor | None
    keys: Places

    def mask(self, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores, minus infinity for the future: (L, L) for all, or (K, l, L)."""
        future_LL = _future(len(self.keys.read) // self.keys.num_documents, dtype)
        return future_LL if self.asking is None else future_LL[self.asking].repeat_interleave(num_heads, 0)


class _ByDocument(torch.autograd.Function):
    """softmax(q @ k.T) @ v of each document, (M, H, E); by hand, for autograd would copy every piece of every document."""

    @staticmethod
    def forward(
        ctx: Any, q_MHE: torch.Tensor, k_NHE: torch.Tensor, v_NHE: torch.Tensor, groups: list[Group], dropout: float
    ) -> torch.Tensor:
        seen_SHE, kept = _zeros(len(q_MHE), q_MHE), []
        for one in groups:
            q, k, v = one.queries.take(q_MHE), one.keys.take(k_NHE), one.keys.take(v_NHE)
            weights_KlL = torch.baddbmm(one.mask(q_MHE.shape[1], q.dtype), q, k.transpose(1, 2)).softmax(-1)
            kept += [q, k, v, weights_KlL]
            if dropout:
                kept.append(torch.empty_like(weights_KlL).bernoulli_(1 - dropout).div_(1 - dropout))
                weights_KlL = weights_KlL * kept[-1]
            one.queries.put(torch.bmm(weights_KlL, v), seen_SHE)
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.has_dropout, ctx.num_keys = groups, dropout > 0, len(k_NHE)
        return seen_SHE[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        slope_MHE = grad_outputs[0]
        q_slope, k_slope, v_slope = (_zeros(num, slope_MHE) for num in (len(slope_MHE), ctx.num_keys, ctx.num_keys))
        step, kept = 4 + ctx.has_dropout, ctx.saved_tensors
        for number, one in enumerate(ctx.groups):
            q, k, v, weights_KlL, *dropped = kept[step * number : step * (number + 1)]
            slope = one.queries.take_or_zero(slope_MHE)
            inner_KlL = torch.bmm(slope, v.transpose(1, 2))
            used_KlL = weights_KlL
            for factor_KlL in dropped:
                used_KlL, inner_KlL = weights_KlL * factor_KlL, inner_KlL * factor_KlL
            one.keys.put(torch.bmm(used_KlL.transpose(1, 2), slope), v_slope)
            scores_KlL = torch.ops.aten._softmax_backward_data(inner_KlL, weights_KlL, -1, weights_KlL.dtype)
            one.queries.put(torch.bmm(scores_KlL, k), q_slope)
            one.keys.put(torch.bmm(scores_KlL.transpose(1, 2), q), k_slope)
        return q_slope[:-1], k_slope[:-1], v_slope[:-1], None, None


@lru_cache(maxsize=8)
def group_all(sizes: tuple[int, ...]) -> list[Group]:
    """The documents of these sizes, one after another, of which every position asks; those below 0 are padding."""
    sizes_m = torch.tensor(sizes, dtype=torch.long)
    starts_m = sizes_m.abs().cumsum(0) - sizes_m.abs()
    num_positions = int(sizes_m.abs().sum())
    groups = []
    for chosen_n in _alike(sizes_m, (sizes_m > 0).nonzero().squeeze(1)):
        places = _places(starts_m[chosen_n], sizes_m[chosen_n], num_positions)
        groups.append(Group(places, None, places))
    return groups


def group_asking(sizes_m: torch.Tensor, wanted_M: torch.Tensor) -> list[Group]:
    """The same where only the wanted positions ask; documents in which nothing does are passed over."""
    wanted_M = wanted_M.to(sizes_m.device)
    ends_m = sizes_m.abs().cumsum(0)
    starts_m, num_positions = ends_m - sizes_m.abs(), int(sizes_m.abs().sum())
    firsts_m, lasts_m = torch.searchsorted(wanted_M, starts_m), torch.searchsorted(wanted_M, ends_m)
    groups = []
    for chosen_n in _alike(sizes_m, ((sizes_m > 0) & (firsts_m < lasts_m)).nonzero().squeeze(1)):
        queries = _places(firsts_m[chosen_n], (lasts_m - firsts_m)[chosen_n], len(wanted_M))
        asking_nl = wanted_M[queries.read].unflatten(0, (len(chosen_n), -1)) - starts_m[chosen_n, None]
        groups.append(Group(queries, asking_nl, _places(starts_m[chosen_n], sizes_m[chosen_n], num_positions)))
    return groups


def _alike(sizes_m: torch.Tensor, chosen_m: torch.Tensor) -> Iterator[torch.Tensor]:
    """Documents by the group: numbers (n,), those of about the same length together."""
    group: list[int] = []
    for number in chosen_m[sizes_m[chosen_m].argsort(stable=True)].tolist():
        length = _rounded(int(sizes_m[number]))
        if group and (length * (len(group) + 1) > TOGETHER or length > ALIKE * _rounded(int(sizes_m[group[0]]))):
            yield torch.tensor(group)
            group = []
        group.append(number)
    if group:
        yield torch.tensor(group)


def _places(starts_n: torch.Tensor, lengths_n: torch.Tensor, num_rows: int) -> Places:
    """Where documents lie that begin at these rows, of `num_rows`, and take so many each."""
    offsets_L = torch.arange(_rounded(int(lengths_n.max())))
    is_nobodys_nL = offsets_L >= lengths_n[:, None]
    rows_nL = starts_n[:, None] + offsets_L
    read_nL = torch.where(is_nobodys_nL, starts_n[:, None], rows_nL)
    write_nL = torch.where(is_nobodys_nL, num_rows, rows_nL)
    nobodys = is_nobodys_nL[:, None, :, None] if is_nobodys_nL.any() else None
    return Places(len(starts_n), read_nL.flatten(), write_nL.flatten(), nobodys)


def _rounded(length: int) -> int:
    return -(-length // ROUNDED) * ROUNDED


def _zeros(num_rows: int, like: torch.Tensor) -> torch.Tensor:
    """(num_rows + 1, H, E)."""
    return like.new_zeros(num_rows + 1, *like.shape[1:])


@lru_cache(maxsize=64)
def _future(length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
