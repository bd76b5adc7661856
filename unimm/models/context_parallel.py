"""Context parallelism: rows that are longer than one device holds, split by their positions over a group of processes.

Each of n processes holds T / n positions of every row: their embeddings, norms, MLPs, heads and losses. Attention needs all
positions, but every head by itself. So one all-to-all before it turns T / n positions of all heads into all positions of 1 / n
of the heads, and another one after it turns them back (DeepSpeed-Ulysses, arXiv 2309.14509). Masks of packed rows and kernels
of attention stay what they are.

All processes of a group read the same batch, so each knows where everything lies, and only what is computed is exchanged. The
gradient of an exchange is the exchange backwards: every process has the gradient of what it computed, whoever went on with it,
and their sum is that of the batch.

Shapes: B rows, T positions, of which a process holds S = T / n; H heads, G heads of keys that H heads share, E head width.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from unimm.models.attention import Mask


@dataclass(frozen=True)
class ContextGroup:
    """The processes that share the positions of rows, and which of them this one is.

    group: of torch.distributed.
    """

    group: Any
    number: int
    count: int

    def __deepcopy__(self, memo: Any) -> "ContextGroup":
        """The same: a copy of a model has the same processes."""
        return self

    def own(self, x_BT: Tensor) -> Tensor:
        """(B, T, ...) -> (B, S, ...): of its own positions, a view."""
        return x_BT.chunk(self.count, 1)[self.number]

    def own_positions(self, batch_BT: Tensor) -> Tensor:
        """(B * S,) long: where its own positions of a batch (B, T, ...) lie, counted over all rows."""
        num_rows, num_positions = batch_BT.shape[:2]
        every_N = torch.arange(num_rows * num_positions, device=batch_BT.device)
        return self.own(every_N.view(num_rows, num_positions)).flatten()

    def owners(self, where_n: Tensor, num_positions: int) -> Tensor:
        """(n,) long: who holds some positions, counted over all rows of so many."""
        return where_n % num_positions // (num_positions // self.count)

    def shares(self, num: int) -> list[slice]:
        """Each process' share of so many things in a row, none of which is split; shares differ by one at most."""
        ends = [num * number // self.count for number in range(self.count + 1)]
        return [slice(*pair) for pair in pairwise(ends)]

    def exchange(self, x_n: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows to and from each process of the group: `sent` of its own (n, ...), one after another; differentiable once."""
        return _Exchange.apply(x_n, sent, received, self.group)  # pyright: ignore[reportReturnType]

    def gather(self, x_m: Tensor, where_n: Tensor, num_positions: int) -> Tensor:
        """What all processes hold of some positions, (n, ...) in their order.

        x_m: (m, ...), of those that are this one's. where_n: long, rising, counted over all rows of `num_positions`.
        """
        owners_n = self.owners(where_n, num_positions)
        received = owners_n.bincount(minlength=self.count).tolist()
        together_n = self.exchange(torch.cat([x_m] * self.count), [len(x_m)] * self.count, received)
        return together_n[owners_n.argsort(stable=True).argsort()]

    def to_heads(self, query_BSHE: Tensor, key_BSGE: Tensor, value_BSGE: Tensor) -> list[Tensor]:
        """All positions of a part of the heads: (B, T, H / n, E), and twice (B, T, max(G, n) / n, E). Of fewer heads of keys
        than processes, several get the same."""
        copies = max(1, self.count // key_BSGE.shape[2])
        heads = (query_BSHE, *(x.repeat_interleave(copies, 2) if copies > 1 else x for x in (key_BSGE, value_BSGE)))
        sizes = [x.shape[2] // self.count for x in heads]
        num_rows, num_own, _, width = query_BSHE.shape
        sent_nBShE = torch.cat([x.unflatten(2, (self.count, -1)).movedim(2, 0) for x in heads], 3)
        received_n = self._exchange_evenly(sent_nBShE.view(self.count, -1))
        received_nBShE = received_n.view(self.count, num_rows, num_own, sum(sizes), width)
        return list(received_nBShE.movedim(0, 1).flatten(1, 2).split(sizes, 2))

    def to_positions(self, seen_BTX: Tensor) -> Tensor:
        """What its heads gathered, (B, T, H / n * E) -> of all heads at its own positions, (B, S, H * E)."""
        num_rows, num_positions, width = seen_BTX.shape
        sent_nBSX = seen_BTX.unflatten(1, (self.count, -1)).movedim(1, 0)
        received_n = self._exchange_evenly(sent_nBSX.reshape(self.count, -1))
        received_nBSX = received_n.view(self.count, num_rows, num_positions // self.count, width)
        return received_nBSX.movedim(0, 2).flatten(2)

    def _exchange_evenly(self, x_n: Tensor) -> Tensor:
        return self.exchange(x_n, [1] * self.count, [1] * self.count)


@dataclass(frozen=True)
class SplitMask:
    """The mask of whole rows, as the attention backend takes it, of which each process of a group holds a part."""

    mask: Mask
    context: ContextGroup


def all_to_all(x_n: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """Rows to and from each process."""
    out_n = x_n.new_empty(sum(received), *x_n.shape[1:])
    distributed.all_to_all_single(out_n, x_n.contiguous(), received, sent, group=group)
    return out_n


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_n: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.way = sent, received, group
        return all_to_all(x_n, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        sent, received, group = ctx.way
        return all_to_all(slopes[0], received, sent, group), None, None, None
