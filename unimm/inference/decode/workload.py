"""One step of everything that is decoded: the waiting queue and its limits, admission of requests, and the batches they join.

A step moves every row by one position and chooses one id a request (`running_batch`, `step`); beside it, part of a pass is
computed over blanks that are filled in all at once (`fill_passes`), and part of a prefill of admitted requests (`prefill`).

The queue is in order within a kind, and kinds in turns: a drawing keeps its rows for hundreds of steps, a short text for a few.
If both stood in one line, texts behind many drawings would wait for all of them; so the kind that has fewer requests running is
served next, and the older request where they tie.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields

from unimm.inference.decode.compute_config import ComputeConfig
from unimm.inference.decode.fill_passes import FillPasses
from unimm.inference.decode.prefix_cache import PrefixCache
from unimm.inference.decode.request import Job, Request
from unimm.inference.decode.running_batch import RunningBatch
from unimm.inference.decode.windows import LARGEST
from unimm.models.unified import UnifiedModel
from unimm.runtime.number_checks import whole_number
from unimm.sequence import Kind

PREFILL_POSITIONS = {"cpu": 1024, "cuda": 8192}
"""Positions that one step prefills at most by default, so that running requests do not wait for admitted ones for long."""

PREFIX_CACHE_SHARE = 0.1
"""What servers keep of prompts by default, beside their keys and values, as a share of these."""


class QueueFull(RuntimeError):
    """The queue is full, and another request was refused: ask again later."""


@dataclass
class Stats:
    """What a decoder is doing, and totals of what it has done.

    fill_passes: passes over blanks that are filled in all at once.
    drawing_steps, drawn_codes: steps of every drawing, added up, and the codes that they gave: one each, and one more for every
        right guess (the first one of a drawing comes with its prompt). guessed_codes, right_guesses: codes that were guessed,
        and guesses that were right (`windows`); codes that are known beforehand are none.
    window: codes of a drawing that the last step computed at most; 1 where it had no drawing.
    prefix_cache_bytes: keys and values that are kept for later prompts. prefix_cache_queries, prefix_cache_hits: positions of
        prompts, and those of them that were kept from earlier ones (as vLLM counts them).
    """

    num_waiting: int = 0
    num_running: int = 0
    num_rows: int = 0
    cache_bytes: int = 0
    prefilled_positions: int = 0
    decoded_rows: int = 0
    decoded_steps: int = 0
    fill_passes: int = 0
    drawing_steps: int = 0
    drawn_codes: int = 0
    guessed_codes: int = 0
    right_guesses: int = 0
    window: int = 1
    prefix_cache_bytes: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0

    @property
    def prefix_cache_hit_rate(self) -> float:
        """The share of positions of prompts that were not computed again; 0 without a prefix cache."""
        return self.prefix_cache_hits / self.prefix_cache_queries if self.prefix_cache_queries else 0.0

    @property
    def codes_a_step(self) -> float:
        """That a drawing got on average; 0 before the first step."""
        return self.drawn_codes / self.drawing_steps if self.drawing_steps else 0.0

    @property
    def acceptance(self) -> float:
        """The share of guesses that were right; 0 where nothing was guessed."""
        return self.right_guesses / self.guessed_codes if self.guessed_codes else 0.0


@dataclass(frozen=True)
class Limits:
    """How much a decoder takes on.

    max_rows: rows that are decoded together; further requests wait in the queue.
    max_waiting: requests in the queue while no rows are free for them; one more is refused with `QueueFull`. None: any number.
    max_positions: of one request. None: as many as the model was made for.
    max_cache_bytes: of keys and values; requests wait until some are free. None: as much as the device has, or
        half of what is free where rows have blocks of a pool (`cache_memory`).
    prefill_positions: that one step prefills at most. None: 1,024 on a CPU, 8,192 on a GPU.
    window: codes of a drawing that one step computes at once (`windows`), 64 at most. None: as many as are measured to pay at
        this load, in float32 on a CPU, where ids are the same with any; else 1, as on a GPU and with `deterministic`. What a
        step computes for drawings grows with it; keys and values do not. With `deterministic` every step computes `max_rows`
        times `window` positions, also where there are texts alone, since results must not depend on the company.
    prefix_cache_bytes: keys and values of prompts that are kept, beside `max_cache_bytes`, for later requests that begin alike
        (automatic prefix caching, `prefix_cache`): the same system prompt, the same picture, the last turns of a chat. 0: none.
        Not with `deterministic`, since how a sum is rounded would depend on what was asked before.
    """

    max_rows: int = 128
    max_waiting: int | None = None
    max_positions: int | None = None
    max_cache_bytes: int | None = None
    prefill_positions: int | None = None
    window: int | None = None
    prefix_cache_bytes: int = 0

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, least = getattr(self, limit.name), 0 if limit.name in ("max_waiting", "prefix_cache_bytes") else 1
            if value is not None or limit.name in ("max_rows", "prefix_cache_bytes"):
                object.__setattr__(self, limit.name, whole_number(limit.name, value, least))
        if self.window is not None and self.window > LARGEST:
            raise ValueError(f"window is at most {LARGEST}, not {self.window}: guesses that far ahead are hardly ever right.")


class AdmissionQueue:
    """Jobs by kind."""

    def __init__(self) -> None:
        self._lines: dict[Kind, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __contains__(self, job: Job) -> bool:
        return job in self._line(job)

    def __iter__(self) -> Iterator[Job]:
        for line in self._lines.values():
            yield from line

    def push(self, job: Job) -> None:
        """At the end of its line."""
        self._line(job).append(job)

    def push_back(self, jobs: list[Job]) -> None:
        """At the beginning of their lines, in this order: they were admitted before."""
        for job in reversed(jobs):
            self._line(job).appendleft(job)

    def remove(self, job: Job) -> None:
        """Take it out, wherever it stands."""
        self._line(job).remove(job)

    def next(self, running: list[Job]) -> Job:
        """The request to admit next, beside those that are running; it stays until it is removed."""
        counts = {kind: sum(job.request.blank.kind == kind for job in running) for kind in self._lines}
        kind = min((kind for kind, line in self._lines.items() if line), key=lambda kind: (counts[kind], self._oldest(kind)))
        return self._lines[kind][0]

    def _oldest(self, kind: Kind) -> int:
        return self._lines[kind][0].ticket

    def _line(self, job: Job) -> deque[Job]:
        return self._lines.setdefault(job.request.blank.kind, deque())


class Workload:
    """The queue, and the two batches that it feeds. `Scheduler` holds a lock around all of it."""

    def __init__(
        self,
        model: UnifiedModel,
        pad_id: int,
        limits: Limits,
        max_positions: int,
        weights: str | None,
        deterministic: bool,
        kernels: str | None = None,
    ) -> None:
        self.model, self.pad_id, self.limits = model, pad_id, limits
        kind = next(model.parameters()).device.type
        self._prefill_positions = limits.prefill_positions or PREFILL_POSITIONS.get(kind, PREFILL_POSITIONS["cpu"])
        sizes = (limits.max_rows, max_positions, self._prefill_positions, limits.max_cache_bytes, limits.window, kernels)
        if deterministic and limits.prefix_cache_bytes:
            raise ValueError(
                "With a prefix cache, how sums are rounded depends on what was asked before: leave out deterministic, or "
                "prefix_cache_bytes."
            )
        self.prefixes = PrefixCache(model, limits.prefix_cache_bytes) if limits.prefix_cache_bytes else None
        self.running = RunningBatch(model, pad_id, ComputeConfig(weights, deterministic, *sizes), self.prefixes)
        self.fills = FillPasses(model, self._prefill_positions, deterministic, self.prefixes)
        self.queue = AdmissionQueue()

    def reset(self) -> None:
        """Drop all requests."""
        self.queue = AdmissionQueue()
        self.running.reset()
        self.fills.reset()

    @property
    def jobs(self) -> list[Job]:
        """Requests that were admitted and have rows."""
        return self.running.jobs + self.fills.jobs

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self.queue and all(job.done for job in self.jobs)

    def check(self, request: Request) -> None:
        """ValueError: it asks for what its kind does not have, or for more memory than there is."""
        most = self.limits.max_cache_bytes
        if not self._is_at_once(request):
            if request.filler_settings:
                names, kind = ", ".join(request.filler_settings), request.blank.kind.name
                raise ValueError(f"{kind} is chosen element by element, and has no {names}: that is of what a flow fills in.")
            self.running.check_capacity(request.num_rows, request.sequence.length)
            return
        if request.logprobs or request.top_logprobs or request.guidance_interval != (0.0, 1.0):
            kind = request.blank.kind.name
            raise ValueError(f"{kind} is filled in all at once: it has no logprobs, and no guidance_interval of its elements.")
        if most is not None:
            self.fills.check_capacity(request.num_rows, request.sequence.length, most)

    def _is_at_once(self, request: Request) -> bool:
        """Whether its kind has no logits from which elements are chosen one by one."""
        return request.blank.kind not in self.model.vocabulary_ports

    def capture(self, requests: list[Request], num_slots: int) -> int:
        """Record steps before they are asked for (`DecodeStep.capture`), for as many rows as memory allows. RuntimeError: there
        are requests, whose keys and values it would overwrite."""
        if not self.is_idle:
            raise RuntimeError("Steps are captured before there are requests, and some are being filled in: wait for them.")
        rows = self.running.rows_that_fit(self.limits.max_rows, num_slots)
        self.running.reserve([num_slots] * rows)
        return self.running.decode_step().capture(requests, rows, num_slots, self.limits.window or 1, self.running.pad_id)

    def push(self, job: Job, is_further: bool = False) -> None:
        """Let a request wait. Raises `QueueFull` where too many wait already, unless it goes on with one that did not."""
        most = None if is_further else self.limits.max_waiting
        if most is not None and len(self.queue) >= most and not self._has_capacity([*self.jobs, *self.queue, job]):
            raise QueueFull(f"{len(self.queue)} requests wait already: ask again later.")
        self.queue.push(job)

    def step(self) -> None:
        """Every row advances, part of a pass and of a prefill are computed; requests leave and join. Those that join find the
        model's weights as they are now, and rows go on with these."""
        running, fills = self.running, self.fills
        may_join = running.step(has_waiting=bool(self.queue))
        fills.step()
        if may_join and running.prefill is None and fills.prefill is None:
            self._admit()
        if fills.prefill is not None:
            self.queue.push_back(fills.advance_prefill())
        if running.prefill is not None:
            running.advance_prefill()
            running.retire_rows()
        self.queue.push_back(running.take_retries())  # also of a prefill that went on because guidance begins

    def _admit(self) -> None:
        """Start the prefill of requests from the queue, as many as fit; capacity is reserved for all their rows, also later
        ones. Requests that are filled in all at once are admitted apart from others."""
        jobs, there = [], self.jobs
        while self.queue:
            job = self.queue.next(there + jobs)
            if jobs and (job.prefills_alone or jobs[0].prefills_alone):
                break
            if jobs and self._is_at_once(job.request) != self._is_at_once(jobs[0].request):
                break
            if not self._has_capacity([*there, *jobs, job]) and not self._make_room([*there, *jobs], job):
                break
            positions = sum(one.num_prefilled for one in [*jobs, job])
            if jobs and positions > self._prefill_positions:
                break
            self.queue.remove(job)
            jobs.append(job)
        if jobs and not self.running.is_current:  # not asked at every step: that looks at every weight
            self.reload_weights()
        rows = [row for job in jobs for row in job.rows(self.pad_id)]
        if jobs and self._is_at_once(jobs[0].request):
            self.fills.start_prefill(rows)
        elif jobs:
            at_once, others = self._split([*there, *jobs])
            self.running.reserve(_slots(others), self.fills.bytes_for(*_size(at_once)))
            self.running.start_prefill(rows)

    def _has_capacity(self, jobs: list[Job]) -> bool:
        at_once, others = self._split(jobs)
        if _size(jobs)[0] > self.limits.max_rows or not self.running.fits(_slots(others)):
            return False
        most = self.limits.max_cache_bytes
        return most is None or self.running.bytes_for(_slots(others)) + self.fills.bytes_for(*_size(at_once)) <= most

    def _make_room(self, there: list[Job], job: Job) -> bool:
        """Free what caches of other shapes have reserved and none of the requests that are there uses; returns whether there is
        room for another one then. One that is alone has it."""
        if there and not self._is_at_once(job.request):
            return False
        (self.fills if there else self).release()
        return not there or self._has_capacity([*there, job])

    def _split(self, jobs: list[Job]) -> tuple[list[Job], list[Job]]:
        """Those that are filled in all at once, and the others."""
        parts: tuple[list[Job], list[Job]] = ([], [])
        for job in jobs:
            parts[not self._is_at_once(job.request)].append(job)
        return parts

    def finish_pending(self) -> None:
        """Read the step in flight, and let finished requests leave."""
        self.running.read_pending_step()
        self.running.retire_rows()
        self.queue.push_back(self.running.take_retries())
        self.fills.retire()

    def reload_weights(self) -> None:
        """Read the model's weights again; what was kept of prompts is of the old ones."""
        self.running.reload_weights()
        if self.prefixes is not None:
            self.prefixes.clear()

    def release(self) -> None:
        """Free the memory of keys and values unless a request uses it; what is kept of prompts stays."""
        self.running.release()
        self.fills.release()

    def stats(self) -> Stats:
        """What it is doing now, and totals since it was made."""
        running, fills = self.running, self.fills
        return Stats(
            num_waiting=len(self.queue),
            num_running=len(self.jobs),
            num_rows=len(running.rows) + len(fills.rows) + (len(running.prefill.rows) if running.prefill else 0),
            cache_bytes=running.num_cache_bytes + fills.num_cache_bytes,
            prefilled_positions=running.prefilled_positions + fills.prefilled_positions,
            decoded_rows=running.decoded_rows,
            decoded_steps=running.decoded_steps,
            fill_passes=fills.num_passes,
            drawing_steps=running.windows.steps,
            drawn_codes=running.windows.codes,
            guessed_codes=running.windows.guesses,
            right_guesses=running.windows.right,
            window=running.window,
            prefix_cache_bytes=self.prefixes.num_bytes if self.prefixes else 0,
            prefix_cache_queries=self.prefixes.queries if self.prefixes else 0,
            prefix_cache_hits=self.prefixes.hits if self.prefixes else 0,
        )


def _slots(jobs: list[Job]) -> list[int]:
    """Of every row that requests take at most."""
    return [job.request.sequence.length for job in jobs for _ in range(job.request.num_rows)]


def _size(jobs: list[Job]) -> tuple[int, int]:
    """Rows and slots that requests take at most."""
    return sum(job.request.num_rows for job in jobs), max((job.request.sequence.length for job in jobs), default=0)
