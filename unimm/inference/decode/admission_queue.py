"""The waiting queue and its limits: requests are admitted in order within a kind, and kinds in turns.

A drawing keeps its rows for hundreds of steps, a short text for a few. If both stood in one line, texts behind many drawings
would wait for all of them; so the kind that has fewer requests running is served next, and the older request where they tie.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields

from unimm.inference.decode.request import Job
from unimm.inference.scalars import whole_number
from unimm.sequence import Kind


class QueueFull(RuntimeError):
    """The queue is full, and another request was refused: ask again later."""


@dataclass
class Stats:
    """What a decoder is doing, and totals of what it has done.

    fill_passes: passes over blanks that are filled in all at once.
    """

    num_waiting: int = 0
    num_running: int = 0
    num_rows: int = 0
    cache_bytes: int = 0
    prefilled_positions: int = 0
    decoded_rows: int = 0
    decoded_steps: int = 0
    fill_passes: int = 0


@dataclass(frozen=True)
class Limits:
    """How much a decoder takes on.

    max_rows: rows that are decoded together; further requests wait in the queue.
    max_waiting: requests in the queue while no rows are free for them; one more is refused with `QueueFull`. None: any number.
    max_positions: of one request. None: as many as the model was made for.
    max_cache_bytes: of keys and values; requests wait until some are free. None: as much as the device has.
    prefill_positions: that one step prefills at most. None: 1,024 on a CPU, 8,192 on a GPU.
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


class AdmissionQueue:
    """Jobs by kind."""

    def __init__(self) -> None:
        self._lines: dict[Kind, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __contains__(self, job: Job) -> bool:
        return job in self._line(job)

    def __iter__(self) -> Iterator[Job]:
        for line in self._lines.values():
            yield from line

    def push(self, job: Job) -> None:
        """At the end of its line."""
        self._line(job).append(job)

    def push_back(self, jobs: list[Job]) -> None:
        """At the beginning of their lines, in this order: they were admitted before."""
        for job in reversed(jobs):
            self._line(job).appendleft(job)

    def remove(self, job: Job) -> None:
        """Take it out, wherever it stands."""
        self._line(job).remove(job)

    def next(self, running: list[Job]) -> Job:
        """The request to admit next, beside those that are running; it stays until it is removed."""
        counts = {kind: sum(job.request.blank.kind == kind for job in running) for kind in self._lines}
        kind = min((kind for kind, line in self._lines.items() if line), key=lambda kind: (counts[kind], self._oldest(kind)))
        return self._lines[kind][0]

    def _oldest(self, kind: Kind) -> int:
        return self._lines[kind][0].ticket

    def _line(self, job: Job) -> deque[Job]:
        return self._lines.setdefault(job.request.blank.kind, deque())
