"""Threads that share a decoder: the lock that they take in turns, and a thread that makes its steps."""

import logging
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class FairRLock:
    """A re-entrant lock for `with`, taken in turns: a thread that leaves it lets one that waits in before it comes back.

    Two threads that draw from one engine take its lock step after step. A plain lock may be taken again by the thread that has
    just left it, for ever; here the next thread already holds the outer of two locks, for which the other has to queue.
    """

    def __init__(self) -> None:
        self._next, self._inner = threading.RLock(), threading.RLock()
        self._owner: int | None = None
        self._depth = 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> None:
        if not self.is_mine:
            with self._next:
                self._inner.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._inner.release()


class StepThread(Generic[T]):
    """A thread that calls `step(owner)` again and again, and sleeps when that returns False until it is woken.

    It ends with `stop`, with the process, and when its owner is no longer used, which it does not keep alive. When `step`
    raises, the thread has died: `died` says of what, `on_death(owner, error)` is its last act, and `start` makes a new one.
    """

    def __init__(self, owner: T, step: Callable[[T], bool], on_death: Callable[[T, BaseException], object]) -> None:
        self._owner, self._step, self._on_death = weakref.ref(owner), step, on_death
        self._wake = threading.Event()
        self._end: weakref.finalize | None = None
        self._thread: threading.Thread | None = None  # also one that was stopped
        self._deaths: list[BaseException] = []

    @property
    def is_started(self) -> bool:
        """Whether it runs, was not stopped, and has not died."""
        return self._end is not None and self._end.alive and not self._deaths

    @property
    def is_mine(self) -> bool:
        """Whether the caller is this thread."""
        return threading.current_thread() is self._thread

    @property
    def died(self) -> BaseException | None:
        """What it has died of, until it is started again."""
        return self._deaths[-1] if self._deaths else None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        owner = self._owner()
        if self.is_started or owner is None:
            return
        self._deaths, stopping = [], threading.Event()
        words = (self._owner, self._step, self._on_death, self._wake, stopping, self._deaths)
        self._thread = thread = threading.Thread(target=_run, args=words, name="unimm-decoder", daemon=True)
        if self._end is not None:
            self._end.detach()
        self._end = weakref.finalize(owner, _end, thread, self._wake, stopping)
        thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; returns when the step that it is in is over."""
        if self._end is not None:
            self._end()


def _run(
    reference: "weakref.ref[T]",
    step: Callable[[T], bool],
    on_death: Callable[[T, BaseException], object],
    wake: threading.Event,
    stopping: threading.Event,
    deaths: list[BaseException],
) -> None:
    try:
        while not stopping.is_set():
            owner = reference()
            if owner is None:
                return
            wake.clear()  # before the look at what there is to do: what comes later sets it again
            if not step(owner):
                del owner
                wake.wait()
    except BaseException as error:  # also what Python raises in a thread that is to end
        logger.critical("The decoder's thread has died: no request is served until it is started again.", exc_info=error)
        deaths.append(error)
        if (owner := reference()) is not None:
            on_death(owner, error)


def _end(thread: threading.Thread, wake: threading.Event, stopping: threading.Event) -> None:
    stopping.set()
    wake.set()
    if thread is not threading.current_thread():
        thread.join()
