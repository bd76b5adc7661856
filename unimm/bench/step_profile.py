"""Where the time of a training step goes: products, attention, exchange, optimizer, waiting for input, losses, and the rest.

PyTorch's profiler records what runs. A piece of work counts where it was asked for: scopes are put around the parts of a step
(`scoped`), and what the backward pass computes counts where its forward operation did, which PyTorch numbers alike. Products of
weights count as such also inside attention, not inside the heads, whose products are most of the loss. In compiled layers there
are no scopes: there the names of operations and kernels decide, and what is fused with something else is "other".

On a CPU the shares are of the wall time of the steps, on a GPU of the same time by what its kernels take; "other" is then also
what it does not compute. The profiler itself takes time, more of it where operations are small: compare shares, not seconds.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from unimm.models import attention, llama
from unimm.models.unified import UnifiedModel
from unimm.training import loop
from unimm.training.optimizers import Optimizers
from unimm.training.step_inputs import Ahead

CATEGORIES: tuple[str, ...] = ("products", "attention", "exchange", "optimizer", "input wait", "loss and heads", "other")
SCOPE = "unimm: "
BACKWARD = "autograd::engine::evaluate_function: "

_NAMES = (
    ("exchange", re.compile(r"^(gloo|nccl|c10d)|_c10d_functional|ncclDev|all_?reduce|all_?gather|reduce_?scatter", re.I)),
    ("attention", re.compile(r"_ByKernel|scaled_dot_product|flex_attention|flash|fmha|efficient_attention", re.I)),
    ("optimizer", re.compile(r"_fused_adam|multi_tensor_apply|^Optimizer\.step")),
    (
        "products",
        re.compile(r"^aten::(mm|addmm|bmm|baddbmm|linear|matmul|_?convolution|mkldnn_\w+)|gemm|cutlass|nvjet"),
    ),
)


class StepProfile:
    """Records some steps of a run.

    model: the one that is trained. is_compiled: whether its layers are.
    """

    def __init__(self, model: UnifiedModel, is_compiled: bool, device: torch.device) -> None:
        self._device = device
        self._profile: Any = None
        self._scopes = ExitStack()
        self._seconds = 0.0
        for owner, name, category in (
            (loop, "exchange", "exchange"),
            (Ahead, "of", "input wait"),
            (Optimizers, "step", "optimizer"),
            (torch.nn.utils, "clip_grad_norm_", "optimizer"),
        ):
            self._scopes.enter_context(mock.patch.object(owner, name, scoped(category, getattr(owner, name))))
        for port in model.predicted_ports.values():
            self._scopes.enter_context(mock.patch.object(port, "loss", scoped("loss and heads", port.loss)))
        for module in () if is_compiled else (attention, llama):
            function = scoped("attention", module.attend_within_documents)
            self._scopes.enter_context(mock.patch.object(module, "attend_within_documents", function))
        compiled = {id(module) for layer in model.trunk.layers for module in layer.modules()} if is_compiled else set()
        for module in model.modules():
            if type(module).__name__.endswith("Attention") and id(module) not in compiled:
                self._scopes.enter_context(mock.patch.object(module, "forward", scoped("attention", module.forward)))

    def start(self) -> None:
        """Record from here on."""
        on_gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        self._wait()
        self._profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        self._profile.start()
        self._seconds = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Record no more. Returns the share of each of `CATEGORIES`, which add up to 1."""
        self._wait()
        self._seconds = time.perf_counter() - self._seconds
        self._profile.stop()
        self._scopes.close()
        return shares(self._profile.events(), self._seconds, self._device.type == "cuda")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def scoped(category: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose work counts in a category."""

    def call(*words: Any, **more: Any) -> Any:
        with record_function(SCOPE + category):
            return function(*words, **more)

    return call


def shares(events: Any, seconds: float, on_gpu: bool) -> dict[str, float]:
    """The share of each category in so many seconds, by what the profiler has recorded.

    on_gpu: of what kernels take, but for waiting for input, which is the host's.
    """
    forward = _by_sequence(events)
    spent = dict.fromkeys(CATEGORIES, 0.0)
    for event in events:
        category = _category(event, forward)
        is_wait = category == "input wait"
        micros = event.self_device_time_total if on_gpu and not is_wait else event.self_cpu_time_total
        spent[category] += micros * 1e-6
    total = max(seconds, sum(spent.values()))
    spent["other"] += total - sum(spent.values())
    return {category: one / total for category, one in spent.items()}


def _by_sequence(events: Any) -> dict[int, Any]:
    """The forward operation of each number: the last that has it is the one that a backward pass follows."""
    found: dict[int, Any] = {}
    for event in sorted(events, key=lambda one: one.time_range.start):
        if event.sequence_nr >= 0 and not any(one.name.startswith(BACKWARD) for one in _upwards(event)):
            found[event.sequence_nr] = event
    return found


def _category(event: Any, forward: dict[int, Any]) -> str:
    by_name, is_in_layer = None, False
    for one in _upwards(event):
        if one.name.startswith(SCOPE):
            scope = one.name.removeprefix(SCOPE)
            return "products" if scope == "attention" and is_in_layer else scope
        if one.name.startswith(BACKWARD) and one.sequence_nr in forward:
            found = _category(forward[one.sequence_nr], {})
            return by_name or found if found == "other" else found
        is_in_layer |= one.name == "aten::linear"  # attention on a CPU is plain products, too
        by_name = by_name or _named(one.name)
    return by_name or "other"


def _named(name: str) -> str | None:
    return next((category for category, pattern in _NAMES if pattern.search(name)), None)


def _upwards(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent
