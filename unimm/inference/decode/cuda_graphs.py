"""CUDA graphs of the decode step: recorded once for a shape, then launched as one.

A step of a 1B model is some hundred small kernels; launched one by one from Python they take longer than they run.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch

MOST = 256
"""Graphs that are kept; beyond, all are recorded again. Each holds a few MB."""


class Graphs:
    """Graphs of one function by the shape it is called for. Everything that it reads must stay at its place in memory."""

    def __init__(self, device: torch.device) -> None:
        # Of high priority, for these streams nobody else here is given: images are decoded on one of the others.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._pool: Any = None

    def run(self, shape: Hashable, work: Callable[[], Any], changed: list[torch.Tensor]) -> Any:
        """What `work()` gives, as tensors that the next call may overwrite. changed: what it writes to beside them."""
        if shape not in self._graphs:
            if len(self._graphs) >= MOST:
                self._graphs.clear()
                self._pool = None  # what was recorded is gone, and its memory with it
            self._graphs[shape] = self._record(work, changed)
        graph, result = self._graphs[shape]
        graph.replay()
        return result

    def _record(self, work: Callable[[], Any], changed: list[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, Any]:
        # Libraries make their workspaces at the first call, which must not be recorded; and that call counts for nothing.
        before = [tensor.clone() for tensor in changed]
        own = torch.cuda.current_stream()
        self._stream.wait_stream(own)
        with torch.cuda.stream(self._stream):
            work()
        own.wait_stream(self._stream)
        for tensor, content in zip(changed, before, strict=True):
            tensor.copy_(content)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be decoding images meanwhile; what it does is not recorded.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        self._pool = self._pool or graph.pool()
        return graph, result
