"""Collectives by which the processes of a run agree, so that all of them do the same after the same step.

They communicate over a gloo group of their own, on CPUs with a long timeout: the default group of GPUs gives up after ten
minutes, but the first process may evaluate or write a large checkpoint for longer, or another have more to do. In a run of one
process every method returns its own value.
"""

import time
from datetime import timedelta

import torch
from torch import distributed

TIMEOUT = timedelta(days=1)
"""How long the others wait for one process. Where one is gone rather than slow, its closed connection ends the wait at once."""


class Ranks:
    """All processes of a run. Every method is called by all of them at the same place.

    number, count: which of how many this one is; with several, torch's default process group must exist.
    """

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number, self.count = number, count
        self._group: distributed.ProcessGroup | None = None
        if self.count > 1:
            group = distributed.new_group(backend="gloo", timeout=TIMEOUT)
            assert isinstance(group, distributed.ProcessGroup)
            self._group = group

    def all_max(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self._group is None:
            return number
        shared = torch.tensor(number)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self._group)
        return int(shared)

    def all_sum(self, numbers: list[float]) -> list[float]:
        """The sum of the processes' numbers, place by place."""
        if self._group is None:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(shared, group=self._group)
        return shared.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.all_max(int(flag)))

    def broadcast(self, number: float) -> float:
        """The first process' number."""
        if self._group is None:
            return number
        shared = torch.tensor(number, dtype=torch.float64)
        distributed.broadcast(shared, src=0, group=self._group)
        return float(shared)

    def gather(self, content: bytes) -> list[bytes]:
        """Every process' bytes, equally many, in the order of their numbers."""
        if self._group is None:
            return [content]
        own = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        everybody = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(everybody, own, group=self._group)
        return [bytes(one.tolist()) for one in everybody]

    def barrier(self) -> None:
        """Until all are here. Python goes on running, so that a signal that comes meanwhile is noted."""
        if self._group is None:
            return
        arrival = distributed.barrier(self._group, async_op=True)
        assert arrival is not None
        while not arrival.is_completed():
            time.sleep(0.01)
        arrival.wait()
