"""What a video is to everyone who shows one: frames with times, read when they are asked for."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from unimm.data.video.limits import DecodingLimit


class Video(ABC):
    """A clip: frames with times, which are read when they are asked for (`unimm.data.video`). Where a record has an image, it
    have one of these.

    settings: what this clip asks for, by the names of `unimm.data.VideoFormat`; the rest is as the model takes videos.
    limit: of what is decoded of it, beside what holds for all clips; None: no other. For files and animations.
    """

    settings: Mapping[str, Any] = {}
    limit: "DecodingLimit | None" = None

    @property
    @abstractmethod
    def seconds(self) -> float:
        """How long it is. ValueError: it cannot be read."""

    @property
    @abstractmethod
    def num_frames(self) -> int | None:
        """How many frames it has; None: that is not known before all of it is read."""

    @abstractmethod
    def frames(self, times: Iterable[float]) -> Iterator[np.ndarray]:
        """The frames that are shown at these times, rising, in seconds: (H, W, 3) uint8 each, one after the other.

        Raises:
            ValueError: they cannot be read.
        """

    @property
    def begins(self) -> list[float] | None:
        """When each frame is shown, where that was given with them."""
        return None

    def with_settings(self, **settings: Any) -> Self:
        """The same clip with other settings; those that are None are left as they are."""
        changed = copy.copy(self)
        changed.settings = {**self.settings, **{name: value for name, value in settings.items() if value is not None}}
        return changed
