"""The decode loop: fills open segments, text and codes alike, many requests at once, which come and go between steps.

Every request is one row, or two where guidance asks for the null prompt as well. A step admits what has room, prefills it,
moves every row that was there by one position, chooses one id a request, and lets the finished leave; rows hold sequences of
any length, each at its own position. Requests that begin alike (several images of a prompt, null prompts of one length) are
prefilled once. The loop knows ids and tensors, no strings and no images.

Shapes: R rows, T positions, D trunk width, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from unimm.batch import Batch, collate
from unimm.inference.cache import RowCache
from unimm.inference.fast import FastModel
from unimm.inference.rows import Group, Job, Request, Row, alike
from unimm.inference.sampling import guide
from unimm.models.unified import UnifiedModel
from unimm.sequence import BLANK, Kind, Sequence

PREFILL_POSITIONS = 8192
"""Positions that one step prefills at most (but always one request), so that newcomers do not hold up the others for long."""


@dataclass
class Stats:
    """What a decoder has done, and what it is doing."""

    num_waiting: int = 0
    num_running: int = 0
    num_rows: int = 0
    cache_bytes: int = 0
    prefilled_positions: int = 0
    decoded_rows: int = 0
    decoded_steps: int = 0


class Decoder:
    """Fills the open segments of requests with a unified model.

    Args:
        model: in evaluation mode, on its device.
        pad_id: the token of the null prompt.
        max_rows: rows that are decoded together; requests beyond wait their turn.
        int8: decode with weights as int8 (CPU).
    """

    def __init__(self, model: UnifiedModel, pad_id: int, max_rows: int = 128, int8: bool = False) -> None:
        self.model, self.pad_id, self.max_rows, self.int8 = model, pad_id, max_rows, int8
        self._fast: FastModel | None = None
        self._waiting: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}
        self._rows: list[Row] = []
        self._groups: dict[Kind, Group] = {}
        self._cache = RowCache(len(model.trunk.layers))
        self._stats = Stats()
        self._next_ticket = 0

    # -- all at once --------------------------------------------------------------------------------------------------

    def fill(self, requests: list[Request]) -> list[list[int]]:
        """The ids that fill each request's open segment, in the requests' order; a stop id that ended one is included."""
        filled: list[list[int]] = [[] for _ in requests]
        for new in self.steps(requests):
            for index, token in new.items():
                filled[index].append(token)
        return filled

    def steps(self, requests: list[Request]) -> Iterator[dict[int, int]]:
        """The same, step by step: each step gives {request: its next id} for all requests that are being filled.

        An iterator that is dropped takes its requests with it.
        """
        for request in requests:
            self.check(request)  # now, not when the first step is asked for
        return self._steps(requests)

    def _steps(self, requests: list[Request]) -> Iterator[dict[int, int]]:
        left = {self.submit(request): index for index, request in enumerate(requests)}
        try:
            while left:
                if not left.keys() <= self._jobs.keys():
                    raise RuntimeError("The requests were dropped because a step of the engine failed: ask again.")
                if not any(self._jobs[ticket].pending for ticket in left):
                    self.step()
                new = {}
                for ticket in list(left):
                    if self._jobs[ticket].pending:
                        new[left[ticket]] = self._jobs[ticket].pending.popleft()
                    if self._jobs[ticket].done and not self._jobs[ticket].pending:
                        del self._jobs[ticket], left[ticket]
                if new:
                    yield new
        finally:
            for ticket in left:
                self.abort(ticket)

    # -- one at a time ------------------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """ValueError: this request can never be filled, and why."""
        if not request.sequence.is_open:
            raise ValueError("This sequence has no open segment: there is nothing to fill.")
        if len(request.sequence.segments) == 1:
            raise ValueError("Something must be given before what is to be filled: begin with the begin-of-sentence id.")
        if not 0 <= request.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be 0 or positive, not {request.guidance_scale}.")
        if request.num_rows > self.max_rows:
            raise ValueError(f"Guidance takes 2 rows, but the engine decodes {self.max_rows} at once: give it max_rows=2.")
        length, most = request.sequence.length, self.model.config.max_positions
        if length > most:
            raise ValueError(
                f"The request takes {length} positions (prompt, images and what is to be filled), but the model was made "
                f"for {most}: shorten the prompt, or ask for fewer images or new tokens."
            )

    def submit(self, request: Request) -> int:
        """Put a request in the queue; gives its ticket.

        Raises:
            ValueError: it can never be filled.
        """
        self.check(request)
        job = Job(self._next_ticket, request)
        self._next_ticket += 1
        self._jobs[job.ticket] = job
        self._waiting.append(job)
        return job.ticket

    def take(self, ticket: int) -> tuple[list[int], bool]:
        """The ids of a request that were filled since it was last asked, and whether it is done; then its ticket is spent.

        Raises:
            KeyError: there is no such ticket.
        """
        job = self._jobs[ticket]
        new = list(job.pending)
        job.pending.clear()
        if job.done:
            del self._jobs[ticket]
        return new, job.done

    @torch.inference_mode()
    def abort(self, ticket: int) -> None:
        """Forget a request, wherever it is; nobody else notices. A ticket that is spent is none."""
        job = self._jobs.pop(ticket, None)
        if job is None or job.done:
            return
        if job in self._waiting:
            self._waiting.remove(job)
        else:
            self._leave({job})

    def stats(self) -> Stats:
        """What it does now, and has done since it was made."""
        running = {row.job.ticket for row in self._rows}
        return replace(
            self._stats,
            num_waiting=len(self._waiting),
            num_running=len(running),
            num_rows=len(self._rows),
            cache_bytes=self._cache.num_bytes,
        )

    @torch.inference_mode()
    def step(self) -> None:
        """Admit, move every row by one position, choose one id for every request, and let the finished leave.

        When it raises (out of memory), every request is gone and the decoder is as new.
        """
        try:
            self._step()
        except BaseException:
            self._reset()
            raise

    def _step(self) -> None:
        if not self._rows and not self._waiting:
            return
        if self._fast is None or (self._waiting and not self._fast.is_current()):
            self._fast = None  # its copies go before new ones are made
            self._fast = FastModel(self.model, self.int8)
        hidden = [self._advance(self._fast)] if self._rows else []
        hidden += self._admit()
        self._accept(self._choose(self._fast, torch.cat(hidden)))
        self._stats.decoded_steps += 1

    def _reset(self) -> None:
        self._waiting.clear()
        self._jobs.clear()
        self._rows, self._groups = [], {}
        self._cache = RowCache(len(self.model.trunk.layers))

    # -- the parts of a step ------------------------------------------------------------------------------------------

    def _advance(self, fast: FastModel) -> torch.Tensor:
        """The ids that were chosen last, embedded and sent through the trunk -> hidden states (R, D)."""
        device = self._device
        ids_R = torch.tensor([row.job.token for row in self._rows], device=device)
        positions_R = torch.tensor([row.length for row in self._rows], device=device)
        embeddings_RD = None
        for kind, group in self._groups.items():
            values = fast.embed(kind, ids_R[group.all_rows])
            if embeddings_RD is None:
                embeddings_RD = values.new_zeros(len(self._rows), self.model.width)
            embeddings_RD[group.all_rows] = values
        assert embeddings_RD is not None
        used = max(row.length for row in self._rows) + 1
        hidden_RD = fast.advance(embeddings_RD, positions_R, used, self._cache)
        for row in self._rows:
            row.length += 1
        self._stats.decoded_rows += len(self._rows)
        return hidden_RD

    def _admit(self) -> list[torch.Tensor]:
        """Take from the queue, in its order, what has room; prefill it -> hidden states of the new rows, in parts."""
        new: list[Row] = []
        positions = 0
        while self._waiting:
            job = self._waiting[0]
            request = job.request
            if len(self._rows) + len(new) + request.num_rows > self.max_rows:
                break
            positions += request.num_rows * request.sequence.given.length
            if new and positions > PREFILL_POSITIONS:
                break
            self._waiting.popleft()
            new.append(Row(job, request.sequence, is_null=False))
            if request.num_rows == 2:
                new.append(Row(job, request.sequence.unconditioned(self.pad_id), is_null=True))
        if not new:
            return []
        first: dict[tuple, Row] = {}
        for row in new:
            first.setdefault(row.beginning, row)
        leaders = sorted(first.values(), key=lambda row: row.sequence.given.length)
        followers = [row for row in new if first[row.beginning] is not row]
        begin = len(self._rows)
        self._rows += leaders + followers
        self._cache.reserve(len(self._rows), max(row.sequence.length for row in self._rows))
        hidden = []
        for start, stop in alike([row.sequence.given.length for row in leaders]):
            hidden.append(self._prefill(begin + start, [row.sequence for row in leaders[start:stop]]))
        if followers:
            hidden.append(self._follow(torch.cat(hidden), begin, leaders, followers))
        for row in leaders + followers:
            row.length = row.sequence.given.length
        self._regroup()
        return hidden

    def _prefill(self, begin: int, sequences: list[Sequence]) -> torch.Tensor:
        """All given segments at once, as rows from `begin` on -> hidden state of each one's last position (R, D)."""
        batch: Batch = collate([[sequence] for sequence in sequences]).to(self._device)
        rows, num_positions = batch.tokens.shape
        slots_RT = torch.arange(num_positions, device=self._device).expand(rows, -1)
        self._cache.prepare(slice(begin, begin + rows), slots_RT, num_positions)
        hidden_RTD = self.model.hidden(self.model.embed(batch), batch.attention_mask(), batch.positions, self._cache)
        lengths_R = torch.tensor([sequence.given.length for sequence in sequences], device=self._device)
        self._stats.prefilled_positions += int(lengths_R.sum())
        return hidden_RTD[torch.arange(rows, device=self._device), lengths_R - 1]

    def _follow(self, hidden_RD: torch.Tensor, begin: int, leaders: list[Row], followers: list[Row]) -> torch.Tensor:
        """Rows that begin like others take over what those have computed."""
        place = {row.beginning: index for index, row in enumerate(leaders)}
        sources = [place[row.beginning] for row in followers]
        for index, source in enumerate(sources):
            target = begin + len(leaders) + index
            self._cache.copy(begin + source, target, followers[index].sequence.given.length)
        return hidden_RD[torch.tensor(sources, device=self._device)]

    def _choose(self, fast: FastModel, hidden_RD: torch.Tensor) -> dict[Job, int]:
        """The next id of every running request."""
        chosen: dict[Job, int] = {}
        for kind, group in self._groups.items():
            steps_n = torch.tensor([job.num_filled for job in group.jobs], device=self._device)

            def choose(logits_RV: torch.Tensor, group: Group = group, steps_n: torch.Tensor = steps_n) -> torch.Tensor:
                conditional = logits_RV[: len(group.jobs)]
                if group.num_null:
                    guided = guide(conditional[group.guided], logits_RV[len(group.jobs) :], group.scales)
                    conditional = conditional.float().index_put((group.guided,), guided)
                return group.sampler(conditional, steps_n)

            ids_n = fast.sample(kind, hidden_RD[group.all_rows], choose)
            chosen |= zip(group.jobs, ids_n.tolist(), strict=True)
        return chosen

    def _accept(self, chosen: dict[Job, int]) -> None:
        finished = set()
        for job, token in chosen.items():
            blank = job.request.blank
            if job.num_filled < len(blank.ids) and blank.ids[job.num_filled] != BLANK:
                token = blank.ids[job.num_filled]  # an element that was given is not chosen
            job.token = token
            job.pending.append(token)
            job.num_filled += 1
            assert blank.limit is not None
            if job.num_filled == blank.limit or token in blank.stop:
                job.done = True
                finished.add(job)
        if finished:
            self._leave(finished)

    def _leave(self, jobs: set[Job]) -> None:
        """Rows of these requests go, and the last rows take their places."""
        rows = self._rows
        place = 0
        while place < len(rows):
            if rows[place].job not in jobs:
                place += 1
            elif rows[-1].job in jobs:
                rows.pop()
            else:
                self._cache.copy(len(rows) - 1, place, rows[-1].length)
                rows[place] = rows.pop()
        if not rows:
            self._cache = RowCache(len(self.model.trunk.layers))  # a long pause should not hold memory
        self._regroup()

    def _regroup(self) -> None:
        """Rows by the kind they fill, as tensors: made again only when rows come or go."""
        self._groups = {}
        for kind in self.model.vocabulary_ports:
            rows = [index for index, row in enumerate(self._rows) if row.job.request.blank.kind == kind]
            if rows:
                self._groups[kind] = Group.of(rows, self._rows, self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device
