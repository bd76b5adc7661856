"""Blanks that are filled in all at once: passes of the Transformer over all of their positions, such as the steps of a flow.

A port without logits makes a `Filler` for a blank (`unimm.models.ports.base`). The request's rows hold its prefix, one row for
each branch of guidance, in a cache of their own. A pass is like a chunk of a prefill behind it: all positions of the blank at
once, in all branches, with keys and values that the next pass overwrites. When the filler is done, so is the request.

Requests with blanks of one length share a pass. Beside each step of the token requests one part of a pass is computed, of as
many positions as a step may prefill; so neither kind waits for the other.

Shapes: R rows of a pass, G branches of a request, n positions of its blank, S slots, D trunk width.
"""

from collections.abc import Generator

import torch

from unimm.inference.decode.kv_cache import RowCache, cache_bytes
from unimm.inference.decode.prefill import Prefill
from unimm.inference.decode.prefix_cache import PrefixCache
from unimm.inference.decode.request import Estimate, Job, Row
from unimm.models.ports.base import Estimating, Filler
from unimm.models.unified import UnifiedModel


class FillPasses:
    """The requests that are filled in all at once.

    Args:
        positions_a_step: computed at most in one `step`, over all rows (but at least one of each row).
        alone: every request in passes of its own, for batch invariance.
        prefixes: what earlier prompts have left, which may be shared with other batches.
    """

    def __init__(self, model: UnifiedModel, positions_a_step: int, alone: bool, prefixes: PrefixCache | None = None) -> None:
        self.model, self._positions_a_step, self._alone, self._prefixes = model, positions_a_step, alone, prefixes
        self.prefilled_positions = self.num_passes = 0
        self.reset()

    def reset(self) -> None:
        """Drop all requests."""
        self._rows: list[Row] = []  # in the order of the cache's, those of a request together
        self._fillers: dict[Job, Filler] = {}  # of those that are prefilled, the one whose turn is next first
        self.prefill: Prefill | None = None
        self._pass: Generator[bool] | None = None
        self._cache = self._new_cache()

    def _new_cache(self) -> RowCache:
        return RowCache(len(self.model.trunk.layers), most_rows=0)

    @property
    def rows(self) -> list[Row]:
        """All rows, also those that are being prefilled."""
        return self._rows + (self.prefill.rows if self.prefill is not None else [])

    @property
    def jobs(self) -> list[Job]:
        """Its requests, once each."""
        return list({row.job.ticket: row.job for row in self.rows}.values())

    # -- admission ----------------------------------------------------------------------------------------------------

    def start_prefill(self, rows: list[Row]) -> None:
        """Admit rows: they are prefilled from now on, a part at every `advance_prefill`."""
        begin = len(self._rows)
        self.prefill = Prefill(self.model, self._cache, rows, begin, self._positions_a_step, self._alone, self._prefixes)

    def advance_prefill(self) -> list[Job]:
        """The next part of a prefill; when it is done passes begin. Returns requests to be prefilled again, each alone."""
        prefill = self.prefill
        assert prefill is not None
        try:
            if prefill.advance() is None:
                return []
        except Exception as error:
            self.prefill = None
            return prefill.fail(error)
        self.prefilled_positions += prefill.num_positions
        self._finish_pass()  # rows may move now
        places = {row: prefill.begin + index for index, row in enumerate(prefill.rows)}
        # A prefill puts rows in an order of its own; here those of a request lie together.
        self._place({row: place for place, row in enumerate(self._rows)} | places)
        self.prefill = None
        for job in dict.fromkeys(row.job for row in places):
            self._start_filler(job)
        return []

    def _start_filler(self, job: Job) -> None:
        request = job.request
        port = self.model.predicted_ports[request.blank.kind]
        try:
            key = (request.sampling.seed, request.sampling.index)
            self._fillers[job] = port.filler(request.blank, key, **request.filler_settings)
        except Exception as error:
            job.fail(error)

    def _place(self, places: dict[Row, int]) -> None:
        """Let rows lie one behind another, request by request, each of them being at a place of the cache now."""
        order = sorted(places, key=lambda row: (row.job.ticket, row.branch))
        if [places[row] for row in order] != list(range(len(order))):
            self._cache.gather([places[row] for row in order], max(row.length for row in order))
        self._rows = order

    def retire(self) -> None:
        """Let finished requests leave, between two passes."""
        if self.prefill is not None and all(row.job.done for row in self.prefill.rows):
            self.prefill = None
        if self._pass is not None or not any(row.job.done for row in self._rows):
            return
        self._fillers = {job: filler for job, filler in self._fillers.items() if not job.done}
        if self.prefill is None:  # which goes on behind the rows; they are moved when it is over
            self._place({row: place for place, row in enumerate(self._rows) if not row.job.done})

    # -- passes -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> None:
        """Compute the next part of a pass, if there is one to compute."""
        self.retire()
        if self._pass is None:
            jobs = self._next_jobs()
            if not jobs:
                return
            self._pass = self._run(jobs)
        if next(self._pass, True):
            self._finish_pass()
        self.retire()

    def _finish_pass(self) -> None:
        """Compute what is left of a pass."""
        if self._pass is not None:
            for _ in self._pass:
                pass
            self._pass = None
            self.num_passes += 1

    def _next_jobs(self) -> list[Job]:
        """The request whose turn it is, and others of its length that lie behind it, as many as a step takes."""
        waiting = [job for job in self._fillers if not job.done]
        if not waiting:
            return []
        first = waiting[0]
        length, together, num_positions = first.request.blank.length, [], 0
        ours = list(dict.fromkeys(row.job for row in self._rows))
        for job in ours[ours.index(first) :]:
            num_positions += job.request.num_rows * length
            is_full = num_positions > self._positions_a_step or self._alone
            if job.done or job not in self._fillers or job.request.blank.length != length or (together and is_full):
                break
            together.append(job)
        for job in together:  # they queue up again behind the others
            self._fillers[job] = self._fillers.pop(job)
        return together

    def _run(self, jobs: list[Job]) -> Generator[bool]:
        """One pass over the blanks of requests that lie one behind another; pauses after each part."""
        first = next(place for place, row in enumerate(self._rows) if row.job is jobs[0])
        rows = [row for row in self._rows if row.job in set(jobs)]
        embeddings_RnD = self._inputs(jobs)
        num_positions, device = embeddings_RnD.shape[1], embeddings_RnD.device
        begins_R1 = torch.tensor([[row.length] for row in rows], device=device)
        slots_Rn = begins_R1 + torch.arange(num_positions, device=device)
        hidden, chunk = [], max(self._positions_a_step // len(rows), 1)
        for start in range(0, num_positions, chunk):
            if start:
                yield False
            own_RT = slots_Rn[:, start : start + chunk]
            used = max(row.length for row in rows) + min(start + chunk, num_positions)
            self._cache.prepare(slice(first, first + len(rows)), own_RT, used)
            mask_R1TS = (torch.arange(used, device=device) <= own_RT[..., None])[:, None]
            mask_R1TS = mask_R1TS & ~self._hidden(rows, used).to(device)[:, None, None]
            hidden.append(self.model.hidden(embeddings_RnD[:, start : start + chunk], mask_R1TS, own_RT, self._cache))
        self._advance(jobs, torch.cat(hidden, dim=1))

    def _hidden(self, rows: list[Row], used: int) -> torch.Tensor:
        """(R, used) bool: positions of prompts that a branch drops, where its port hides these."""
        hidden_RS = torch.zeros(len(rows), used, dtype=torch.bool)
        for number, row in enumerate(rows):
            request = row.job.request
            if not row.branch or not self.model.predicted_ports[request.blank.kind].hides_dropped:
                continue
            drop, start = request.guidance[row.branch].drop, 0
            for segment in request.sequence.given.segments:
                hidden_RS[number, start : start + segment.length] = segment.condition in drop
                start += segment.length
        return hidden_RS

    def _inputs(self, jobs: list[Job]) -> torch.Tensor:
        """(R, n, D): a blank's embeddings are the same in all of its branches."""
        weight, embeddings = next(self.model.trunk.parameters()), []
        for job in jobs:
            shape = (job.request.blank.length, self.model.width)
            inputs_nD = weight.new_zeros(shape)
            try:
                given_nD = self._fillers[job].inputs()
                if given_nD.shape != shape:
                    raise ValueError(f"A filler gave embeddings of {tuple(given_nD.shape)} for a blank that takes {shape}.")
                inputs_nD = given_nD.to(weight.device, weight.dtype)
            except Exception as error:
                job.fail(error)  # which leaves with the end of this pass
            embeddings.append(inputs_nD.expand(job.request.num_rows, -1, -1))
        return torch.cat(embeddings)

    def _advance(self, jobs: list[Job], hidden_RnD: torch.Tensor) -> None:
        for job, hidden_GnD in zip(jobs, hidden_RnD.split([job.request.num_rows for job in jobs]), strict=True):
            filler, branches = self._fillers[job], job.request.guidance if job.request.guided else ()
            weights_G = torch.tensor([branch.weight for branch in branches] or [1.0], device=hidden_GnD.device)
            if job.done:  # it was aborted, or has failed
                continue
            try:
                filler.advance(hidden_GnD, weights_G)
                if filler.is_done:
                    job.finish(filler.content)
                elif job.request.is_watched and isinstance(filler, Estimating) and filler.estimate is not None:
                    estimate = Estimate(filler.estimate.cpu().numpy(), filler.num_passes / filler.total_passes)
                    job.estimates.append(estimate)
            except Exception as error:
                job.fail(error)

    # -- memory -------------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Free the cache's memory if no request uses it."""
        if all(job.done for job in self.jobs):
            self.reset()

    def check_capacity(self, rows: int, slots: int, most: int) -> None:
        """ValueError: these rows, with these slots each, are too large for an empty cache of `most` bytes."""
        if (needed := cache_bytes(self.model, *self._new_cache().reserved(rows, slots))) > most:
            takes = f"takes {needed:,} bytes of keys and values, but the engine has max_cache_bytes={most:,}"
            raise ValueError(f"The request {takes}: shorten it, or give the engine more.")

    def bytes_for(self, rows: int, slots: int) -> int:
        """Of keys and values, if the cache had reserved these rows, with these slots each, too."""
        return cache_bytes(self.model, *self._cache.reserved(rows, slots, ahead=False))

    @property
    def num_cache_bytes(self) -> int:
        """Of keys and values."""
        return self._cache.num_bytes
