"""Decoding that its caller can end between two steps."""

from collections.abc import Callable
from typing import Any

from unimm.inference.decode.decoder import Decoder


class Stopped(Exception):
    """Decoding ended before it was done, since its caller asked for that."""


class StoppableDecoder(Decoder):
    """A decoder that asks before every step whether to go on.

    Args:
        settings: as `Decoder` has them.
        is_stopped: once it returns True, what is in flight is dropped, and its caller gets `Stopped`.
    """

    def __init__(self, *settings: Any, is_stopped: Callable[[], bool]) -> None:
        super().__init__(*settings)
        self.is_stopped = is_stopped

    def step(self) -> None:
        """One step, unless it is stopped.

        Raises:
            Stopped: it is.
        """
        if self.is_stopped():
            raise Stopped
        super().step()
