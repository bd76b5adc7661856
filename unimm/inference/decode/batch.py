"""What a decode step reads and writes of its rows, as tensors that stay where they are.

A row has one new position a step: the id that it reads last. A drawing may have a window of them instead: behind that id,
guesses of its next codes, all of which are computed at once (`windows`). Positions lie row after row; in steps of one size,
and in captured ones, every row has as many, some of which are padding.

Shapes: R rows, W positions of a row at most, P positions of all rows (and one more place, where the results of padding go), n
positions of the requests of a kind, g further ones of theirs in the other branches of guidance, both rounded up, B branches but
the first; D trunk width, V vocabulary, k likeliest ids.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from unimm.inference.decode.request import MAX_TOP_LOGPROBS, WINDOWED, Job, Row
from unimm.inference.decode.sampling import Sampler, combine
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.inference.kernels.step_inputs import Windows
from unimm.sequence import Kind

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of rows that steps are captured for; beyond, multiples of the last."""


@dataclass(frozen=True)
class BatchRounding:
    """How numbers of rows are rounded: not at all; to few sizes, for captured steps; or to one, for deterministic steps.

    fixed_window: positions of a row in deterministic steps.
    """

    device: torch.device
    is_rounded: bool = False
    fixed_rows: int | None = None
    fixed_window: int = 1

    def of_rows(self, count: int) -> int:
        """Rows of a step."""
        if self.fixed_rows is not None:
            return self.fixed_rows
        if not self.is_rounded:
            return count
        return next((size for size in SIZES if size >= count), -(-count // SIZES[-1]) * SIZES[-1])

    def of_widths(self, widths: list[int], window: int, num_rows: int) -> list[int]:
        """Positions of each row of a step: as many as it has, or as many in every row, which makes few shapes."""
        if self.fixed_rows is not None:
            return [window] * num_rows
        if self.is_rounded:
            return [1 << (max(widths) - 1).bit_length()] * num_rows
        return widths + [1] * (num_rows - len(widths))

    def all_rows(self, most: int) -> list[int]:
        """All numbers of rows that a step of so many at most may have."""
        if self.fixed_rows is not None:
            return [self.fixed_rows]
        return sorted({self.of_rows(count) for count in range(1, most + 1)})

    def of_requests(self, count: int, window: int) -> int:
        """Positions of the requests of one kind, of which a row has `window` at most."""
        return self.fixed_rows * window if self.fixed_rows is not None else self.of_rows(count)

    def of_branches(self, count: int, window: int) -> int:
        """Positions of other branches of one kind: none stay none, so that guidance that is off costs nothing."""
        return self.of_requests(count, window) if count or self.fixed_rows is not None else 0


class Place(NamedTuple):
    """A new position of a row: the one that reads its last id (offset 0), or guess number `offset` behind that."""

    row: Row
    offset: int

    @property
    def token(self) -> int:
        """The id that is read there."""
        job = self.row.job
        if self.offset:
            return job.guesses[self.offset - 1]
        return job.filled[-1] if job.filled else 0

    @property
    def step(self) -> int:
        """Which element is chosen there, as noise is keyed."""
        job = self.row.job
        return job.request.first_place + len(job.filled) + self.offset


class KindGroup:
    """The positions of one kind: those of requests in their first branch, then of the other branches of guided ones.

    places: where each of them lies in the batch; None is padding.
    reads, writes: places of all of them, requests first; padding reads what the first request does and writes to place P.
    """

    def __init__(self, kind: Kind, places: list[Place | None], size: BatchRounding, window: int, vocabulary_size: int) -> None:
        ours = [(index, one) for index, one in enumerate(places) if one is not None and one.row.job.request.blank.kind == kind]
        requests = [index for index, one in ours if one.row.branch == 0]
        others = [index for index, one in ours if one.row.branch > 0]
        self.chosen = [one for _, one in ours if one.row.branch == 0]
        self.jobs: list[Job] = [one.row.job for one in self.chosen]
        window = window if kind in WINDOWED else 1
        self.num_requests = size.of_requests(len(requests), window)
        num_others = size.of_branches(len(others), window)
        pads, other_pads = self.num_requests - len(requests), num_others - len(others)
        whole = {"dtype": torch.long, "device": size.device}
        self.reads = torch.tensor([*requests, *requests[:1] * pads, *others, *requests[:1] * other_pads], **whole)
        nowhere = len(places)
        self.writes = torch.tensor([*requests, *[nowhere] * pads, *others, *[nowhere] * other_pads], **whole)
        number = {(one.row.job, one.offset): index for index, one in enumerate(self.chosen)}
        branches = [one for _, one in ours if one.row.branch > 0]
        self.owners = torch.tensor([number[one.row.job, one.offset] for one in branches] + [0] * other_pads, **whole)
        found, weights = self._branches(branches, number)
        self.places, self.weights = torch.tensor(found, **whole), torch.tensor(weights, device=size.device)
        self._pads = pads
        self.steps = torch.tensor(self._steps(), **whole)
        samplings = [job.request.sampling for job in self.jobs]
        self.sampler = Sampler(
            samplings + samplings[:1] * pads,
            size.device,
            [_seen(job, kind) for job in self.jobs] + [[]] * pads,
            vocabulary_size,
            [job.request.expected for job in self.jobs] + [None] * pads,
            [job.request.blank.suppressed for job in self.jobs] + [()] * pads,
        )
        # All that the likeliest are asked for at most, or none: few shapes.
        has_top = any(job.request.top_logprobs for job in self.jobs)
        self.num_likeliest = min(MAX_TOP_LOGPROBS, vocabulary_size) if has_top else 0
        self.logprobs = has_top or any(job.request.logprobs for job in self.jobs)

    def _steps(self) -> list[int]:
        return [one.step for one in self.chosen] + [0] * self._pads

    def _branches(self, others: list[Place], number: dict[tuple[Job, int], int]) -> tuple[list[list[int]], list[list[float]]]:
        """What `combine` reads of the positions of other branches, (B, n) each."""
        most = max((len(one.row.job.request.guidance) for one in others), default=2) - 1
        places = [list(range(self.num_requests)) for _ in range(most)]
        weights = [[float(branch == 0)] * self.num_requests for branch in range(most)]
        for index, (row, offset) in enumerate(others):
            owner, branches = number[row.job, offset], row.job.request.guidance
            weights[row.branch - 1][owner] = branches[row.branch - 1].weight
            last = most if row.branch == len(branches) - 1 else row.branch
            for place in places[row.branch - 1 : last]:
                place[owner] = self.num_requests + index
        return places, weights

    def take_from(self, other: "KindGroup") -> None:
        """Take over whose positions another group of the same shape has; tensors are copied by `DecodeBatch.copy_from`."""
        self.chosen, self.jobs, self._pads = other.chosen, other.jobs, other._pads

    def refresh(self) -> None:
        """Requests have come further than by one element, or less far."""
        self.steps.copy_(torch.tensor(self._steps()))

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
    """All rows as tensors: the ids that each reads next and their positions, and a `KindGroup` for each kind.

    Args:
        widths: new positions of each row; None: one.
        window: of rows in steps of one size; else rows have as many positions as they have.
        last_slot: where padding writes its keys: rows behind, which are being prefilled, have nothing there yet.
    """

    def __init__(
        self,
        rows: list[Row],
        size: BatchRounding,
        vocabulary_sizes: dict[Kind, int],
        last_slot: int,
        widths: list[int] | None = None,
        window: int = 1,
    ) -> None:
        widths = widths or [1] * len(rows)
        self.num_rows, self._last_slot = size.of_rows(len(rows)), last_slot
        # Fixed or rounded steps have padding for each row; otherwise there is none.
        padded = size.of_widths(widths, window, self.num_rows)
        own = widths + [0] * (self.num_rows - len(rows))
        self._places: list[Place | None] = [
            Place(rows[number], offset) if offset < own[number] else None
            for number, width in enumerate(padded)
            for offset in range(width)
        ]
        whole = {"dtype": torch.long, "device": size.device}
        self.ids = torch.tensor(self._ids(), **whole)
        self.positions = torch.tensor(self._positions(), **whole)
        self.moves = torch.tensor([int(one is not None) for one in self._places], **whole)
        self.windows = Windows.of(padded, size.device) if max(padded) > 1 else None
        present = {row.job.request.blank.kind for row in rows}
        self.groups = {
            kind: KindGroup(kind, self._places, size, window, vocabulary_size)
            for kind, vocabulary_size in vocabulary_sizes.items()
            if kind in present
        }

    def _ids(self) -> list[int]:
        return [0 if one is None else one.token for one in self._places] + [0]

    def _positions(self) -> list[int]:
        return [self._last_slot if one is None else one.row.length + one.offset for one in self._places]

    @property
    def num_positions(self) -> int:
        """P."""
        return len(self._places)

    def refresh(self) -> None:
        """The same rows with as many new positions, after a step that did not move each of them by one."""
        self.ids.copy_(torch.tensor(self._ids()))
        self.positions.copy_(torch.tensor(self._positions()))
        for group in self.groups.values():
            group.refresh()

    @property
    def shape(self) -> Hashable:
        """Batches of the same shape run the same operations."""
        return (self.num_rows, self.num_positions, tuple((kind, group.shape) for kind, group in self.groups.items()))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that differs between batches of one shape."""
        of_groups = [tensor for group in self.groups.values() for tensor in group.tensors]
        return [self.ids, self.positions, self.moves, *of_groups]

    def copy_from(self, other: "DecodeBatch") -> None:
        """Take the content of another of the same shape, in place."""
        for own, new in zip(self.tensors, other.tensors, strict=True):
            own.copy_(new)
        self._places, self._last_slot = other._places, other._last_slot
        for kind, group in self.groups.items():
            group.take_from(other.groups[kind])

    def choose(self, model: DecodeModel, hidden_PD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each group chooses, one after another, in a row; the next id of every request is kept."""
        ids, logprobs = [], []
        for kind, group in self.groups.items():
            ids_nk, logprobs_nk = model.sample(kind, hidden_PD[group.reads], group.choose)
            ids_n = ids_nk[:, 0]
            self.ids[group.writes[: group.num_requests]] = ids_n
            if len(group.owners):
                self.ids[group.writes[group.num_requests :]] = ids_n[group.owners]
            ids.append(ids_nk.flatten())
            logprobs.append(logprobs_nk.flatten())
        return torch.cat(ids), torch.cat(logprobs)

    def embed(self, model: DecodeModel) -> torch.Tensor:
        """(P, D): the ids, each through the port of its kind."""
        embeddings_PD = None
        for kind, group in self.groups.items():
            values = model.embed(kind, self.ids[group.reads])
            if embeddings_PD is None:
                embeddings_PD = values.new_zeros(self.num_positions + 1, values.shape[-1])
            embeddings_PD[group.writes] = values
        assert embeddings_PD is not None
        return embeddings_PD[: self.num_positions]


def _seen(job: Job, kind: Kind) -> list[int]:
    """The ids of a kind that were given to a request or chosen for it, where a repetition penalty is for them."""
    if job.request.sampling.repetition_penalty == 1.0:
        return []
    given = [token for segment in job.request.sequence.given.segments if segment.kind == kind for token in segment.ids]
    return given + job.filled
