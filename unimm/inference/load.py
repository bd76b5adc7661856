"""From a path to an engine: a model folder's bundle, in the dtype and on the device that suit it."""

from pathlib import Path
from typing import Any

import torch

from unimm.checkpoints.bundle import ModelBundle
from unimm.inference.engine import Engine
from unimm.runtime.devices import choose_device, choose_dtype, keep_memory


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    adapter: str | Path | None = None,
    allow_code: bool = False,
    **engine: Any,
) -> Engine:
    """A model, ready to use. On a CPU the process keeps freed memory from then on (`unimm.runtime.devices.keep_memory`).

    Args:
        path: a model folder, a hub id such as "deepseek-community/Janus-Pro-1B", or "demo", the model that comes with unimm.
        device: "cuda", "cuda:1", "mps", "cpu"; default: the best that is here.
        dtype: "float32", "bfloat16" or "float16"; default: a sensible one for the model's size and the device.
        adapter: a folder or hub id of LoRA matrices that were made for this model, to merge into its weights in memory.
        allow_code: import the packages that the folder names parts of, if it names any (`unimm.runtime.plugins`).
        engine: `limits`, `weights` ("int8", "int4", "fp8") and `deterministic` of `Engine`.

    Raises:
        ValueError: there is no such model or adapter, it cannot be read, the adapter is another model's, the device is not
            here, or the folder needs code that is not allowed or not installed: one sentence says what to do.
    """
    where = choose_device(device)
    if where.type == "cpu":
        keep_memory()
    chosen = choose_dtype(dtype, where) if dtype is not None or where.type != "cpu" else None
    bundle = ModelBundle.load(path, where, chosen, adapter=adapter, allow_code=allow_code)
    if chosen is None:  # on a CPU the model's size decides
        size = sum(parameter.numel() for parameter in bundle.model.parameters())
        bundle.change_dtype(choose_dtype(None, where, size))
    return Engine(bundle, **engine)
