"""Threads that share a decoder: the lock that they take in turns, and a thread that makes its steps."""

import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

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

    It ends with `stop`, with the process, and when its owner is no longer used, which it does not keep alive.
    """

    def __init__(self, owner: T, step: Callable[[T], bool]) -> None:
        self._owner, self._step = weakref.ref(owner), step
        self._wake = threading.Event()
        self._end: weakref.finalize | None = None

    @property
    def is_started(self) -> bool:
        """Whether it runs, and was not stopped."""
        return self._end is not None and self._end.alive

    def start(self) -> None:
        """Start the thread, unless it runs."""
        owner = self._owner()
        if self.is_started or owner is None:
            return
        stopping = threading.Event()
        words = (self._owner, self._step, self._wake, stopping)
        thread = threading.Thread(target=_run, args=words, name="unimm-decoder", daemon=True)
        self._end = weakref.finalize(owner, _end, thread, self._wake, stopping)
        thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; returns when the step that it is in is over."""
        if self._end is not None:
            self._end()


def _run(reference: "weakref.ref[T]", step: Callable[[T], bool], wake: threading.Event, stopping: threading.Event) -> None:
    while not stopping.is_set():
        owner = reference()
        if owner is None:
            return
        wake.clear()  # before the look at what there is to do: what comes later sets it again
        if not step(owner):
            del owner
            wake.wait()


def _end(thread: threading.Thread, wake: threading.Event, stopping: threading.Event) -> None:
    stopping.set()
    wake.set()
    if thread is not threading.current_thread():
        thread.join()
