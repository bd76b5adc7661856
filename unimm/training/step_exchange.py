"""The one exchange of a step: whatever the processes of a run have to agree on before it, in one sum of one small tensor.

It is made on the CPUs, so no device waits for it: with the step before still being computed, the slowest host is heard while
all devices work. Beside it a step exchanges gradients, and, where the model lies in shards, parameters and the gradient's norm.
"""

from typing import NamedTuple

from unimm.runtime.rank_sync import Ranks
from unimm.training.signals import SIGNALS

MOST_COUNTS = 32
"""So many sums an objective may have. A process that has no batch does not know their number, so all send as many."""


class Told(NamedTuple):
    """What a process says before a step.

    signal: that it was sent, or 0. is_lost: it cannot read what it would learn from. is_late: its clock wants a checkpoint.
    has_failed: it knows that the checkpoint that was begun could not be written. seconds: of training since the last exchange.
    counts: of its targets, by the order of the objective's names.
    """

    signal: int
    is_lost: bool
    is_late: bool
    has_failed: bool
    seconds: float
    counts: list[float]


def exchange(ranks: Ranks, own: Told) -> Told:
    """What the processes say together: a signal or a loss that came to any, the first one's clock, the sums of all counts.

    Raises:
        ValueError: there are more counts than may be.
    """
    if len(own.counts) > MOST_COUNTS:
        raise ValueError(f"An objective may have {MOST_COUNTS} sums, and this one has {len(own.counts)}.")
    is_first = ranks.number == 0
    flags = [own.is_lost, own.is_late, own.has_failed, *(own.signal == number for number in SIGNALS)]
    room = [0.0] * (MOST_COUNTS - len(own.counts))
    sums = ranks.all_sum([*map(float, flags), own.seconds if is_first else 0.0, *own.counts, *room])
    lost, late, failed, *signals = sums[: len(flags)]
    signal = max((int(number) for number, sent in zip(SIGNALS, signals, strict=True) if sent), default=0)
    seconds, *counts = sums[len(flags) :]
    return Told(signal, lost > 0, late > 0, failed > 0, seconds, counts[: len(own.counts)])
