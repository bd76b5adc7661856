"""One decode step as operations on tensors that stay where they are.

What a step reads and writes of its rows (`batch`) lies on the device and is made again only when rows come or go: an id that
one step chooses is what the next one embeds, without a round trip to the host. So on a GPU the whole of it (embed, trunk,
heads, guidance, sampling) is one CUDA graph for each shape, and shapes are few: numbers of rows and slots are rounded up. (A
step of a 1B model is some hundred small kernels; launched one by one from Python they take longer than they run.) So are steps
with windows, where all rows then have as many positions; the host reads what each has chosen, and writes what the next one
computes, between two of them.

Shapes: R rows, P new positions of all of them, D trunk width, k likeliest ids.
"""

from collections.abc import Callable, Hashable, Iterator
from itertools import groupby
from typing import Any

import torch

from unimm.inference.decode.batch import BatchRounding, DecodeBatch
from unimm.inference.decode.ragged_cache import KeyValueCache
from unimm.inference.decode.request import Choice, Job, Request, Row
from unimm.inference.kernels.llama_decode import DecodeModel

SLOTS = 128
"""Slots that a captured step reads are a multiple of this."""

MOST = 256
"""Graphs that are kept; beyond, all are recorded again. Each holds a few MB."""


class PendingTokens:
    """What one step has chosen, on its way from the device to the host."""

    def __init__(self, batch: DecodeBatch, ids: torch.Tensor, logprobs: torch.Tensor) -> None:
        self._groups = [
            (group.jobs, group.num_requests, group.logprobs, group.num_likeliest) for group in batch.groups.values()
        ]
        self._arrived: torch.cuda.Event | None = None
        self._ids, self._logprobs = ids, logprobs
        if ids.is_cuda:
            self._ids, self._logprobs = (_send(tensor) for tensor in (ids, logprobs))
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> None:
        """Until it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def read(self) -> Iterator[tuple[Job, list[Choice]]]:
        """Every request with what was chosen at each of its new positions, in their order."""
        self.wait()
        ids, logprobs = iter(self._ids.tolist()), iter(self._logprobs.tolist())
        for jobs, size, has_logprobs, k in self._groups:
            own_ids = [[next(ids) for _ in range(1 + k)] for _ in range(size)]
            own_logprobs = [[next(logprobs) for _ in range(1 + k)] if has_logprobs else [0.0] for _ in range(size)]
            choices = [
                Choice(one[0], logs[0], tuple(zip(one[1:], logs[1:], strict=True)))
                for one, logs in zip(own_ids, own_logprobs, strict=True)
            ]
            for job, own in groupby(zip(jobs, choices, strict=False), key=lambda pair: pair[0]):  # padding follows the requests
                yield job, [choice for _, choice in own]


class DecodeStep:
    """Moves all rows by one position, or by as many of a window as were guessed right.

    batch: its rows now; None: it has none.
    fixed_rows, fixed_slots, fixed_window: rows, slots, and positions of a row that every step computes, for batch invariance:
        kernels of different sizes round differently.
    """

    def __init__(
        self,
        model: DecodeModel,
        cache: KeyValueCache,
        fixed_rows: int | None = None,
        fixed_slots: int | None = None,
        fixed_window: int = 1,
    ) -> None:
        self.model, self.cache, self.fixed_slots, self.fixed_window = model, cache, fixed_slots, fixed_window
        self._graphs = make_graphs(model)
        self._turns_by_length = turns_by_length(model)
        self.size = BatchRounding(next(model.model.parameters()).device, self._graphs is not None, fixed_rows)
        self._vocabulary_sizes = {kind: port.vocabulary_size for kind, port in model.model.vocabulary_ports.items()}
        self._kept: dict[Hashable, DecodeBatch] = {}
        self.batch: DecodeBatch | None = None

    def rounded(self, rows: int, slots: int) -> tuple[int, int]:
        """Rows and slots that it computes for these numbers."""
        return self.size.of_rows(rows), self._slots(slots)

    def set_rows(self, rows: list[Row], widths: list[int] | None = None) -> None:
        """From now on these rows, in the order of the cache's, with as many new positions a step; None: one each."""
        if rows:
            slots = self._slots(max(row.num_slots for row in rows))
            self.cache.reserve(self.size.of_rows(len(rows)), slots)
        self.batch = self._batch_of(rows, widths, self.fixed_window) if rows else None
        if self.batch is not None and self._graphs is not None:
            kept = self._kept.setdefault(self.batch.shape, self.batch)
            if kept is not self.batch:
                kept.copy_from(self.batch)
            self.batch = kept

    @torch.inference_mode()
    def refresh(self) -> None:
        """The same rows, which the last step has not all moved by one."""
        assert self.batch is not None
        self.batch.refresh()

    @torch.inference_mode()
    def run(self, num_slots: int) -> PendingTokens:
        """Every row reads its last id and chooses the next one. num_slots: most positions that any row then has."""
        batch = self.batch
        assert batch is not None, "there are no rows"
        slots = self._slots(num_slots)
        self.cache.reserve(batch.num_rows, slots)
        self.cache.grow()
        if self._graphs is None:
            return PendingTokens(batch, *self._compute(batch, slots))
        shape = (batch.shape, slots, self.cache.generation)
        return PendingTokens(batch, *self._graphs.run(shape, lambda: self._compute(batch, slots), batch.tensors))

    @torch.inference_mode()
    def capture(self, requests: list[Request], num_rows: int, num_slots: int, window: int, pad_id: int) -> int:
        """Record the steps of each of these requests alone, with whole windows, in every number of rows and slots up to these
        that steps are rounded to, so that few are recorded while somebody waits; returns how many. Nothing where steps are not
        captured. The cache has been reserved for them, so that its buffers stay where they are."""
        if self._graphs is None:
            return 0
        before = len(self._graphs)
        for request in requests:
            branches = len(Job(-1, request).rows(pad_id))
            for count in self.size.all_rows(num_rows):
                if count >= branches:
                    self._capture_rows(
                        [Job(-1, request, filled=[0]) for _ in range(count // branches)], num_slots, window, pad_id
                    )
        self.batch = None
        return len(self._graphs) - before

    def _capture_rows(self, jobs: list[Job], num_slots: int, window: int, pad_id: int) -> None:
        width = jobs[0].width(window)
        for job in jobs:
            job.guess(width - 1)
        rows = [row for job in jobs for row in job.rows(pad_id)]
        self.set_rows(rows, [width] * len(rows))
        assert self.batch is not None
        if not self.cache.num_bytes:  # made by their first use: else the first graph would be one of other buffers
            self._compute(self.batch, self._slots(1))
        for slots in range(self._slots(1), self._slots(num_slots) + 1, SLOTS):
            self.batch.refresh()
            self.run(slots).wait()

    @torch.inference_mode()
    def choose_first(self, rows: list[Row], hidden_RD: torch.Tensor) -> PendingTokens:
        """The first id of rows that were just prefilled, from the hidden states of their last positions."""
        first = self._batch_of(rows, None, 1)
        padded_RD = hidden_RD.new_zeros(first.num_positions, hidden_RD.shape[-1])
        padded_RD[: len(rows)] = hidden_RD
        return PendingTokens(first, *first.choose(self.model, padded_RD))

    def _batch_of(self, rows: list[Row], widths: list[int] | None, window: int) -> DecodeBatch:
        last_slot = max(self.cache.num_slots - 1, 0)
        return DecodeBatch(rows, self.size, self._vocabulary_sizes, last_slot, widths, window)

    def _compute(self, batch: DecodeBatch, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Padding lies behind all that a row may have, and is not to count as the longest position.
        turned_P = batch.positions * batch.moves if self._turns_by_length else None
        hidden_PD = self.model.advance(batch.embed(self.model), batch.positions, slots, self.cache, batch.windows, turned_P)
        batch.positions += batch.moves
        return batch.choose(self.model, hidden_PD)

    def _slots(self, used: int) -> int:
        if self.fixed_slots is not None:
            return self.fixed_slots
        return -(-used // SLOTS) * SLOTS if self._graphs is not None else used


class Graphs:
    """Graphs of one function by the shape it is called for. Everything that it reads must stay at its place in memory."""

    def __init__(self, device: torch.device) -> None:
        # Of high priority: streams of that pool are used for nothing else here; images are decoded on one of the others.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, shape: Hashable, work: Callable[[], Any], changed: list[torch.Tensor]) -> Any:
        """What `work()` gives, as tensors that the next call may overwrite. changed: what it writes to beside them."""
        if shape not in self._graphs:
            if len(self._graphs) >= MOST:
                self._graphs.clear()
                self._pool = None  # what was recorded is gone, and its memory with it
            self._graphs[shape] = self._record(work, changed)
        graph, result = self._graphs[shape]
        graph.replay()
        return result

    def _record(self, work: Callable[[], Any], changed: list[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, Any]:
        # Libraries make their workspaces at the first call, which must not be recorded; and that call counts for nothing.
        before = [tensor.clone() for tensor in changed]
        own = torch.cuda.current_stream()
        self._stream.wait_stream(own)
        with torch.cuda.stream(self._stream):
            work()
        own.wait_stream(self._stream)
        for tensor, content in zip(changed, before, strict=True):
            tensor.copy_(content)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be decoding images meanwhile; what it does is not recorded.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        self._pool = self._pool or graph.pool()
        return graph, result


def turns_by_length(model: DecodeModel) -> bool:
    """Whether all rotations of a step change with the longest of its positions."""
    rotary = getattr(model.model.trunk, "rotary_emb", None)
    return getattr(rotary, "rope_type", "default") in ("dynamic", "longrope")


def make_graphs(model: DecodeModel) -> Graphs | None:
    """Where steps can be captured: on a GPU, where nothing reads back to the host. Rotations that change with length do."""
    syncs = turns_by_length(model) or not model.layers
    device = next(model.model.parameters()).device
    return Graphs(device) if model.kernels.is_captured and not syncs else None


def _send(tensor: torch.Tensor) -> Any:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
