"""A lock that goes round: whoever leaves it lets the one who waits in before coming back."""

import threading
from types import TracebackType


class FairRLock:
    """What one thread at a time may be in, and more than once; `with` it.

    Two threads that draw from one engine take its lock step after step. A plain lock may be taken again by the thread that has
    just left it, for ever; here the next thread already stands at the gate, and the other has to queue behind it.
    """

    def __init__(self) -> None:
        self._gate, self._room = threading.RLock(), threading.RLock()
        self._owner: int | None = None
        self._depth = 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread is in it."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> None:
        if not self.is_mine:
            with self._gate:
                self._room.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._room.release()
