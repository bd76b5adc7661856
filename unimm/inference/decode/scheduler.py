"""Requests by their tickets, from any number of threads: submit, wait, take, abort; and who makes the steps.

Steps (`workload`) are made by a thread of the scheduler's own (`start`), or by whoever waits for results. A lock keeps them,
and all that changes what they work on, apart.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from unimm.inference.decode.request import Job, Request
from unimm.inference.decode.threads import FairRLock, StepThread
from unimm.inference.decode.workload import Limits, Stats, Workload
from unimm.inference.input_validation import check_elements
from unimm.models.unified import UnifiedModel

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Decoding was stopped by `is_stopped` before it was done."""


class EngineDead(RuntimeError):
    """The thread that makes the steps has died; requests are refused until it is started again."""


class Scheduler:
    """Tickets, the work, its lock, and the thread that makes steps. Arguments as `Decoder` has them."""

    def __init__(
        self,
        model: UnifiedModel,
        pad_id: int,
        limits: Limits | None = None,
        weights: str | None = None,
        deterministic: bool = False,
        is_stopped: Callable[[], bool] | None = None,
        kernels: str | None = None,
    ) -> None:
        self.model, self.pad_id = model, pad_id
        self.limits = limits or Limits()
        self.max_positions = self.limits.max_positions or model.config.max_positions
        self.is_stopped = is_stopped
        self._work = Workload(model, pad_id, self.limits, self.max_positions, weights, deterministic, kernels)
        self._running = self._work.running
        self._lock = FairRLock()
        self._changed = threading.Condition()
        self._jobs: dict[int, Job] = {}
        self._aborted: list[int] = []
        self._next_ticket = 0
        self._last_step = time.monotonic()
        self._thread = StepThread(self, Scheduler._step_in_thread, Scheduler._bury)

    # -- requests -----------------------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """ValueError: this request can never be filled here, and why."""
        request.check()
        check_elements(request.sequence, self.model, request.expected.ids if request.expected else ())
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
        # It may arrange the model for decoding, and try its kernels: once, by one thread, on the model's device.
        with self._lock, self._device_as_current():
            self._work.check(request)

    def submit(self, request: Request, on_news: Callable[[Job], None] | None = None) -> int:
        """Put a request in the queue; returns its ticket.

        on_news: called after every step that filled an element of it, or ended it, by the thread that makes the step, which
            holds the scheduler's lock: it must return at once.

        Raises:
            ValueError: it can never be filled.
            QueueFull: too many requests wait already.
            EngineDead: the scheduler's own thread has died.
        """
        self.check(request)
        return self._enqueue(request, on_news).ticket

    def _enqueue(self, request: Request, on_news: Callable[[Job], None] | None, is_further: bool = False) -> Job:
        """is_further: it goes on with what was admitted before, and is never refused for a full queue."""
        with self._lock:
            self._check_alive()
            self._drop_aborted()
            if not self.has_work:
                self._last_step = time.monotonic()
            job = Job(self._next_ticket, request, on_news)
            self._work.push(job, is_further)
            self._next_ticket += 1
            self._jobs[job.ticket] = job
        self._thread.wake()
        return job

    def wait(self, ticket: int, timeout: float | None = None) -> bool:
        """Block until a request has ids to take or is done; returns False where that takes longer than `timeout` seconds.

        Without a thread of the scheduler's own (`start`) the caller's makes the steps.

        Raises:
            KeyError: there is no such ticket.
            Exception: a step that the caller's thread made failed.
        """
        return self._wait_for([self._jobs[ticket]], timeout)

    def _wait_for(self, jobs: list[Job], timeout: float | None = None) -> bool:
        """`wait` for any of these."""
        return self._wait_until(lambda: any(job.has_news or job.done for job in jobs), timeout)

    def _wait_until(self, is_there: Callable[[], bool], timeout: float | None = None) -> bool:
        """Block until that is so, which steps bring about."""
        end = None if timeout is None else time.monotonic() + timeout
        while not is_there():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            if not self.is_started:
                self.step()
                continue
            with self._changed:
                if not is_there():
                    self._changed.wait(left)
        return True

    def take(self, ticket: int) -> tuple[list[int], bool]:
        """The ids of a request that were filled since the last call, and whether it is done; then its ticket is spent.

        Raises:
            KeyError: there is no such ticket.
            Exception: why this request could not be filled; its ticket is spent, too.
        """
        with self._lock:
            self._drop_aborted()
            job = self._jobs[ticket]
            new = job.take()
            if job.done:
                self._aborted.append(ticket)
                self._drop_aborted()
            if job.error is not None:
                raise job.error
            return new, job.done

    def abort(self, ticket: int) -> None:
        """Drop a request, whether it waits or runs; others are not affected. A spent ticket is ignored.

        The garbage collector may call this (a stream that was dropped in a reference cycle) in the middle of a step of the same
        thread. The request is then only marked: no row may move before that step has ended. It is only marked, too, where the
        scheduler's own thread drops it before its next step: nothing blocks.
        """
        self._aborted.append(ticket)
        if self.is_started:
            self._thread.wake()
        elif not self._lock.is_mine:
            with self._lock:
                self._drop_aborted()

    @torch.inference_mode()
    def _drop_aborted(self) -> None:
        """Drop what was aborted or is spent, between two steps; the lock is held."""
        while self._aborted:
            job = self._jobs.pop(self._aborted.pop(), None)
            if job is None:
                continue
            was_done, job.done = job.done, True  # nothing more is taken from it, and its rows are retired
            if not was_done and job in self._work.queue:
                self._work.queue.remove(job)
            elif not was_done or not self._jobs:  # with the last one, also what was launched for it is read
                self._finish_pending()

    def _finish_pending(self) -> None:
        """Read the step in flight, and let finished requests leave."""
        with self._device_as_current():
            self._work.finish_pending()

    # -- the state of all of them -------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """What it is doing now, and totals since it was made."""
        with self._lock:
            self._drop_aborted()
            return self._work.stats()

    def release(self) -> None:
        """Free the memory of keys and values unless a request uses it, and all that is kept of prompts; the next request
        allocates it again."""
        with self._lock:
            self._drop_aborted()
            self._work.release()
            if self._work.prefixes is not None:
                self._work.prefixes.clear()

    def reload_weights(self) -> None:
        """Read the model's weights again: they have changed. Running requests go on with the new ones."""
        with self._lock:
            self._work.reload_weights()

    def swap_weights(self, change: Callable[[], object]) -> None:
        """Call `change`, which changes the model's weights, between two steps, and read them again."""
        with self._lock:
            self._drop_aborted()
            with torch.inference_mode():
                self._finish_pending()
            change()
            self._work.reload_weights()

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Nobody makes a step in this block, which uses the model in another way."""
        with self._lock, self._device_as_current():
            yield

    # -- steps --------------------------------------------------------------------------------------------------------

    @property
    def is_started(self) -> bool:
        """Whether a thread of its own makes the steps."""
        return self._thread.is_started

    def start(self) -> None:
        """Let a thread of its own make steps while there are requests, until `stop`. Once more changes nothing, but where that
        thread has died: then a new one begins, with no requests."""
        with self._lock:
            if self._thread.died is not None:
                self._bury(self._thread.died)
            self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are served: False once the thread of its own has died of an error, until the next `start`."""
        return self._thread.died is None

    @property
    def has_work(self) -> bool:
        """Whether a request waits or is being filled. Needs no lock, so it answers also where a step hangs."""
        return any(not job.done for job in list(self._jobs.values()))

    @property
    def last_step(self) -> float:
        """When the last step ended, or work began to wait after there was none: seconds of `time.monotonic`. Needs no lock."""
        return self._last_step

    @property
    def stalled_seconds(self) -> float:
        """For how long its own thread has had work and ended no step; 0 where there is no work, or no such thread. A step takes
        fractions of a second (the first one longer, where kernels are compiled). Needs no lock."""
        return time.monotonic() - self._last_step if self.is_started and self.has_work else 0.0

    def _check_alive(self) -> None:
        if (error := self._thread.died) is not None:
            raise EngineDead(f"The engine's thread has died ({_named(error)}): start it again with engine.decoder.start().")

    def _end_all(self, error: Exception) -> None:
        """Every request that is not done ends with an error."""
        for job in self._jobs.values():
            if not job.done:
                job.fail(error)

    def _bury(self, error: BaseException) -> None:
        """The last act of the thread when it has died: nobody waits for ever."""
        with self._lock:
            self._end_all(EngineDead(f"The request was dropped because the engine's thread has died ({_named(error)})."))
            self._work.reset()
            self._report()

    def stop(self) -> None:
        """End that thread after the step that it is in. Requests stay, for threads that `wait` for them or the next `start`."""
        self._thread.stop()
        self._notify()

    @torch.inference_mode()
    def step(self) -> None:
        """Move every row by one position and choose one id for every request; finished requests leave and waiting ones join.

        Requests whose prefill fails are prefilled again, each alone; one that fails alone keeps the error for itself (`take`).
        When anything else raises (out of memory), all requests end with an error, and the scheduler is as new.

        Raises:
            Stopped: `is_stopped` says so; nothing was done.
        """
        if self.is_stopped is not None and self.is_stopped():
            raise Stopped
        with self._lock, self._device_as_current():
            self._drop_aborted()
            try:
                self._work.step()
            except BaseException as error:
                self._fail(error)
                raise
            finally:
                self._last_step = time.monotonic()
                self._report()

    def _fail(self, error: BaseException) -> None:
        """End all requests: a step has failed."""
        dropped = f"The requests were dropped because a step of the engine failed ({_named(error)}): ask again."
        with self._lock:
            if isinstance(error, Exception) or not self._thread.is_mine:  # else `_bury` follows
                self._end_all(error if isinstance(error, Stopped) else RuntimeError(dropped))
            self._work.reset()

    def _report(self) -> None:
        """After a step: call listeners, and wake threads that wait."""
        for job in list(self._jobs.values()):
            if job.on_news is not None and (job.has_news or job.done):
                job.on_news(job)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _step_in_thread(self) -> bool:
        """One step by the scheduler's own thread; returns False where there is nothing to do."""
        with self._lock:
            if not self._aborted and self._work.is_idle:
                return False
        try:
            self.step()
        except Stopped as stopped:
            self._fail(stopped)
            self._report()
        except Exception:
            logger.exception("A step of the decoder failed: its requests were dropped, and callers get an error.")
        return True

    def _device_as_current(self) -> AbstractContextManager[Any]:
        """Streams, events and graphs of a GPU are the current one's."""
        device = next(self.model.parameters()).device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _named(error: BaseException) -> str:
    return type(error).__name__ + (f": {error}" if str(error) else "")
