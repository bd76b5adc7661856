"""Calls of rewards that may fail, as code of others may. One that raises, hangs, or returns what is no number
costs the responses that it was asked about, not the run.

A call that takes too long cannot be ended from outside: it is left to itself in a thread of its own, and nobody waits for it.
One that fails again and again is a mistake and no accident: then the run ends with one sentence.
"""

import math
import threading
from typing import Any

import torch

from unimm.rewards.response import Response, Reward

MAX_FAILURES = 20
"""So many calls of a reward in a row may fail; the next one ends the run."""

MAX_HANGING = 3
"""So many calls may be left to themselves: each keeps a thread and what it holds."""


class RewardFailure(ValueError):
    """A reward fails so often that its numbers mean nothing."""


class GuardedReward:
    """A reward that is asked about the responses to one prompt at a time.

    time_limit: seconds of a call; None: as long as it takes.

    `reasons` counts what calls failed for, by a short sentence.
    """

    def __init__(self, name: str, reward: Reward, time_limit: float | None = 60.0) -> None:
        self.name, self.reward, self.time_limit = name, reward, time_limit
        self.reasons: dict[str, int] = {}
        self._in_a_row = self._num_hanging = 0

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
        self._in_a_row += 1
        if self._in_a_row > MAX_FAILURES or self._num_hanging > MAX_HANGING:
            often = f"{self._in_a_row} times in a row" if self._in_a_row > MAX_FAILURES else f"{self._num_hanging} times"
            raise RewardFailure(
                f"The reward '{self.name}' failed {often}, the last time so: {reason}. Mend it, or leave it out."
            )
        return None

    def _call(self, responses: list[Response]) -> tuple[str | None, list[float | None] | None]:
        found: list[Any] = []
        failure: list[Exception] = []
        threads = torch.get_num_threads()

        def call() -> None:
            torch.set_num_threads(threads)  # a new thread would take all cores
            try:
                found.append(self.reward(responses))
            except Exception as error:  # of whatever kind: code of others
                failure.append(error)

        worker = threading.Thread(target=call, name=f"unimm-reward-{self.name}", daemon=True)
        worker.start()
        worker.join(self.time_limit)
        if worker.is_alive():
            self._num_hanging += 1
            return f"it took more than {self.time_limit:g} seconds", None
        if failure:
            return f"it raised {type(failure[0]).__name__}: {str(failure[0]).splitlines()[0] if str(failure[0]) else ''}", None
        return _read(found[0], len(responses))


def _read(values: Any, count: int) -> tuple[str | None, list[float | None] | None]:
    """Numbers as plain floats; or why they are none."""
    try:
        numbers = [None if value is None else float(value) for value in values]
    except (TypeError, ValueError):
        return f"it returned {type(values).__name__}, not a list of numbers", None
    if len(numbers) != count:
        return f"it returned {len(numbers)} numbers for {count} responses", None
    if any(value is not None and not math.isfinite(value) for value in numbers):
        return "it returned a number that is not finite", None
    return None, numbers
