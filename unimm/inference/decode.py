"""The decode loop: fills open segments, text and codes alike, many requests at once, which come and go between steps.

Requests wait in a queue until there are rows for them (`queue`), their given part is prefilled (`prefill`), then a step moves
every row by one position and chooses one id a request (`running`, `step`), until its segment is full or a stop id comes. The
loop knows ids and tensors, no strings and no images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from unimm.inference.queue import Queue
from unimm.inference.rows import Job, Request, Row
from unimm.inference.running import Arithmetic, Running
from unimm.models.unified import UnifiedModel

PREFILL_POSITIONS = {"cpu": 1024, "cuda": 8192}
"""Positions that one step prefills at most where nobody says, so that newcomers do not hold up the others for long."""


class QueueFull(RuntimeError):
    """So many requests wait already that another is refused: ask again later."""


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


@dataclass(frozen=True)
class Limits:
    """How much a decoder takes on.

    max_rows: rows that are decoded together; requests beyond wait their turn.
    max_waiting: requests that wait; one more is refused with `QueueFull`. None: any number.
    max_positions: of one request. None: as many as the model was made for.
    max_cache_bytes: of keys and values; requests wait until there is room. None: as much as the device has.
    prefill_positions: that one step prefills at most. None: what suits the device.
    """

    max_rows: int = 128
    max_waiting: int | None = None
    max_positions: int | None = None
    max_cache_bytes: int | None = None
    prefill_positions: int | None = None


class Decoder:
    """Fills the open segments of requests with a unified model.

    Args:
        model: in evaluation mode, on its device.
        pad_id: the token of the null prompt.
        limits: how much it takes on.
        weights: "int8", "int4" or "fp8" to decode with such copies of the weights; None: the model's own.
        deterministic: every step computes `max_rows` rows over `max_positions` slots, and newcomers are prefilled one by one: a
            request then gets the same ids in any company also in reduced precision, for the price of a full house.
    """

    def __init__(
        self,
        model: UnifiedModel,
        pad_id: int,
        limits: Limits | None = None,
        weights: str | None = None,
        deterministic: bool = False,
    ) -> None:
        self.model, self.pad_id = model, pad_id
        self.limits = limits or Limits()
        self.max_positions = self.limits.max_positions or model.config.max_positions
        kind = next(model.parameters()).device.type
        self._prefill_positions = self.limits.prefill_positions or PREFILL_POSITIONS.get(kind, PREFILL_POSITIONS["cpu"])
        arithmetic = Arithmetic(weights, deterministic, self.limits.max_rows, self.max_positions, self._prefill_positions)
        self._running = Running(model, pad_id, arithmetic)
        self._queue = Queue()
        self._jobs: dict[int, Job] = {}
        self._next_ticket = 0

    # -- all at once --------------------------------------------------------------------------------------------------

    def fill(self, requests: list[Request]) -> list[list[int]]:
        """The ids that fill each request's open segment, in the requests' order; a stop id that ended one is included."""
        filled: list[list[int]] = [[] for _ in requests]
        for new in self.steps(requests):
            for index, token in new.items():
                filled[index].append(token)
        return filled

    def steps(
        self, requests: list[Request], is_over: Callable[[int, int], bool] | None = None, jobs: list[Job] | None = None
    ) -> Iterator[dict[int, int]]:
        """The same, step by step: each step gives {request: its next id} for all requests that are being filled.

        An iterator that is dropped takes its requests with it.

        Args:
            is_over: is asked of every request and its next id whether that ends it.
            jobs: an empty list, that is filled with what is known of the requests (log-probabilities, for one).
        """
        for request in requests:
            self.check(request)  # now, not when the first step is asked for
        return self._steps(requests, is_over, [] if jobs is None else jobs)

    def _steps(
        self, requests: list[Request], is_over: Callable[[int, int], bool] | None, jobs: list[Job]
    ) -> Iterator[dict[int, int]]:
        left: dict[int, int] = {}
        try:
            for index, request in enumerate(requests):
                ticket = self.submit(request)
                left[ticket] = index
                jobs.append(self._jobs[ticket])
            while left:
                if not left.keys() <= self._jobs.keys():
                    raise RuntimeError("The requests were dropped because a step of the engine failed: ask again.")
                if not any(self._jobs[ticket].has_news for ticket in left):
                    self.step()
                new = {}
                for ticket in list(left):
                    index, job = left[ticket], self._jobs[ticket]
                    if (token := job.take_one()) is not None:
                        new[index] = token
                        if is_over is not None and is_over(index, token):
                            self.abort(ticket)
                            del left[ticket]
                            continue
                    if job.error is not None:
                        raise job.error
                    if job.done and not job.has_news:
                        del self._jobs[ticket], left[ticket]
                if new:
                    yield new
        finally:
            for ticket in left:
                self.abort(ticket)

    # -- one at a time ------------------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """ValueError: this request can never be filled here, and why."""
        request.check()
        if request.num_rows > self.limits.max_rows:
            raise ValueError(
                f"Guidance takes 2 rows, but the engine decodes {self.limits.max_rows} at once: give it limits with max_rows=2."
            )
        length = request.sequence.length
        if length > self.max_positions:
            whose = "the engine takes" if self.max_positions < self.model.config.max_positions else "the model was made for"
            raise ValueError(
                f"The request takes {length} positions (prompt, images and what is to be filled), but {whose} "
                f"{self.max_positions}: shorten the prompt, or ask for fewer images or new tokens."
            )
        most = self.limits.max_cache_bytes
        if most is not None and (needed := self._running.cache_bytes(request.num_rows, length, alone=True)) > most:
            raise ValueError(
                f"The request takes {needed:,} bytes of keys and values, but the engine has max_cache_bytes={most:,}: "
                f"shorten it, or give the engine more."
            )

    def submit(self, request: Request) -> int:
        """Put a request in the queue; gives its ticket.

        Raises:
            ValueError: it can never be filled.
            QueueFull: too many wait already.
        """
        self.check(request)
        if self.limits.max_waiting is not None and len(self._queue) >= self.limits.max_waiting:
            raise QueueFull(f"{len(self._queue)} requests wait already: ask again later.")
        job = Job(self._next_ticket, request)
        self._next_ticket += 1
        self._jobs[job.ticket] = job
        self._queue.push(job)
        return job.ticket

    def take(self, ticket: int) -> tuple[list[int], bool]:
        """The ids of a request that were filled since it was last asked, and whether it is done; then its ticket is spent.

        Raises:
            KeyError: there is no such ticket.
            Exception: what kept this request from being filled; its ticket is spent, too.
        """
        job = self._jobs[ticket]
        new = job.take()
        if job.done:
            del self._jobs[ticket]
        if job.error is not None:
            raise job.error
        return new, job.done

    @torch.inference_mode()
    def abort(self, ticket: int) -> None:
        """Forget a request, wherever it is; nobody else notices. A ticket that is spent is none."""
        job = self._jobs.pop(ticket, None)
        if job is None or job.done:
            return
        job.done = True  # nothing more is taken from it, and its rows go with those of the finished
        if job in self._queue:
            self._queue.remove(job)
        else:
            self._running.land()
            self._running.settle()

    def stats(self) -> Stats:
        """What it does now, and has done since it was made."""
        running = self._running
        return Stats(
            num_waiting=len(self._queue),
            num_running=len(running.jobs),
            num_rows=len(running.rows) + (len(running.entering.rows) if running.entering else 0),
            cache_bytes=running.num_cache_bytes,
            prefilled_positions=running.prefilled_positions,
            decoded_rows=running.decoded_rows,
            decoded_steps=running.decoded_steps,
        )

    def release(self) -> None:
        """Give the memory of keys and values back, unless somebody is in it; the next request takes it again."""
        self._running.release()

    def renew(self) -> None:
        """Read the model's weights again: they have changed. Requests on their way go on with the new ones."""
        self._running.renew()

    @torch.inference_mode()
    def step(self) -> None:
        """Move every row by one position and choose one id for every request; let the finished leave and newcomers join.

        A request whose prefill fails keeps the error for itself (`take`). When anything else raises (out of memory), every
        request is gone and the decoder is as new.
        """
        try:
            self._step()
        except BaseException:
            for job in self._jobs.values():
                job.done = True
            self._queue, self._jobs = Queue(), {}
            self._running.reset()
            raise

    def _step(self) -> None:
        running = self._running
        if self._queue and not running.is_current:
            running.renew()
        if not running.step(somebody_waits=bool(self._queue)):
            return
        if running.entering is None:
            rows = self._newcomers()
            if not rows:
                return
            running.begin(rows)
        running.enter()
        running.settle()

    def _newcomers(self) -> list[Row]:
        """Rows of requests from the queue, as many as there is room for."""
        new: list[Row] = []
        jobs, there = [], self._running.jobs
        while self._queue:
            job = self._queue.next(there + jobs)
            if not self._has_room([*there, *jobs, job]):
                if jobs or there:
                    break
                self._running.release()  # it has room in a cache of another shape
            positions = sum(one.request.sequence.given.length for one in [*jobs, job])
            if jobs and positions > self._prefill_positions:
                break
            self._queue.remove(job)
            jobs.append(job)
            new.append(Row(job, job.request.sequence.given, is_null=False))
            if 0 in job.request.guided:
                new.append(Row(job, job.request.sequence.given.unconditioned(self.pad_id), is_null=True))
        return new

    def _has_room(self, jobs: list[Job]) -> bool:
        rows = sum(job.request.num_rows for job in jobs)
        if rows > self.limits.max_rows:
            return False
        most = self.limits.max_cache_bytes
        length = max(job.request.sequence.length for job in jobs)
        return most is None or self._running.cache_bytes(rows, length) <= most
