"""The decode loop: fills open segments, text and codes alike, many requests at once, which come and go between steps.

Requests wait in a queue until there are rows for them (`queue`), their given part is prefilled (`prefill`), then a step moves
every row by one position and chooses one id a request (`running`, `step`), until its segment is full or a stop id comes. The
loop knows ids and tensors, no strings and no images. Any number of threads may ask it at once.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any

import torch

from unimm.inference.decode.admission_queue import Queue
from unimm.inference.decode.fair_lock import FairRLock
from unimm.inference.decode.limits import Limits, QueueFull, Stats
from unimm.inference.decode.request import Job, Request, Row
from unimm.inference.decode.running_batch import ComputeConfig, RunningBatch
from unimm.inference.input_validation import check_elements
from unimm.models.unified import UnifiedModel

PREFILL_POSITIONS = {"cpu": 1024, "cuda": 8192}
"""Positions that one step prefills at most where nobody says, so that newcomers do not hold up the others for long."""


class Decoder:
    """Fills the open segments of requests with a unified model.

    Args:
        model: in evaluation mode, on its device.
        pad_id: the token of the null prompt.
        limits: how much it takes on.
        weights: "int8", "int4" or "fp8" to decode with such copies of the weights; None: the model's own.
        deterministic: every step computes `max_rows` rows over `max_positions` slots, and newcomers are prefilled one by one: a
            request then gets the same ids in any company also in reduced precision, for the price of a full house.

    Raises:
        ValueError: such a full house takes more than `max_cache_bytes`.
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
        most = self.limits.max_cache_bytes
        config = ComputeConfig(weights, deterministic, self.limits.max_rows, self.max_positions, self._prefill_positions, most)
        self._running = RunningBatch(model, pad_id, config)
        self._lock = FairRLock()
        self._queue = Queue()
        self._jobs: dict[int, Job] = {}
        self._aborted: list[int] = []
        self._next_ticket = 0

    # -- all at once --------------------------------------------------------------------------------------------------

    def fill(self, requests: list[Request]) -> list[list[int]]:
        """The ids that fill each request's open segment, in the requests' order; a stop id that ended one is included."""
        filled: list[list[int]] = [[] for _ in requests]
        with closing(self.steps(requests)) as steps:
            for new in steps:
                for index, token in new.items():
                    filled[index].append(token)
        return filled

    def steps(
        self, requests: list[Request], is_over: Callable[[int, int], bool] | None = None, jobs: list[Job] | None = None
    ) -> Generator[dict[int, int]]:
        """The same, step by step: each step gives {request: its next id} for all requests that are being filled.

        An iterator that is closed or dropped takes its requests with it.

        Args:
            is_over: is asked of every request and its next id whether that ends it.
            jobs: an empty list, that is filled with what is known of the requests (log-probabilities, for one).
        """
        for request in requests:
            self.check(request)  # now, not when the first step is asked for
        return self._steps(requests, is_over, [] if jobs is None else jobs)

    def _steps(
        self, requests: list[Request], is_over: Callable[[int, int], bool] | None, jobs: list[Job]
    ) -> Generator[dict[int, int]]:
        waiting, left = deque(enumerate(requests)), dict[int, int]()
        try:
            while waiting or left:
                with self._lock:
                    self._submit_some(waiting, left, jobs)
                    new = self._turn(left, is_over)
                if new:
                    yield new
        finally:
            for ticket in left:
                self.abort(ticket)

    def _submit_some(self, waiting: deque[tuple[int, Request]], left: dict[int, int], jobs: list[Job]) -> None:
        """As many requests of one call as may wait; the others keep outside until there is room, while some are inside."""
        while waiting:
            index, request = waiting[0]
            try:
                ticket = self.submit(request)
            except QueueFull:
                if left:
                    return
                raise
            waiting.popleft()
            left[ticket] = index
            jobs.append(self._jobs[ticket])

    def _turn(self, left: dict[int, int], is_over: Callable[[int, int], bool] | None) -> dict[int, int]:
        """The next id of each request of a call, where there is one; those that are filled are `left` no more."""
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
                del left[ticket]
                self._forget(ticket)
        return new

    # -- one at a time ------------------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """ValueError: this request can never be filled here, and why."""
        request.check()
        check_elements(request.sequence, self.model)
        if request.num_rows > self.limits.max_rows:
            raise ValueError(
                f"Guidance takes {request.num_rows} rows, but the engine decodes {self.limits.max_rows} at once: give it "
                f"limits with max_rows={request.num_rows}."
            )
        length = request.sequence.length
        if length > self.max_positions:
            whose = "the engine takes" if self.max_positions < self.model.config.max_positions else "the model was made for"
            raise ValueError(
                f"The request takes {length} positions (prompt, images and what is to be filled), but {whose} "
                f"{self.max_positions}: shorten the prompt, or ask for fewer images or new tokens."
            )
        with self._lock:  # it may arrange the model for decoding: once, and by one thread
            self._running.check_capacity(request.num_rows, length)

    def submit(self, request: Request) -> int:
        """Put a request in the queue; gives its ticket.

        Raises:
            ValueError: it can never be filled.
            QueueFull: too many wait already.
        """
        self.check(request)
        with self._lock:
            self._drop_aborted()
            job, most = Job(self._next_ticket, request), self.limits.max_waiting
            if (
                most is not None
                and len(self._queue) >= most
                and not self._has_capacity([*self._running.jobs, *self._queue, job])
            ):
                raise QueueFull(f"{len(self._queue)} requests wait already: ask again later.")
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
        with self._lock:
            self._drop_aborted()
            job = self._jobs[ticket]
            new = job.take()
            if job.done:
                self._forget(ticket)
            if job.error is not None:
                raise job.error
            return new, job.done

    def abort(self, ticket: int) -> None:
        """Forget a request, wherever it is; nobody else notices. A ticket that is spent is none.

        The garbage collector may call this (a stream that was dropped in a reference cycle) in the middle of a step of the same
        thread. It is then only marked: no row may move before that step has ended.
        """
        self._aborted.append(ticket)
        if not self._lock.is_mine:
            with self._lock:
                self._drop_aborted()

    @torch.inference_mode()
    def _drop_aborted(self) -> None:
        """Drop what was aborted, between two steps; the lock is held."""
        while self._aborted:
            job = self._jobs.pop(self._aborted.pop(), None)
            if job is None or job.done:
                continue
            job.done = True  # nothing more is taken from it, and its rows go with those of the finished
            if job in self._queue:
                self._queue.remove(job)
            else:
                self._settle()

    @torch.inference_mode()
    def _forget(self, ticket: int) -> None:
        """A ticket is spent. With the last one the house is empty, also of what a step under way was launched for."""
        del self._jobs[ticket]
        if not self._jobs:
            self._settle()

    def _settle(self) -> None:
        """Read the step under way, and let the finished leave."""
        with self._device_as_current():
            self._running.read_pending_step()
            self._running.retire_rows()

    def stats(self) -> Stats:
        """What it does now, and has done since it was made."""
        with self._lock:
            self._drop_aborted()
            running = self._running
            return Stats(
                num_waiting=len(self._queue),
                num_running=len(running.jobs),
                num_rows=len(running.rows) + (len(running.prefill.rows) if running.prefill else 0),
                cache_bytes=running.num_cache_bytes,
                prefilled_positions=running.prefilled_positions,
                decoded_rows=running.decoded_rows,
                decoded_steps=running.decoded_steps,
            )

    def release(self) -> None:
        """Give the memory of keys and values back, unless somebody is in it; the next request takes it again."""
        with self._lock:
            self._drop_aborted()
            self._running.release()

    def renew(self) -> None:
        """Read the model's weights again: they have changed. Requests on their way go on with the new ones."""
        with self._lock:
            self._running.reload_weights()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Nobody decodes while the model's weights are being changed; then they are read again."""
        with self._lock:
            self._drop_aborted()
            with torch.inference_mode():
                self._settle()
            yield
            self._running.reload_weights()

    @torch.inference_mode()
    def step(self) -> None:
        """Move every row by one position and choose one id for every request; let the finished leave and newcomers join.

        Requests whose prefill fails enter again, each alone; one that fails alone keeps the error for itself (`take`). When
        anything else raises (out of memory), every request is gone and the decoder is as new.
        """
        with self._lock, self._device_as_current():
            self._drop_aborted()
            try:
                self._step()
            except BaseException:
                for job in self._jobs.values():
                    job.done = True
                self._queue, self._jobs = Queue(), {}
                self._running.reset()
                raise
            self._queue.push_back(self._running.take_retries())

    def _device_as_current(self) -> AbstractContextManager[Any]:
        """Streams, events and graphs of a GPU are the current one's."""
        device = next(self.model.parameters()).device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _step(self) -> None:
        running = self._running
        if self._queue and not running.is_current:
            running.reload_weights()
        if not running.step(has_waiting=bool(self._queue)):
            return
        if running.prefill is None:
            rows = self._admit()
            if not rows:
                return
            running.start_prefill(rows)
        running.advance_prefill()
        running.retire_rows()

    def _admit(self) -> list[Row]:
        """Rows of requests from the queue, as many as fit; capacity is reserved for all their rows, also later ones."""
        jobs, there = [], self._running.jobs
        while self._queue:
            job = self._queue.next(there + jobs)
            if jobs and (job.prefills_alone or jobs[0].prefills_alone):
                break
            if not self._has_capacity([*there, *jobs, job]):
                if jobs or there:
                    break
                self._running.release()  # it has room in a cache of another shape
            positions = sum(one.num_prefilled for one in [*jobs, job])
            if jobs and positions > self._prefill_positions:
                break
            self._queue.remove(job)
            jobs.append(job)
        if jobs:
            self._running.reserve(*_room([*there, *jobs]))
        return [row for job in jobs for row in job.rows(self.pad_id)]

    def _has_capacity(self, jobs: list[Job]) -> bool:
        rows, slots = _room(jobs)
        return rows <= self.limits.max_rows and self._running.has_capacity(rows, slots)


def _room(jobs: list[Job]) -> tuple[int, int]:
    """Rows and slots that requests take at most."""
    return sum(job.request.num_rows for job in jobs), max(job.request.sequence.length for job in jobs)
