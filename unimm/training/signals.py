"""Signals end a run between two steps, never inside one: what is saved is then always whole.

Ctrl-C (SIGINT), SIGTERM and SIGUSR1, which schedulers send before they end a job, are only noted, so that the loop can finish
its step, leave an evaluation early and write a checkpoint, on all processes after the same step. Then the run ends with the
exit code that shells give to the signal (what is waited for is printed at once):

    130  Ctrl-C            138  SIGUSR1            143  SIGTERM

and the same command goes on from there. Further signals change nothing, since launchers pass on what a terminal or a scheduler
has already sent to everybody; only a second Ctrl-C, seconds after the first, ends the process at once.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGTERM") if hasattr(signal, name))

ECHO_SECONDS = 2.0
"""A Ctrl-C that follows another this soon is the launcher's copy of it."""

WORKER_NICENESS = 10

SECONDS_BETWEEN_LOOKS = 5.0
"""After which a worker looks whether its parent is still there."""


class StopRequest:
    """While this context is open, a signal is noted in `number` instead of interrupting; 0 is none.

    say: called at once with the first signal's name and how to stop without waiting; it may interrupt any code, also one that
        writes, so it must not use buffered output.
    """

    def __init__(self, say: Callable[[str, str], None] | None = None) -> None:
        self._say = say
        self.number = 0
        self._since = 0.0
        self._previous: dict = {}

    @property
    def made(self) -> bool:
        """Whether the run is to end after this step. Long work between steps checks it, and returns early."""
        return self.number != 0

    def __enter__(self) -> "StopRequest":
        self.number = 0
        if threading.current_thread() is threading.main_thread():  # only there Python lets signals be handled
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def obey(self) -> None:
        """Exit as the signal says, now that everything is saved."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.made:
            self.number, self._since = int(number), time.monotonic()
            if self._say is not None:
                by_hand = number == signal.SIGINT
                self._say("Ctrl-C" if by_hand else signal.Signals(number).name, "again" if by_hand else "Ctrl-C (SIGINT)")
        elif number == signal.SIGINT and time.monotonic() - self._since > ECHO_SECONDS:
            signal.signal(number, self._previous[number] or signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Signals wait until this context is left: for starting workers, which else could be met before they `init_worker`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker(worker: int) -> None:
    """For a loader's workers: the parent goes first, and decides when they end though signals for a whole job reach them too.

    On a machine with few cores a worker that takes one from the parent's threads stops all of them at their next barrier.
    Workers are started under `signals_blocked`.
    """
    ignored = {number for number in SIGNALS if number != signal.SIGTERM}
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(WORKER_NICENESS)


def _end_with_parent() -> None:
    """Wait for the SIGTERM by which the parent ends its workers (a scheduler's would cost the parent its step), or until the
    parent is gone: a worker that has batches to hand over would else wait for someone to take them, for ever."""
    parent, started_by = os.getppid(), multiprocessing.parent_process()
    # The parent may be gone before this thread looks for the first time; only a fork server stands between the two.
    if started_by is not None and started_by.pid != parent and multiprocessing.get_start_method() != "forkserver":
        os._exit(0)
    while os.getppid() == parent:
        met = signal.sigtimedwait({signal.SIGTERM}, SECONDS_BETWEEN_LOOKS)
        if met is not None and met.si_pid == parent:
            break
    os._exit(0)
