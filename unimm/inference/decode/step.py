"""One decode step as operations on tensors that stay where they are.

What a step reads and writes of its rows (`DecodeBatch`) lies on the device and is made again only when rows come or go: an id
that one step chooses is what the next one embeds, without a way over the host. So on a GPU the whole of it (embed, trunk,
heads, guidance, sampling) is one CUDA graph for each shape, and shapes are few: numbers of rows and slots are rounded up.

Shapes: R rows (and one more place, where the results of padding go), n requests of a kind and g null rows of theirs, both
rounded up; D trunk width, V vocabulary.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from unimm.inference.decode.cuda_graphs import Graphs
from unimm.inference.decode.kv_cache import RowCache
from unimm.inference.decode.request import Job, Row
from unimm.inference.decode.sampling import Sampler, guide
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.sequence import Kind

SLOTS = 128
"""Slots that a captured step reads: a multiple of so many."""

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of rows that steps are captured for; beyond, multiples of the last."""


class KindGroup:
    """The rows that fill one kind: requests, and null rows of those that are guided.

    reads, writes: places of all of them, requests first; padding reads what the first request does and writes to place R.
    """

    def __init__(self, kind: Kind, rows: list[Row], size: "BatchRounding", num_rows: int, vocabulary_size: int) -> None:
        ours = [place for place, row in enumerate(rows) if row.job.request.blank.kind == kind]
        requests = [place for place in ours if not rows[place].is_null]
        nulls = [place for place in ours if rows[place].is_null]
        self.jobs: list[Job] = [rows[place].job for place in requests]
        self.num_requests, num_nulls = size.of_lane(len(requests)), size.of_nulls(len(nulls))
        pads, null_pads = self.num_requests - len(requests), num_nulls - len(nulls)
        number = {job: index for index, job in enumerate(self.jobs)}
        owners = [number[rows[place].job] for place in nulls]
        others, scales = list(range(self.num_requests)), [1.0] * self.num_requests
        for index, owner in enumerate(owners):
            others[owner] = self.num_requests + index
            scales[owner] = self.jobs[owner].request.guidance_scale
        whole = {"dtype": torch.long, "device": size.device}
        self.reads = torch.tensor([*requests, *requests[:1] * pads, *nulls, *requests[:1] * null_pads], **whole)
        self.writes = torch.tensor([*requests, *[num_rows] * pads, *nulls, *[num_rows] * null_pads], **whole)
        self.owners = torch.tensor(owners + [0] * null_pads, **whole)
        self.others = torch.tensor(others, **whole)
        self.scales = torch.tensor(scales, device=size.device)
        self.steps = torch.tensor([len(job.filled) for job in self.jobs] + [0] * pads, **whole)
        samplings = [job.request.sampling for job in self.jobs]
        self.sampler = Sampler(
            samplings + samplings[:1] * pads,
            size.device,
            [_seen(job) for job in self.jobs] + [[]] * pads if kind == Kind.TEXT else None,
            vocabulary_size,
        )
        self.logprobs = any(job.request.logprobs for job in self.jobs)

    @property
    def shape(self) -> Hashable:
        """Lanes of the same shape run the same operations."""
        return (self.num_requests, len(self.owners), self.logprobs, self.sampler.settings)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that differs between lanes of one shape."""
        return [self.reads, self.writes, self.owners, self.others, self.scales, self.steps, *self.sampler.tensors]

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits (n + g, V) -> ids (n,), and their log-probabilities (n,), or none of them (0,)."""
        logits_nV = logits[: self.num_requests]
        if len(self.owners):
            logits_nV = guide(logits_nV, logits[self.others], self.scales)
        ids_n = self.sampler(logits_nV, self.steps)
        self.steps += 1
        if not self.logprobs:
            return ids_n, ids_n.new_zeros(0, dtype=torch.float32)
        return ids_n, logits_nV.float().log_softmax(-1).gather(1, ids_n[:, None])[:, 0]


class DecodeBatch:
    """All rows as tensors: the id that each is to read next and its position, and a lane a kind."""

    def __init__(self, rows: list[Row], size: "BatchRounding", vocabulary_sizes: dict[Kind, int], last_slot: int) -> None:
        self.num_rows = size.of_rows(len(rows))
        pads = self.num_rows - len(rows)
        whole = {"dtype": torch.long, "device": size.device}
        self.ids = torch.tensor([row.job.filled[-1] if row.job.filled else 0 for row in rows] + [0] * (pads + 1), **whole)
        # Padding writes its keys where no newcomer, whose rows lie behind, has any yet: at the last slot.
        self.positions = torch.tensor([row.length for row in rows] + [last_slot] * pads, **whole)
        self.moves = torch.tensor([1] * len(rows) + [0] * pads, **whole)
        present = {row.job.request.blank.kind for row in rows}
        self.lanes = {
            kind: KindGroup(kind, rows, size, self.num_rows, vocabulary_size)
            for kind, vocabulary_size in vocabulary_sizes.items()
            if kind in present
        }

    @property
    def shape(self) -> Hashable:
        """Arrangements of the same shape run the same operations."""
        return (self.num_rows, tuple((kind, lane.shape) for kind, lane in self.lanes.items()))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that differs between arrangements of one shape."""
        of_lanes = [tensor for lane in self.lanes.values() for tensor in lane.tensors]
        return [self.ids, self.positions, self.moves, *of_lanes]

    def become(self, other: "DecodeBatch") -> None:
        """Take the content of another of the same shape, in place."""
        for own, new in zip(self.tensors, other.tensors, strict=True):
            own.copy_(new)
        for kind, lane in self.lanes.items():
            lane.jobs = other.lanes[kind].jobs

    def choose(self, fast: DecodeModel, hidden_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next id of every request, lane after lane, and log-probabilities where a lane has them; ids are noted."""
        ids, logprobs = [], []
        for kind, lane in self.lanes.items():
            ids_n, logprobs_n = fast.sample(kind, hidden_RD[lane.reads], lane.choose)
            self.ids[lane.writes[: lane.num_requests]] = ids_n
            if len(lane.owners):
                self.ids[lane.writes[lane.num_requests :]] = ids_n[lane.owners]
            ids.append(ids_n)
            logprobs.append(logprobs_n)
        return torch.cat(ids), torch.cat(logprobs)

    def embed(self, fast: DecodeModel) -> torch.Tensor:
        """(R, D): the ids, each through the port of its kind."""
        embeddings_RD = None
        for kind, lane in self.lanes.items():
            values = fast.embed(kind, self.ids[lane.reads])
            if embeddings_RD is None:
                embeddings_RD = values.new_zeros(self.num_rows + 1, values.shape[-1])
            embeddings_RD[lane.writes] = values
        assert embeddings_RD is not None
        return embeddings_RD[: self.num_rows]


class PendingTokens:
    """What one step has chosen, on its way to the host."""

    def __init__(self, arrangement: DecodeBatch, ids: torch.Tensor, logprobs: torch.Tensor) -> None:
        self._lanes = [(lane.jobs, lane.num_requests, lane.logprobs) for lane in arrangement.lanes.values()]
        self._arrived: torch.cuda.Event | None = None
        self._ids, self._logprobs = ids, logprobs
        if ids.is_cuda:
            self._ids, self._logprobs = (_send(tensor) for tensor in (ids, logprobs))
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> Iterator[tuple[Job, int, float]]:
        """Every request with its next id and that one's log-probability, which is 0 where nobody asked."""
        if self._arrived is not None:
            self._arrived.synchronize()
        ids, logprobs = iter(self._ids.tolist()), iter(self._logprobs.tolist())
        for jobs, size, has_logprobs in self._lanes:
            lane_ids = [next(ids) for _ in range(size)]
            lane_logprobs = [next(logprobs) for _ in range(size)] if has_logprobs else [0.0] * size
            yield from zip(jobs, lane_ids, lane_logprobs, strict=False)  # padding follows the requests


@dataclass(frozen=True)
class BatchRounding:
    """How numbers of rows are rounded: not at all; to few sizes, for captured steps; or to one, where steps must not differ."""

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

    def of_lane(self, count: int) -> int:
        """Requests of one kind."""
        return self.of_rows(count)

    def of_nulls(self, count: int) -> int:
        """Null rows of one kind: none stay none, so that guidance that is off costs nothing."""
        return self.of_rows(count) if count or self.fixed_rows is not None else 0


class DecodeStep:
    """Moves all rows by one position.

    fixed_rows, fixed_slots: compute so many rows over so many slots whatever there is, so that nobody's numbers depend on
        company: kernels of different sizes round differently.
    """

    def __init__(
        self, fast: DecodeModel, cache: RowCache, fixed_rows: int | None = None, fixed_slots: int | None = None
    ) -> None:
        self.fast, self.cache, self.fixed_slots = fast, cache, fixed_slots
        self._graphs = make_graphs(fast)
        self.size = BatchRounding(next(fast.model.parameters()).device, self._graphs is not None, fixed_rows)
        self._vocabulary_sizes = {kind: port.vocabulary_size for kind, port in fast.model.vocabulary_ports.items()}
        self._kept: dict[Hashable, DecodeBatch] = {}
        self._now: DecodeBatch | None = None

    def room(self, rows: int, slots: int) -> tuple[int, int]:
        """Rows and slots that it computes for so many."""
        return self.size.of_rows(rows), self._slots(slots)

    def arrange(self, rows: list[Row]) -> None:
        """Say which rows there are, in the order of the cache's."""
        if rows:
            slots = self._slots(max(row.num_slots for row in rows))
            self.cache.reserve(self.size.of_rows(len(rows)), slots)
        self._now = self._arranged(rows) if rows else None
        if self._now is not None and self._graphs is not None:
            kept = self._kept.setdefault(self._now.shape, self._now)
            if kept is not self._now:
                kept.become(self._now)
            self._now = kept

    @torch.inference_mode()
    def run(self, num_slots: int) -> PendingTokens:
        """Every row reads its last id and chooses the next one. num_slots: most positions that any row then has."""
        now = self._now
        assert now is not None, "there are no rows"
        slots = self._slots(num_slots)
        self.cache.reserve(now.num_rows, slots)
        self.cache.settle()
        if self._graphs is None:
            return PendingTokens(now, *self._work(now, slots))
        shape = (now.shape, slots, self.cache.generation)
        return PendingTokens(now, *self._graphs.run(shape, lambda: self._work(now, slots), now.tensors))

    @torch.inference_mode()
    def begin(self, rows: list[Row], hidden_RD: torch.Tensor) -> PendingTokens:
        """The first id of rows that were just prefilled, from the hidden states of their last positions."""
        first = self._arranged(rows)
        padded_RD = hidden_RD.new_zeros(first.num_rows, hidden_RD.shape[-1])
        padded_RD[: len(rows)] = hidden_RD
        return PendingTokens(first, *first.choose(self.fast, padded_RD))

    def _arranged(self, rows: list[Row]) -> DecodeBatch:
        return DecodeBatch(rows, self.size, self._vocabulary_sizes, max(self.cache.num_slots - 1, 0))

    def _work(self, now: DecodeBatch, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_RD = self.fast.advance(now.embed(self.fast), now.positions, slots, self.cache)
        now.positions += now.moves
        return now.choose(self.fast, hidden_RD)

    def _slots(self, used: int) -> int:
        if self.fixed_slots is not None:
            return self.fixed_slots
        return -(-used // SLOTS) * SLOTS if self._graphs is not None else used


def make_graphs(fast: DecodeModel) -> Graphs | None:
    """Where steps can be captured: on a GPU, where nothing looks at the host. Rotations that change with length do."""
    looks = getattr(fast.model.trunk.rotary_emb, "rope_type", "default") in ("dynamic", "longrope") if fast.layers else True
    device = next(fast.model.parameters()).device
    return Graphs(device) if device.type == "cuda" and not looks else None


def _seen(job: Job) -> list[int]:
    """The ids of text that were given to a request or written by it."""
    given = [token for segment in job.request.sequence.given.segments if segment.kind == Kind.TEXT for token in segment.ids]
    return given + job.filled


def _send(tensor: torch.Tensor) -> Any:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
