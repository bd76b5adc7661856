"""Ctrl-C and SIGTERM end a run between two steps, never inside one: what is saved is then always whole.

The first signal is only noted, so that the loop can finish its step and write a checkpoint; a second one ends the process at
once.
"""

import os
import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

WORKER_NICENESS = 10


class StopRequest:
    """While this context is open, the first signal sets `made` instead of interrupting."""

    def __init__(self) -> None:
        self.made = False
        self._signal = signal.SIGINT
        self._previous: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # only there Python lets signals be handled
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def obey(self) -> None:
        """Do what the signal means, now that everything is saved; on a rank that got none, what it meant for another."""
        if self._signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            signal.signal(number, self._previous[number] or signal.SIG_DFL)
            signal.raise_signal(number)
        self.made = True
        self._signal = signal.Signals(number)


def step_back(worker: int) -> None:
    """For a loader's workers: the parent goes first, and decides when they end though Ctrl-C reaches them too.

    On a machine with few cores a worker that takes one from the parent's threads stops all of them at their next barrier.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(WORKER_NICENESS)
