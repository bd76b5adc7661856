"""Decoding that can be left between two steps, however long the answers and drawings still are."""

from collections.abc import Callable
from typing import Any

from unimm.inference.decode.decoder import Decoder
from unimm.models.unified import UnifiedModel


class Stopped(Exception):
    """Whoever asked no longer wants what was being decoded."""


class StoppableDecoder(Decoder):
    """A decoder that asks before every step whether to go on.

    Args:
        is_stopped: once it says so, whatever is on its way is dropped, and its caller gets `Stopped`.
        more: as `Decoder` has it.
    """

    def __init__(self, model: UnifiedModel, pad_id: int, is_stopped: Callable[[], bool], **more: Any) -> None:
        super().__init__(model, pad_id, **more)
        self.is_stopped = is_stopped

    def step(self) -> None:
        """One step, unless it is stopped.

        Raises:
            Stopped: it is.
        """
        if self.is_stopped():
            raise Stopped
        super().step()
