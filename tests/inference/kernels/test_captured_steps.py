"""A captured step (a CUDA graph) runs the same operations over the same memory, whatever the host does meanwhile.

Shown without a GPU by fake tensors that say they are on one: a step that asked for a number on its way would raise, and what it
reads and writes is looked at, operation by operation. Only how results come to the host is left to `pytest -m gpu`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from fake_gpu import GPU, Looks, memory, moved
from test_decoder import PROMPTS, drawing
from test_engine_on_a_gpu import TRUNKS, make_engine, mix, settings
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

pytest.importorskip("triton")

import unimm.inference.decode.step as step_module
from unimm.bench.kernels import Recorder
from unimm.inference.decode.kv_cache import RowCache, RowCacheLayer
from unimm.inference.decode.paged_cache import PagedCache
from unimm.inference.decode.request import Job, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.step import DecodeStep
from unimm.inference.kernels.decode_kernels import CudaKernels, DecodeKernels
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.sequence import Expected

GROUPED = "qwen3, heads share keys"


class OnAGpu(Recorder):
    """Triton's kernels, never launched; what they would be given is looked at."""

    def __init__(self, looks: "Looks") -> None:
        super().__init__()
        self.device, self.is_captured, self.is_checked, self.looks = GPU, True, True, looks

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **blocks: Any) -> None:
        self.looks.read(kernel.__name__, [one for one in arguments if isinstance(one, torch.Tensor)])


@contextmanager
def steps_on_a_gpu() -> Iterator[Looks]:
    """In here there are fake tensors, and steps are made as captured ones are."""
    with mock.patch.object(step_module, "make_graphs", lambda model: object()), FakeTensorMode(), Looks() as looks:
        yield looks


def jobs_of(requests: list[Request], window: int) -> list[Job]:
    """In the middle of their decoding."""
    jobs = [Job(number, request, filled=[1, 2]) for number, request in enumerate(requests)]
    for job in jobs:
        job.guess(job.width(window) - 1)
    return jobs


def favoured(engine: Any) -> list[Request]:
    """A drawing that is to be like another, beside one that is not."""
    expected = Expected((1, 2, 3, 4), 2.0)
    return [
        Request(drawing(engine, PROMPTS[0], 14), Sampling(1.0, seed=1), 3.0, expected=expected),
        Request(drawing(engine, PROMPTS[1], 14), Sampling(1.0, seed=2)),
    ]


def known_memory(step: DecodeStep) -> tuple[set[int], set[int]]:
    """What stays where it is as long as a graph of a step may be used; and what of it a step may write to."""
    assert step.batch is not None
    batch, model = step.batch, step.model.model
    cache = step.cache
    buffers = [one for layer in cache.layers if isinstance(layer, RowCacheLayer) for one in (layer.keys, layer.values)]
    written = {memory(one) for one in [*batch.tensors, *buffers] if one is not None}
    windows = [] if batch.windows is None else [batch.windows.rows_P, batch.windows.starts]
    tables = [one for pair in getattr(step.model.kernels, "_numbers", {}).values() for one in pair]
    tables += [cache.table] if isinstance(cache, PagedCache) else []
    read = {memory(one) for one in [*model.parameters(), *model.buffers(), *windows, *tables]}
    return read | written, written


@pytest.mark.parametrize(
    ("name", "kernels", "window"),
    [("llama", "torch", 1), ("qwen2", "torch", 4), ("qwen2", "triton", 1), (GROUPED, "triton", 4)],
)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_step_is_the_same_operations_over_the_same_memory(name: str, kernels: str, window: int) -> None:
    engine = make_engine("cpu", TRUNKS[name])
    jobs = jobs_of([*mix(engine), *settings(engine), *favoured(engine)], window)
    rows = [row for job in jobs for row in job.rows(pad_id=0)]
    with steps_on_a_gpu() as looks, torch.no_grad():
        made: DecodeKernels = OnAGpu(looks) if kernels == "triton" else CudaKernels(GPU)
        model = DecodeModel(moved(engine.model, torch.bfloat16), None, made)
        num_layers = len(model.model.trunk.layers)
        cache = PagedCache(num_layers, len(rows), 150, GPU) if made.reads_blocks else RowCache(num_layers)
        step = DecodeStep(model, cache)
        step.set_rows(rows, [row.job.width(window) for row in rows])
        assert step.batch is not None
        slots = step._slots(150)
        step.cache.reserve(step.batch.num_rows, slots)
        step._compute(step.batch, slots)  # the first one makes what the next ones find
        looks.known, may_write = known_memory(step)
        before = set(looks.known)
        with looks.looking():
            step._compute(step.batch, slots)
        assert not looks.wrong, looks.wrong[:5]
        assert looks.written & before <= may_write


def test_what_a_graph_cannot_do_is_seen() -> None:
    with steps_on_a_gpu() as looks:
        x = torch.ones(3, device=GPU)
        looks.known = {memory(x)}
        with looks.looking():
            x + torch.tensor([1.0, 2.0, 3.0], device=GPU)
        assert looks.wrong
        with pytest.raises(DataDependentOutputException):
            bool(x.sum() > 0)
