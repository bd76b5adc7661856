"""Where the documents of packed rows lie while each attends to itself: side by side in groups, in a few shapes.

Where all of a document asks, it does so in stretches, each of what comes before its end and no further; where only wanted
positions ask, in one. Stretches that begin alike and see about as much stand side by side. Lengths are rounded up, for oneDNN
compiles every product anew for every shape, half a millisecond each, and forgets the oldest of a thousand (recipes/LOG.md).

Shapes: N positions, M of them ask, H heads, G heads of keys that H heads share, E head width; n stretches of l queries that see
L keys side by side, K = n * H; R rows of E numbers, those of all groups one after another. Of a layout's own making: m
documents, u stretches, P positions of all groups.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

ROUNDED = 16
"""What numbers of keys and of queries are a multiple of."""

TOGETHER = 768 * 240
"""Pairs of a query and a key in a group of more than one stretch."""

STRETCH = 128
"""Queries of a stretch, a multiple of `ROUNDED`. In shorter ones less is computed in vain, and more keys are gathered twice."""

MOST_STRETCHES = 4
"""Of a document; those of a very long one are longer."""

ALIKE = 1.25
"""How many times the keys of a group's shortest stretch its longest may see."""


class Group(NamedTuple):
    """Stretches side by side.

    num_stretches: n. queries, keys: their slices of R.
    first, asking: which of their own positions ask: all from the first on, L = first + l, or (n, l) long.
    """

    num_stretches: int
    queries: slice
    keys: slice
    first: int
    asking: torch.Tensor | None

    def mask(self, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores, minus infinity for the future: (l, L) for a stretch, or (K, l, L)."""
        future_LL = _future((self.keys.stop - self.keys.start) // (self.num_stretches * num_heads), dtype)
        return future_LL[self.first :] if self.asking is None else future_LL[self.asking].repeat_interleave(num_heads, 0)

    def of(self, num_heads: int, side: slice, *rows_RE: torch.Tensor) -> list[torch.Tensor]:
        """This group's own of what lies by queries, or by keys: views (K, L, E)."""
        return [x[side].unflatten(0, (self.num_stretches * num_heads, -1)) for x in rows_RE]


class Places(NamedTuple):
    """Where what lies by position and head, (N, H, E), lies by group, (R, E): stretch, head, position within.

    read: (R,) long: which row of (N * H, E) each is, or of (N * G, E) where heads share it; some row of the same document
        where the stretch is shorter than its group's: such a row is nobody's.
    nobodys: long: which of R they are.
    back: (N * H,) long each: where each lies among R, as often as some do; R itself where it does not, or not so often.
    """

    read: torch.Tensor
    nobodys: torch.Tensor
    back: list[torch.Tensor]

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
        """(R + 1, E) -> (N, H, E), zero for what belongs to no document; what lies in several places is added up."""
        x_SE[-1] = 0
        sum_NHE, *others = (x_SE.index_select(0, back) for back in self.back)
        for x_NHE in others:
            sum_NHE += x_NHE
        return sum_NHE.unflatten(0, (-1, num_heads))


class Layout(NamedTuple):
    """Where the documents of a batch lie while they attend."""

    groups: list[Group]
    queries: Places
    keys: Places
    num_heads: int
    num_key_heads: int


@lru_cache(maxsize=8)
def arrange_all(sizes: tuple[int, ...], num_heads: int, num_key_heads: int) -> Layout:
    """The documents of these sizes, one after another, of which every position asks; those below 0 are padding."""
    sizes_m = torch.tensor(sizes, dtype=torch.long)
    starts_m, num_positions = sizes_m.abs().cumsum(0) - sizes_m.abs(), int(sizes_m.abs().sum())
    pieces = [(number, *piece) for number, size in enumerate(sizes) for piece in _pieces(size)]
    numbers_u, firsts_u, lasts_u = torch.tensor(pieces, dtype=torch.long).view(-1, 3).unbind(1)
    chosen = _alike(firsts_u.tolist(), (lasts_u - firsts_u).tolist(), lasts_u.tolist())
    asks = _side_by_side(chosen, starts_m[numbers_u] + firsts_u, lasts_u - firsts_u)
    told = _side_by_side(chosen, starts_m[numbers_u], lasts_u)
    groups = [
        Group(len(each), own, others, int(firsts_u[each[0]]), None)
        for each, own, others in zip(chosen, _by_head(asks, num_heads), _by_head(told, num_heads), strict=True)
    ]
    queries = _places(asks, num_positions, num_heads, num_heads)
    return Layout(groups, queries, _places(told, num_positions, num_heads, num_key_heads), num_heads, num_key_heads)


def arrange_asking(sizes_m: torch.Tensor, wanted_M: torch.Tensor, num_heads: int, num_key_heads: int) -> Layout:
    """The same where only the wanted positions ask; documents in which nothing does are passed over."""
    wanted_M = wanted_M.to(sizes_m.device)
    ends_m = sizes_m.abs().cumsum(0)
    starts_m, num_positions = ends_m - sizes_m.abs(), int(sizes_m.abs().sum())
    firsts_m, lasts_m = torch.searchsorted(wanted_M, starts_m), torch.searchsorted(wanted_M, ends_m)
    asking_u = ((sizes_m > 0) & (firsts_m < lasts_m)).nonzero().squeeze(1)
    starts_u, sizes_u, firsts_u, lasts_u = (x[asking_u] for x in (starts_m, sizes_m, firsts_m, lasts_m))
    chosen = _alike([0] * len(asking_u), (lasts_u - firsts_u).tolist(), sizes_u.tolist())
    asks, told = _side_by_side(chosen, firsts_u, lasts_u - firsts_u), _side_by_side(chosen, starts_u, sizes_u)
    asking_P = wanted_M[asks.positions]
    groups = [
        Group(len(each), own, others, 0, asking_P[place].view(len(each), -1) - starts_u[each, None])
        for each, place, own, others in zip(
            chosen, asks.groups, _by_head(asks, num_heads), _by_head(told, num_heads), strict=True
        )
    ]
    queries = _places(asks, len(wanted_M), num_heads, num_heads)
    return Layout(groups, queries, _places(told, num_positions, num_heads, num_key_heads), num_heads, num_key_heads)


def _pieces(size: int) -> list[tuple[int, int]]:
    """First and last (not included) of the stretches that a document's queries come in; none of padding."""
    stretch = max(STRETCH, _rounded(-(-size // MOST_STRETCHES)))
    return [(first, min(first + stretch, size)) for first in range(0, size, stretch)]


def _alike(firsts_u: list[int], queries_u: list[int], keys_u: list[int]) -> list[torch.Tensor]:
    """Stretches by the group: numbers (n,), those that begin alike and see about as much together."""
    groups: list[list[int]] = []
    for number in sorted(range(len(keys_u)), key=lambda number: (firsts_u[number], keys_u[number])):
        group = groups[-1] if groups else []
        num_keys, num_queries = _rounded(keys_u[number]), _rounded(max([queries_u[number], *(queries_u[one] for one in group)]))
        is_alike = group and firsts_u[group[0]] == firsts_u[number] and num_keys <= ALIKE * _rounded(keys_u[group[0]])
        if not is_alike or num_queries * num_keys * (len(group) + 1) > TOGETHER:
            groups.append(group := [])
        group.append(number)
    return [torch.tensor(group) for group in groups]


class _SideBySide(NamedTuple):
    """Positions by group and stretch, P in all with nobody's.

    positions: (P,) long, of nobody's the first of the stretch. is_nobodys: (P,) bool.
    firsts, lengths: (P,) long: where in P the stretch begins, and how many it takes there.
    groups: the groups' slices of P.
    """

    positions: torch.Tensor
    is_nobodys: torch.Tensor
    firsts: torch.Tensor
    lengths: torch.Tensor
    groups: list[slice]


def _side_by_side(groups: list[torch.Tensor], starts_u: torch.Tensor, sizes_u: torch.Tensor) -> _SideBySide:
    """Stretches that begin at these positions and take so many each, group after group, all of a group equally long."""
    numbers_u = torch.cat([torch.empty(0, dtype=torch.long), *groups])
    lengths = [_rounded(int(sizes_u[group].max())) for group in groups]
    slices, end = [], 0
    for group, length in zip(groups, lengths, strict=True):
        slices.append(slice(end, end := end + len(group) * length))
    lengths_u = torch.tensor(lengths, dtype=torch.long).repeat_interleave(torch.tensor([len(group) for group in groups]).long())
    firsts_u = lengths_u.cumsum(0) - lengths_u
    firsts_P, lengths_P, starts_P, sizes_P = (
        each.repeat_interleave(lengths_u) for each in (firsts_u, lengths_u, starts_u[numbers_u], sizes_u[numbers_u])
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
    # A stretch's heads lie one after another, its positions within them.
    offsets_P = torch.arange(len(laid.positions)) - laid.firsts
    rows_PH = (laid.firsts * num_heads + offsets_P)[:, None] + laid.lengths[:, None] * heads_H
    read_R = torch.empty(rows_PH.numel(), dtype=torch.long)
    read_R[rows_PH] = laid.positions[:, None] * num_key_heads + heads_H // (num_heads // num_key_heads)
    positions_P, rows_PH, nobodys = laid.positions[~laid.is_nobodys], rows_PH[~laid.is_nobodys], rows_PH[laid.is_nobodys]
    # How often a position came before: keys that several stretches of their document see lie in several places.
    order_P = positions_P.argsort(stable=True)
    sorted_P = positions_P[order_P]
    times_P = torch.empty_like(positions_P)
    times_P[order_P] = torch.arange(len(sorted_P)) - torch.searchsorted(sorted_P, sorted_P)
    back = []
    for time in range(1 + max(times_P.tolist(), default=0)):
        back_NH = torch.full((num_positions, num_heads), len(read_R))
        back_NH[positions_P[times_P == time]] = rows_PH[times_P == time]
        back.append(back_NH.flatten())
    return Places(read_R, nobodys.flatten(), back)


def _rounded(length: int) -> int:
    return -(-length // ROUNDED) * ROUNDED


@lru_cache(maxsize=64)
def _future(length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
