"""What a step costs on a CPU, printed before the first one: hours without a line look like a hang.

It is predicted from the matrix products of a step and the speed of such a product on this machine.
"""

from collections.abc import Iterator

import torch

from unimm.runtime.devices import measure_speed
from unimm.training.flops import FlopCount

SLOW_SECONDS = 60.0
MANY_POSITIONS = 2**15
"""A step of so many is made for a GPU, as those of trainer=gpu are."""

CPU_ROWS, CPU_POSITIONS = 2, 1024
"""What is offered instead: images of a Janus still fit into such a row."""

REACHED = 0.5
"""Of the speed of one large product: about what a training reaches, which also attends, normalises and waits for memory."""

SLOWEST = 1.0
"""GFLOP/s that every machine has: what is quick at this speed is not worth a measurement."""


def warn_of_cost(
    count: FlopCount | None, num_positions: int, precision: str, has_muon: bool, device: torch.device
) -> Iterator[str]:
    """A line where a CPU will take long for a step, or where its step is one for a GPU; else none.

    Args:
        count: of the operations that the model asks for; None where there is no such count, and then no line.
        num_positions: of a step, on one process.
        precision: "no" or "bf16".
        has_muon: whether matrices are updated by Muon, as `trainer=cpu` does by default.
        device: where it trains.
    """
    if device.type != "cpu" or count is None:
        return
    gflops = 1e-9 * count.about(num_positions)
    if num_positions < MANY_POSITIONS and gflops < SLOW_SECONDS * SLOWEST * REACHED:
        return
    bf16 = precision == "bf16"
    speed = measure_speed(torch.bfloat16 if bf16 else torch.float32).product
    seconds = gflops / (REACHED * speed)
    if num_positions < MANY_POSITIONS and seconds < SLOW_SECONDS:
        return
    measured = f"predicted from {speed:,.0f} GFLOP/s in {'bfloat16' if bf16 else 'float32'}, measured just now"
    yield (
        f"WARNING: a step of {num_positions:,} positions takes this CPU about {_duration(seconds)} ({measured}); "
        f"{_instead(num_positions, seconds, has_muon)}"
    )


def _instead(num_positions: int, seconds: float, has_muon: bool) -> str:
    """What to do about it."""
    fewer = CPU_ROWS * CPU_POSITIONS
    if num_positions <= fewer:
        return "a GPU or a smaller model is quicker."
    words = f"trainer=cpu trainer.num_rows={CPU_ROWS} trainer.num_positions={CPU_POSITIONS}"
    words += "" if has_muon else " trainer.optimizer.muon_lr=null"
    return f"steps for a CPU: {words} (about {_duration(seconds * fewer / num_positions)} each)."


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 90 else f"{seconds / 60:,.0f} minutes"
