"""What a run computes in: what `auto` chose is kept where it goes on, on whatever machine; the first process decides for all.

Only what a machine would emulate, many times slower than float32, is not kept.
"""

from pathlib import Path

import torch

from unimm.runtime.devices import choose_precision, cpu_has_bf16
from unimm.runtime.rank_sync import Ranks
from unimm.training.checkpoint import CHECKPOINTS, peek

NAMES = {"no": "float32", "bf16": "bf16"}


def settle_precision(asked: str, device: torch.device, folder: Path, ranks: Ranks) -> tuple[str, list[str]]:
    """The precision of a run in a folder, the same on all processes, and what a person should know about it.

    asked: one of `unimm.runtime.devices.PRECISIONS`.

    Returns:
        "no" or "bf16", and lines to say, on the first process.

    Raises:
        ValueError: asked for is none of them.
    """
    chosen, lines = ("no", []) if ranks.number and asked == "auto" else _choose(asked, device, folder)
    return list(NAMES)[int(ranks.first(list(NAMES).index(chosen)))], lines


def _choose(asked: str, device: torch.device, folder: Path) -> tuple[str, list[str]]:
    here = choose_precision(asked, device)
    if asked != "auto":
        return here, []
    kept = (peek(folder / CHECKPOINTS) or {}).get("precision")
    if kept is None:
        return here, [f"precision=auto takes {NAMES[here]} on this {device.type} device."]
    if kept == here:
        return here, []
    if kept == "bf16" and not has_bf16(device):
        return here, [f"{folder} began in bf16, which this machine could only emulate: it goes on in {NAMES[here]}."]
    change = f"precision={here} goes on in {NAMES[here]}, which is faster here"
    return kept, [f"{folder} goes on in {NAMES[kept]}, as it began on another machine; {change}."]


def has_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_bf16()
