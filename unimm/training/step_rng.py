"""Chance of a step (dropout, replaced codes), keyed by seed, step and process: there is no generator's state to keep."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def keyed_rng(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """What draws from torch's generators in here draws the same whenever the key is the same; outside nothing has changed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 1024 + rank)
        yield
