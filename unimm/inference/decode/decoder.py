"""The public interface of the decode loop: open segments in, what fills them out, all at once or step by step.

Text and codes alike, many requests at once, which come and go between steps (`scheduler`). The loop knows ids and tensors, no
strings and no images.

    decoder.fill(requests)           the ids of each
    decoder.steps(requests)          the next ids, step by step
    decoder.asteps(requests)         the same for coroutines: the decoder's own thread makes the steps, for all tasks together
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from typing import Any

from unimm.inference.decode.request import Job, Request
from unimm.inference.decode.running_batch import RunningBatch
from unimm.inference.decode.scheduler import Scheduler
from unimm.inference.decode.workload import QueueFull

IsOver = Callable[[int, int], bool]
"""Called with every request of a call (its index) and its next id: whether that ends it."""

Follow = Callable[[int], Request | None]
"""Called with the index of a request of a call when that has ended and all its ids were taken: what follows under the same
index, such as the image that a text has begun; None: nothing does."""


class Decoder(Scheduler):
    """Fills the open segments of requests with a unified model.

    Args:
        model: in evaluation mode, on its device.
        pad_id: the token that dropped conditions are replaced by.
        limits: how much it takes on.
        weights: "int8", "int4" or "fp8" to decode with such copies of the weights; None: the model's own.
        deterministic: batch invariance also in reduced precision: every step is padded to `max_rows` rows over `max_positions`
            slots, and requests are prefilled one by one.
        kernels: "triton": a layer in few launches, on CUDA devices; None or "torch": PyTorch's operators.
        is_stopped: called before every step; once it returns true, steps raise `Stopped`.

    Raises:
        ValueError: such a step takes more than `max_cache_bytes`, or there are no such kernels here.
    """

    def fill(self, requests: list[Request]) -> list[Any]:
        """What fills each request's open segment, in the requests' order: ids, with the stop id that ended them; or, of a kind
        that is filled in all at once, the content that its port makes."""
        filled: list[list[Any]] = [[] for _ in requests]
        with closing(self.steps(requests)) as steps:
            for new in steps:
                for index, element in new.items():
                    filled[index].append(element)
        at_once = [request.blank.kind not in self.model.vocabulary_ports for request in requests]
        return [one[0] if is_at_once else one for one, is_at_once in zip(filled, at_once, strict=True)]

    def steps(
        self,
        requests: list[Request],
        is_over: IsOver | None = None,
        jobs: list[Job] | None = None,
        follow: Follow | None = None,
    ) -> Generator[dict[int, Any]]:
        """The same, step by step: each step gives {request: its next id} for all requests that are being filled, and, when it
        is there, {request: its content} of those that are filled in all at once.

        An iterator that is closed or dropped takes its requests with it.

        Args:
            jobs: an empty list, to which the requests' jobs are added (for their log-probabilities).
            follow: gives the request that follows one that has ended: a sequence of open segments, one after the other, each
                decoded together with whatever else there is. It is called without any lock, and never refused for a full
                queue: it was admitted before.

        Raises:
            ValueError: a request can never be filled; at once, not with the first step.
        """
        for request in requests:
            self.check(request)
        return self._steps(_Call(self, requests, is_over, jobs, follow))

    def capture(self, requests: list[Request], max_positions: int) -> int:
        """On a GPU, record the steps of each of these requests in all numbers of rows, up to so many positions, before anybody
        waits for one; returns how many. Others are recorded when they are first made. RuntimeError: there are requests."""
        with self.between_steps():
            return self._work.capture(requests, min(max_positions, self.max_positions))

    @property
    def running(self) -> RunningBatch:
        """The rows that are decoded and what they are computed with: for who looks at them `between_steps`."""
        return self._running

    def _steps(self, call: "_Call") -> Generator[dict[int, Any]]:
        with closing(call):
            while not call.is_done:
                if call.follow_up():
                    break
                with self._lock:
                    call.submit()
                    if not self.is_started and not call.is_ready:
                        self.step()
                    new = call.take()
                    self._drop_aborted()
                if new:
                    yield new
                elif not call.is_done and not call.has_ended:
                    self._wait_until(lambda: call.is_ready)

    async def asteps(
        self,
        requests: list[Request],
        is_over: IsOver | None = None,
        jobs: list[Job] | None = None,
        follow: Follow | None = None,
    ) -> AsyncGenerator[dict[int, Any]]:
        """As `steps`, for coroutines. It starts the decoder's own thread, and never blocks the event loop.

        A task that is cancelled takes its requests with it. Errors come with the first step; `EngineDead` where the thread has
        died before, or dies meanwhile.
        """
        self._check_alive()
        if not self.is_started:  # it takes the lock, which a step holds
            await asyncio.to_thread(self.start)
        loop, has_news = asyncio.get_running_loop(), asyncio.Event()

        def wake(job: Job) -> None:
            try:
                loop.call_soon_threadsafe(has_news.set)
            except RuntimeError:  # the loop was closed before its requests were done
                self.abort(job.ticket)

        def check() -> None:
            for request in requests:
                self.check(request)

        await asyncio.to_thread(check)
        with closing(_Call(self, requests, is_over, jobs, follow, wake)) as call:
            while not call.is_done:
                if call.has_ended and await asyncio.to_thread(call.follow_up):
                    break
                has_news.clear()
                if call.may_submit:
                    await asyncio.to_thread(call.submit)
                new = call.take()
                if new:
                    yield new
                elif not call.is_done and not call.has_ended:
                    await has_news.wait()


class _Call:
    """The requests of one call: those that are not submitted yet, and those that are not done.

    All of it but `submit` may be used without the decoder's lock.
    """

    def __init__(
        self,
        decoder: Decoder,
        requests: list[Request],
        is_over: IsOver | None,
        jobs: list[Job] | None,
        follow: Follow | None,
        on_news: Callable[[Job], None] | None = None,
    ) -> None:
        self._decoder, self._is_over, self._follow, self._on_news = decoder, is_over, follow, on_news
        self._all_jobs = [] if jobs is None else jobs
        self._ended: list[int] = []  # whose followers were not asked for yet
        self._further: deque[tuple[int, Request]] = deque()
        self._waiting = deque(enumerate(requests))
        self._left: dict[int, Job] = {}  # by index
        self._is_full = self._is_closed = False

    @property
    def jobs(self) -> list[Job]:
        """Those that are not done."""
        return list(self._left.values())

    @property
    def is_done(self) -> bool:
        """Whether all was submitted, filled and taken, and nothing follows."""
        return not (self._waiting or self._left or self._ended or self._further)

    @property
    def has_ended(self) -> bool:
        """Whether it was not asked yet what follows a request."""
        return bool(self._ended)

    def follow_up(self) -> bool:
        """Ask what follows the requests that have ended; returns whether all is done now.

        Raises:
            ValueError: what follows can never be filled.
        """
        while self._ended and self._follow is not None:
            if (request := self._follow(index := self._ended.pop(0))) is not None:
                self._decoder.check(request)
                self._further.append((index, request))
        return self.is_done

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take: an id of every request that is being filled. A step may give one of them several
        ids and another just one, but they are taken side by side."""
        jobs = self.jobs
        is_behind = any(job.filled and not job.done and not job.has_news for job in jobs)
        return not is_behind and any(job.has_news or job.done for job in jobs)

    @property
    def may_submit(self) -> bool:
        """Whether there is something to submit, and the queue was not full since something of this call ended."""
        return bool(self._further) or (bool(self._waiting) and not (self._is_full and self._left))

    def submit(self) -> None:
        """As many requests as may wait; the others stay here until some of these are done.

        Raises:
            QueueFull: not one may wait, and none of these is inside.
        """
        with self._decoder._lock:
            while self._further and not self._is_closed:
                self._entered(*self._further.popleft(), is_further=True)
            while self._waiting and not self._is_closed:
                try:
                    self._entered(*self._waiting[0])
                except QueueFull:
                    if not self._left:
                        raise
                    self._is_full = True
                    break
                self._waiting.popleft()
        if self._is_closed:  # its task was cancelled meanwhile
            self.close()

    def _entered(self, index: int, request: Request, is_further: bool = False) -> None:
        self._left[index] = job = self._decoder._enqueue(request, self._on_news, is_further)
        self._all_jobs.append(job)

    def take(self) -> dict[int, Any]:
        """The next id of each request, where there is one; nothing as long as one that is being filled has none."""
        new: dict[int, Any] = {}
        if not self.is_ready:
            return new
        for index, job in list(self._left.items()):
            was_done = job.done  # before its last id is taken: both may come while we are here
            if (token := job.take_one()) is not None:
                new[index] = token
                if self._is_over is not None and self._is_over(index, token):
                    self._end(index)
                    continue
            if was_done and job.error is not None:
                raise job.error
            if was_done and not job.has_news:
                self._end(index)
        return new

    def _end(self, index: int) -> None:
        self._decoder.abort(self._left.pop(index).ticket)
        self._is_full = False
        if self._follow is not None:
            self._ended.append(index)

    def close(self) -> None:
        """Drop what is not done."""
        self._is_closed = True
        for job in self.jobs:
            self._decoder.abort(job.ticket)
