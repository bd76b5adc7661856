"""What launches, wraps and casts a training: accelerate, on the device that is asked for.

accelerate keeps its state for a whole process; a run that follows another in it gets a device and a precision of its own here.
"""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, patch_environment

from unimm.runtime.devices import keep_memory
from unimm.runtime.rank_sync import Ranks


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
        # Unless told that it is a CPU, accelerate makes every process of a machine without GPUs a run of its own.
        return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[ddp])
