"""The queue of requests that wait for rows: in order within a kind, and kinds in turns.

A drawing keeps its rows for hundreds of steps, a short text for a few. If both stood in one line, texts behind many drawings
would wait for all of them; so the kind that has fewer requests running is served next, and the older request where they tie.
"""

from collections import deque
from collections.abc import Iterator

from unimm.inference.decode.request import Job
from unimm.sequence import Kind


class Queue:
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
        """At the beginning of their lines, in this order: they were inside already."""
        for job in reversed(jobs):
            self._line(job).appendleft(job)

    def remove(self, job: Job) -> None:
        """Wherever it stands."""
        self._line(job).remove(job)

    def next(self, running: list[Job]) -> Job:
        """Who is served next, beside those that are running; it stays until it is removed."""
        counts = {kind: sum(job.request.blank.kind == kind for job in running) for kind in self._lines}
        kind = min((kind for kind, line in self._lines.items() if line), key=lambda kind: (counts[kind], self._oldest(kind)))
        return self._lines[kind][0]

    def _oldest(self, kind: Kind) -> int:
        return self._lines[kind][0].ticket

    def _line(self, job: Job) -> deque[Job]:
        return self._lines.setdefault(job.request.blank.kind, deque())
