"""What launches, wraps and casts a training: accelerate, on the device and in the precision that are asked for.

accelerate keeps its state for a whole process; a run that follows another in it gets a device and a precision of its own here.
What precision `auto` chose is kept where a run goes on, on whatever machine, and the first process decides for all; only what
a machine would emulate, many times slower than float32, is not kept.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, patch_environment

from unimm.runtime.devices import choose_precision, has_bf16, keep_memory
from unimm.runtime.environment import compute_threads, loader_processes, usable_cores
from unimm.runtime.rank_sync import Ranks
from unimm.training.checkpoint import CHECKPOINTS, peek

NAMES = {"no": "float32", "bf16": "bf16"}


def meet(device: torch.device) -> Ranks:
    """The processes of a run on such devices, as a launcher started them, before there is an accelerator."""
    state = PartialState(cpu=device.type == "cpu")
    return Ranks(state.process_index, state.num_processes)


def make_accelerator(device: torch.device, precision: str) -> Accelerator:
    """The accelerator of a run on this device: of several processes each has its own of that type."""
    # Frozen parts make parameters without gradients, and a rank's step may hold no image: neither may stop DDP.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    is_alone = not PartialState._shared_state or PartialState().num_processes == 1
    # An earlier run of this process may have had another precision, and another device.
    AcceleratorState._reset_state(reset_partial_state=is_alone)
    if device.type == "cpu":
        keep_memory()
    numbered = {} if device.index is None or "LOCAL_RANK" in os.environ else {"ACCELERATE_TORCH_DEVICE": str(device)}
    if numbered and device.type == "cuda":
        torch.cuda.set_device(device)
    with patch_environment(**numbered):
        # Without cpu=True, accelerate makes every process of a machine without GPUs a run of its own.
        return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[ddp])


def settle_precision(asked: str, device: torch.device, folder: Path, ranks: Ranks) -> tuple[str, list[str]]:
    """The precision of a run in a folder, the same on all processes, and what a person should know about it.

    asked: one of `unimm.runtime.devices.PRECISIONS`.

    Returns:
        "no" or "bf16", and lines to say, on the first process.

    Raises:
        ValueError: asked for is none of them.
    """
    chosen, lines = ("no", []) if ranks.number and asked == "auto" else _choose(asked, device, folder)
    return list(NAMES)[int(ranks.broadcast(list(NAMES).index(chosen)))], lines


def settle_threads(kept: list[int] | None, num_workers: int, device: torch.device) -> list[int] | None:
    """With how many threads a CPU computes beside so many data loading processes, and the cores that it has; None: with as many
    as it does now. kept: those of the run so far, which stay on a machine with as many cores: others round otherwise."""
    workers, cores = loader_processes(num_workers), usable_cores()
    chosen = compute_threads(workers) if workers and device.type == "cpu" else None
    if kept is not None and kept[1] == cores and device.type == "cpu":
        return kept
    return None if chosen is None else [chosen, cores]


@contextmanager
def computing_with(threads: list[int] | None) -> Iterator[None]:
    """In this context torch computes with these threads (`settle_threads`)."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads[0])
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


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
