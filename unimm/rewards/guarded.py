"""Calls of rewards that may fail, as code of others may. One that raises, hangs, or returns what is no number
costs the responses that it was asked about, not the run.

A call that takes too long cannot be ended from outside: it is left to itself in a thread of its own, and nobody waits for it.
One that fails again and again is a mistake and no accident: then the run ends with one sentence.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from unimm.rewards.response import Response, Reward

MAX_FAILURES = 20
"""So many calls of a reward in a row may fail; the next one ends the run."""

MAX_HANGING = 3
"""So many calls may be left to themselves at a time: each keeps a thread and what it holds."""


class RewardFailure(ValueError):
    """A reward fails so often that its numbers mean nothing."""


class GuardedReward:
    """A reward that is asked about the responses to one prompt at a time.

    time_limit: seconds of a call; None: as long as it takes.

    `reasons` counts what calls failed for, by a short sentence; `last_reason` is that of the last one that failed.
    """

    def __init__(self, name: str, reward: Reward, time_limit: float | None = 60.0) -> None:
        self.name, self.reward, self.time_limit = name, reward, time_limit
        self.reasons: dict[str, int] = {}
        self.last_reason = ""
        self._in_a_row = 0
        self._hanging: list[threading.Thread] = []

    def __call__(self, responses: list[Response]) -> list[float | None] | None:
        """A finite number or None for each response; None for all of them: the call failed, and `reasons` says why.

        Raises:
            RewardFailure: it has failed too often.
        """
        reason, values = self._call(responses)
        if reason is None:
            self._in_a_row = 0
            return values
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        self.last_reason = reason
        self._in_a_row += 1
        self._hanging = [one for one in self._hanging if one.is_alive()]
        if self._in_a_row > MAX_FAILURES or len(self._hanging) > MAX_HANGING:
            is_often = self._in_a_row > MAX_FAILURES
            often = f"failed {self._in_a_row} times in a row" if is_often else f"does not end {len(self._hanging)} of its calls"
            raise RewardFailure(f"The reward '{self.name}' {often}, the last time so: {reason}. Mend it, or leave it out.")
        return None

    def _call(self, responses: list[Response]) -> tuple[str | None, list[float | None] | None]:
        found: list[Any] = []
        failure: list[BaseException] = []
        threads = torch.get_num_threads()

        def call() -> None:
            torch.set_num_threads(threads)  # a new thread would take all cores
            try:
                values: Any = self.reward(responses)
                found.append(list(values) if isinstance(values, Iterator) else values)  # a generator runs only now
            except BaseException as error:  # of whatever kind, SystemExit too: code of others
                failure.append(error)

        worker = threading.Thread(target=call, name=f"unimm-reward-{self.name}", daemon=True)
        worker.start()
        worker.join(self.time_limit)
        if worker.is_alive():
            self._hanging.append(worker)
            return f"it took more than {self.time_limit:g} seconds", None
        if failure:
            return f"it raised {type(failure[0]).__name__}: {str(failure[0]).splitlines()[0] if str(failure[0]) else ''}", None
        return _read(found[0], len(responses))


def _read(values: Any, count: int) -> tuple[str | None, list[float | None] | None]:
    """Numbers as plain floats; or why they are none."""
    if isinstance(values, str | bytes | Mapping):  # whose characters and keys may be numbers
        return f"it returned {type(values).__name__}, not a list of numbers", None
    try:
        numbers = [None if value is None else float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return f"it returned {type(values).__name__}, not a list of numbers", None
    if len(numbers) != count:
        return f"it returned {len(numbers)} numbers for {count} responses", None
    if any(value is not None and not math.isfinite(value) for value in numbers):
        return "it returned a number that is not finite", None
    return None, numbers
