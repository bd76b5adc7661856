"""One decode step as operations on tensors that stay where they are.

What a step reads and writes of its rows (`DecodeBatch`) lies on the device and is made again only when rows come or go: an id
that one step chooses is what the next one embeds, without a round trip to the host. So on a GPU the whole of it (embed, trunk,
heads, guidance, sampling) is one CUDA graph for each shape, and shapes are few: numbers of rows and slots are rounded up. (A
step of a 1B model is some hundred small kernels; launched one by one from Python they take longer than they run.)

Shapes: R rows (and one more place, where the results of padding go), n requests of a kind, g further rows of theirs for the
other branches of guidance, both rounded up, B branches but the first; D trunk width, V vocabulary, k likeliest ids.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from unimm.inference.decode.kv_cache import RowCache
from unimm.inference.decode.request import MAX_TOP_LOGPROBS, Job, Likeliest, Row
from unimm.inference.decode.sampling import Sampler, combine
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.sequence import Kind

SLOTS = 128
"""Slots that a captured step reads are a multiple of this."""

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of rows that steps are captured for; beyond, multiples of the last."""


MOST = 256
"""Graphs that are kept; beyond, all are recorded again. Each holds a few MB."""


class KindGroup:
    """The rows that fill one kind: requests in their first branch, then the other branches of those that are guided.

    reads, writes: places of all of them, requests first; padding reads what the first request does and writes to place R.
    """

    def __init__(self, kind: Kind, rows: list[Row], size: "BatchRounding", num_rows: int, vocabulary_size: int) -> None:
        ours = [place for place, row in enumerate(rows) if row.job.request.blank.kind == kind]
        requests = [place for place in ours if rows[place].branch == 0]
        others = [place for place in ours if rows[place].branch > 0]
        self.jobs: list[Job] = [rows[place].job for place in requests]
        self.num_requests, num_others = size.of_requests(len(requests)), size.of_branches(len(others))
        pads, other_pads = self.num_requests - len(requests), num_others - len(others)
        whole = {"dtype": torch.long, "device": size.device}
        self.reads = torch.tensor([*requests, *requests[:1] * pads, *others, *requests[:1] * other_pads], **whole)
        self.writes = torch.tensor([*requests, *[num_rows] * pads, *others, *[num_rows] * other_pads], **whole)
        number = {job: index for index, job in enumerate(self.jobs)}
        self.owners = torch.tensor([number[rows[place].job] for place in others] + [0] * other_pads, **whole)
        places, weights = self._branches([rows[place] for place in others], number)
        self.places, self.weights = torch.tensor(places, **whole), torch.tensor(weights, device=size.device)
        steps = [job.request.first_place + len(job.filled) for job in self.jobs]
        self.steps = torch.tensor(steps + [0] * pads, **whole)
        samplings = [job.request.sampling for job in self.jobs]
        self.sampler = Sampler(
            samplings + samplings[:1] * pads,
            size.device,
            [_seen(job, kind) for job in self.jobs] + [[]] * pads,
            vocabulary_size,
        )
        # All that the likeliest are asked for at most, or none: few shapes.
        has_top = any(job.request.top_logprobs for job in self.jobs)
        self.num_likeliest = min(MAX_TOP_LOGPROBS, vocabulary_size) if has_top else 0
        self.logprobs = has_top or any(job.request.logprobs for job in self.jobs)

    def _branches(self, rows: list[Row], number: dict[Job, int]) -> tuple[list[list[int]], list[list[float]]]:
        """What `combine` reads of the rows of other branches, (B, n) each."""
        most = max((len(row.job.request.guidance) for row in rows), default=2) - 1
        places = [list(range(self.num_requests)) for _ in range(most)]
        weights = [[float(branch == 0)] * self.num_requests for branch in range(most)]
        for index, row in enumerate(rows):
            owner, branches = number[row.job], row.job.request.guidance
            weights[row.branch - 1][owner] = branches[row.branch - 1].weight
            last = most if row.branch == len(branches) - 1 else row.branch
            for place in places[row.branch - 1 : last]:
                place[owner] = self.num_requests + index
        return places, weights

    @property
    def shape(self) -> Hashable:
        """Groups of the same shape run the same operations."""
        return (self.num_requests, len(self.owners), len(self.places), self.logprobs, self.num_likeliest, self.sampler.settings)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that differs between groups of one shape."""
        return [self.reads, self.writes, self.owners, self.places, self.weights, self.steps, *self.sampler.tensors]

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits (n + g, V) -> ids (n, 1 + k): the chosen one and the likeliest; and log-probabilities (n, 1 + k), or none of
        them (n, 0)."""
        logits_nV = logits[: self.num_requests]
        if len(self.owners):
            logits_nV = combine(logits, self.places, self.weights)
        ids_n1 = self.sampler(logits_nV, self.steps)[:, None]
        self.steps += 1
        if not self.logprobs:
            return ids_n1, ids_n1.new_zeros(len(ids_n1), 0, dtype=torch.float32)
        logprobs_nV = logits_nV.float().log_softmax(-1)
        if self.num_likeliest:
            ids_n1 = torch.cat([ids_n1, logprobs_nV.topk(self.num_likeliest).indices], dim=1)
        return ids_n1, logprobs_nV.gather(1, ids_n1)


class DecodeBatch:
    """All rows as tensors: the id that each reads next and its position, and a `KindGroup` for each kind."""

    def __init__(self, rows: list[Row], size: "BatchRounding", vocabulary_sizes: dict[Kind, int], last_slot: int) -> None:
        self.num_rows = size.of_rows(len(rows))
        pads = self.num_rows - len(rows)
        whole = {"dtype": torch.long, "device": size.device}
        self.ids = torch.tensor([row.job.filled[-1] if row.job.filled else 0 for row in rows] + [0] * (pads + 1), **whole)
        # Padding writes its keys at the last slot: rows behind, which are being prefilled, have nothing there yet.
        self.positions = torch.tensor([row.length for row in rows] + [last_slot] * pads, **whole)
        self.moves = torch.tensor([1] * len(rows) + [0] * pads, **whole)
        present = {row.job.request.blank.kind for row in rows}
        self.groups = {
            kind: KindGroup(kind, rows, size, self.num_rows, vocabulary_size)
            for kind, vocabulary_size in vocabulary_sizes.items()
            if kind in present
        }

    @property
    def shape(self) -> Hashable:
        """Batches of the same shape run the same operations."""
        return (self.num_rows, tuple((kind, group.shape) for kind, group in self.groups.items()))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that differs between batches of one shape."""
        of_groups = [tensor for group in self.groups.values() for tensor in group.tensors]
        return [self.ids, self.positions, self.moves, *of_groups]

    def copy_from(self, other: "DecodeBatch") -> None:
        """Take the content of another of the same shape, in place."""
        for own, new in zip(self.tensors, other.tensors, strict=True):
            own.copy_(new)
        for kind, group in self.groups.items():
            group.jobs = other.groups[kind].jobs

    def choose(self, model: DecodeModel, hidden_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each group chooses, one after another, in a row; the next id of every request is kept."""
        ids, logprobs = [], []
        for kind, group in self.groups.items():
            ids_nk, logprobs_nk = model.sample(kind, hidden_RD[group.reads], group.choose)
            ids_n = ids_nk[:, 0]
            self.ids[group.writes[: group.num_requests]] = ids_n
            if len(group.owners):
                self.ids[group.writes[group.num_requests :]] = ids_n[group.owners]
            ids.append(ids_nk.flatten())
            logprobs.append(logprobs_nk.flatten())
        return torch.cat(ids), torch.cat(logprobs)

    def embed(self, model: DecodeModel) -> torch.Tensor:
        """(R, D): the ids, each through the port of its kind."""
        embeddings_RD = None
        for kind, group in self.groups.items():
            values = model.embed(kind, self.ids[group.reads])
            if embeddings_RD is None:
                embeddings_RD = values.new_zeros(self.num_rows + 1, values.shape[-1])
            embeddings_RD[group.writes] = values
        assert embeddings_RD is not None
        return embeddings_RD[: self.num_rows]


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

    def read(self) -> Iterator[tuple[Job, int, float, Likeliest]]:
        """Every request with its next id, that one's log-probability, 0 where it was not asked for, and the likeliest ids."""
        if self._arrived is not None:
            self._arrived.synchronize()
        ids, logprobs = iter(self._ids.tolist()), iter(self._logprobs.tolist())
        for jobs, size, has_logprobs, k in self._groups:
            own_ids = [[next(ids) for _ in range(1 + k)] for _ in range(size)]
            own_logprobs = [[next(logprobs) for _ in range(1 + k)] if has_logprobs else [0.0] for _ in range(size)]
            for job, one, logs in zip(jobs, own_ids, own_logprobs, strict=False):  # padding follows the requests
                yield job, one[0], logs[0], tuple(zip(one[1:], logs[1:], strict=True))


@dataclass(frozen=True)
class BatchRounding:
    """How numbers of rows are rounded: not at all; to few sizes, for captured steps; or to one, for deterministic steps."""

    device: torch.device
    is_rounded: bool = False
    fixed_rows: int | None = None

    def of_rows(self, count: int) -> int:
        """Rows of a step."""
        if self.fixed_rows is not None:
            return self.fixed_rows
        if not self.is_rounded:
            return count
        return next((size for size in SIZES if size >= count), -(-count // SIZES[-1]) * SIZES[-1])

    def of_requests(self, count: int) -> int:
        """Requests of one kind."""
        return self.of_rows(count)

    def of_branches(self, count: int) -> int:
        """Rows of other branches of one kind: none stay none, so that guidance that is off costs nothing."""
        return self.of_rows(count) if count or self.fixed_rows is not None else 0


class DecodeStep:
    """Moves all rows by one position.

    fixed_rows, fixed_slots: rows and slots that every step computes, for batch invariance: kernels of different sizes round
        differently.
    """

    def __init__(
        self, model: DecodeModel, cache: RowCache, fixed_rows: int | None = None, fixed_slots: int | None = None
    ) -> None:
        self.model, self.cache, self.fixed_slots = model, cache, fixed_slots
        self._graphs = make_graphs(model)
        self.size = BatchRounding(next(model.model.parameters()).device, self._graphs is not None, fixed_rows)
        self._vocabulary_sizes = {kind: port.vocabulary_size for kind, port in model.model.vocabulary_ports.items()}
        self._kept: dict[Hashable, DecodeBatch] = {}
        self._batch: DecodeBatch | None = None

    def rounded(self, rows: int, slots: int) -> tuple[int, int]:
        """Rows and slots that it computes for these numbers."""
        return self.size.of_rows(rows), self._slots(slots)

    def set_rows(self, rows: list[Row]) -> None:
        """From now on these rows, in the order of the cache's."""
        if rows:
            slots = self._slots(max(row.num_slots for row in rows))
            self.cache.reserve(self.size.of_rows(len(rows)), slots)
        self._batch = self._batch_of(rows) if rows else None
        if self._batch is not None and self._graphs is not None:
            kept = self._kept.setdefault(self._batch.shape, self._batch)
            if kept is not self._batch:
                kept.copy_from(self._batch)
            self._batch = kept

    @torch.inference_mode()
    def run(self, num_slots: int) -> PendingTokens:
        """Every row reads its last id and chooses the next one. num_slots: most positions that any row then has."""
        batch = self._batch
        assert batch is not None, "there are no rows"
        slots = self._slots(num_slots)
        self.cache.reserve(batch.num_rows, slots)
        self.cache.grow()
        if self._graphs is None:
            return PendingTokens(batch, *self._compute(batch, slots))
        shape = (batch.shape, slots, self.cache.generation)
        return PendingTokens(batch, *self._graphs.run(shape, lambda: self._compute(batch, slots), batch.tensors))

    @torch.inference_mode()
    def choose_first(self, rows: list[Row], hidden_RD: torch.Tensor) -> PendingTokens:
        """The first id of rows that were just prefilled, from the hidden states of their last positions."""
        first = self._batch_of(rows)
        padded_RD = hidden_RD.new_zeros(first.num_rows, hidden_RD.shape[-1])
        padded_RD[: len(rows)] = hidden_RD
        return PendingTokens(first, *first.choose(self.model, padded_RD))

    def _batch_of(self, rows: list[Row]) -> DecodeBatch:
        return DecodeBatch(rows, self.size, self._vocabulary_sizes, max(self.cache.num_slots - 1, 0))

    def _compute(self, batch: DecodeBatch, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_RD = self.model.advance(batch.embed(self.model), batch.positions, slots, self.cache)
        batch.positions += batch.moves
        return batch.choose(self.model, hidden_RD)

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


def make_graphs(model: DecodeModel) -> Graphs | None:
    """Where steps can be captured: on a GPU, where nothing reads back to the host. Rotations that change with length do."""
    syncs = getattr(model.model.trunk.rotary_emb, "rope_type", "default") in ("dynamic", "longrope") if model.layers else True
    device = next(model.model.parameters()).device
    return Graphs(device) if device.type == "cuda" and not syncs else None


def _seen(job: Job, kind: Kind) -> list[int]:
    """The ids of a kind that were given to a request or chosen for it, where a repetition penalty is for them."""
    if job.request.sampling.repetition_penalty == 1.0:
        return []
    given = [token for segment in job.request.sequence.given.segments if segment.kind == kind for token in segment.ids]
    return given + job.filled


def _send(tensor: torch.Tensor) -> Any:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
