"""How much a decoder takes on, what it says when that is too much, and what it has done."""

from dataclasses import dataclass, fields

from unimm.inference.scalars import whole_number


class QueueFull(RuntimeError):
    """So many requests wait already that another is refused: ask again later."""


@dataclass
class Stats:
    """What a decoder has done, and what it is doing."""

    num_waiting: int = 0
    num_running: int = 0
    num_rows: int = 0
    cache_bytes: int = 0
    prefilled_positions: int = 0
    decoded_rows: int = 0
    decoded_steps: int = 0


@dataclass(frozen=True)
class Limits:
    """How much a decoder takes on.

    max_rows: rows that are decoded together; requests beyond wait their turn.
    max_waiting: requests that wait while there is no room for them; one more is refused with `QueueFull`. None: any number.
    max_positions: of one request. None: as many as the model was made for.
    max_cache_bytes: of keys and values; requests wait until there is room. None: as much as the device has.
    prefill_positions: that one step prefills at most. None: what suits the device.
    """

    max_rows: int = 128
    max_waiting: int | None = None
    max_positions: int | None = None
    max_cache_bytes: int | None = None
    prefill_positions: int | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, least = getattr(self, limit.name), 0 if limit.name == "max_waiting" else 1
            if value is not None or limit.name == "max_rows":
                object.__setattr__(self, limit.name, whole_number(limit.name, value, least))
