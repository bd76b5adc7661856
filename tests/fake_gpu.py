"""Tensors that say they are on a GPU and have no content, and a look at what is done with them: what would wait for the host
raises, and what a CUDA graph could not do again is noted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda")


class Looks(TorchDispatchMode):
    """Entered within a `FakeTensorMode`. wrong: reads of main memory, and of the device's where it is not `known` and was not
    made since. written: what was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.written: set[int] = set()
        self.wrong: list[str] = []
        self.is_on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor)]
        self.read(str(func), given)
        if self.is_on and func._schema.is_mutable:
            named = zip(func._schema.arguments, args, strict=False)
            self.written |= {memory(one) for what, one in named if what.alias_info and what.alias_info.is_write}
        made = func(*args, **(kwargs or {}))
        if self.is_on:
            self.known |= {memory(one) for one in tree_leaves(made) if isinstance(one, Tensor)}
        return made

    def read(self, name: str, given: list[Tensor]) -> None:
        """Look at what an operation is given."""
        if self.is_on:
            self.wrong += [f"{name} reads {one.device}" for one in given if one.device.type != "cuda"]
            self.wrong += [f"{name} reads what may move" for one in given if memory(one) not in self.known]

    @contextmanager
    def looking(self) -> Iterator[None]:
        """In here operations are looked at."""
        self.wrong, self.written, self.is_on = [], set(), True
        try:
            yield
        finally:
            self.is_on = False


def memory(tensor: Tensor) -> int:
    """What names the memory of a tensor as long as it lives."""
    return tensor.untyped_storage()._cdata


def moved(model: nn.Module, dtype: torch.dtype) -> Any:
    """A model whose tensors are fake ones of a GPU."""
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None:
                module._parameters[name] = nn.Parameter(torch.empty(one.shape, dtype=dtype, device=GPU), requires_grad=False)
        for name, one in module._buffers.items():
            if one is not None:
                module._buffers[name] = torch.empty(one.shape, dtype=one.dtype, device=GPU)
    return model
