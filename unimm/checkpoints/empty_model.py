"""Models without memory: modules whose parameters have shapes and dtypes alone, until a file's tensors are put in their place.

Buffers are made for real: what no file holds (rotary frequencies, masks) is then right by itself. Nothing is drawn at random
for parameters that hold nothing, which also spares the imports of the operators that would work out the shape of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Modules that this thread makes in here have their parameters on the device "meta"."""
    thread = get_ident()

    def emptied(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or get_ident() != thread:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(cast(Any, emptied))  # of all threads: hence the thread's number
    try:
        with _NothingIsWritten():
            yield
    finally:
        hook.remove()


class _NothingIsWritten(TorchFunctionMode):
    """What writes into a tensor without memory, such as an initialisation, is passed over."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # as torch.nn.init calls it
        name = getattr(func, "__name__", "")
        if isinstance(target, torch.Tensor) and target.is_meta and name.endswith("_") and not name.endswith("__"):
            return target
        return func(*args, **kwargs)
