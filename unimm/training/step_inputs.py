"""What a step begins with: a batch, made ahead by other processes, and random numbers that are keyed by the step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, SequentialSampler, Subset

from unimm.runtime.environment import loader_processes
from unimm.training.signals import StopRequest, init_worker


class Ahead(NamedTuple):
    """What the next step learns from, or why there is none, and how long it was waited for."""

    batch: Any
    error: Exception | None
    seconds: float

    @classmethod
    def of(cls, batches: Iterator[Any], stop: StopRequest) -> "Ahead":
        """The next batch, or why it cannot be had; neither where a signal has come."""
        started, batch, error = time.monotonic(), None, None
        try:
            batch = None if stop.made else next(batches)
        except Exception as caught:  # of whatever kind, all processes leave together
            error = caught
        return cls(batch, error, time.monotonic() - started)


def loader_of(data: Any, step: int, num_workers: int, device: torch.device) -> DataLoader:
    """Batches from a step on, for a device; at most so many processes make them."""
    ahead = Subset(data, range(step, len(data)))
    workers = loader_processes(num_workers)
    return DataLoader(
        ahead,
        batch_size=None,
        sampler=SequentialSampler(ahead),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=init_worker,
        pin_memory=device.type == "cuda",
    )


@contextmanager
def keyed_rng(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """In this context torch's generators give the same numbers whenever the key is the same (dropout, replaced codes), so that
    checkpoints need no generator's state; outside of it nothing has changed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 1024 + rank)
        yield
