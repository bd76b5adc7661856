"""Where a decode step goes: what each part of it must read and compute, how long that takes at best, and how long it takes.

The floor of a part is the roofline's (Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785): the larger of its
bytes by the speed of the memory and of its operations by the speed of products. Bytes are weights, once a step, and keys and
values that attention reads: of every row up to its own end, or, where rows share one width, up to that of the widest, padding
included. What is smaller is left out. Both speeds are probed here: memory by reading as many bytes
as a step does again and again, so that what fits in a processor's cache is read from there, and products by a large one. Calls
are operators of PyTorch that compute something, and kernels of our own; what one costs is probed by tiny additions, on a GPU
in a captured graph.

Measured is in the middle of the drawings or texts of `unimm bench generate`: the step as the engine makes it, and, on a CPU,
its parts, each run alone. There it is the time that the calling thread was given, which other processes do not lengthen by
taking theirs.

Shapes: P new positions of all rows, D trunk width, F hidden width of the MLP.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unimm.bench.generate import BYTES_A_WEIGHT, Trial, read_bandwidth, requests_of
from unimm.inference.decode.batch import DecodeBatch
from unimm.inference.decode.request import WINDOWED
from unimm.inference.decode.step import DecodeStep
from unimm.inference.engine import Engine
from unimm.inference.kernels.decode_kernels import TorchLayer
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.runtime.devices import measure_speed
from unimm.training.flops import peak_flops

REPEATS = 9
CALLS = 200
"""Tiny additions, to time one."""

PRODUCTS, TRUNK, HEADS, REST = "products of the trunk", "attention, norms", "heads, sampling", "embeddings, scheduling"


@dataclass
class Part:
    """Of a step: bytes and floating-point operations (flops) that it must read and compute, calls that it makes, seconds at
    best and measured. None: not counted, or not measured alone."""

    name: str
    bytes: float = 0.0
    flops: float = 0.0
    calls: int | None = None
    floor_seconds: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Speeds:
    """Of a device: bytes and flops a second, and seconds of a call, as probed; and the first two as its maker has them, where
    they are known."""

    bandwidth: float
    flops: float
    call_seconds: float
    stated_bandwidth: float | None
    stated_flops: float | None


def explain_step(engine: Engine, trial: Trial, window: int = 1) -> dict[str, Any]:
    """One step of an engine in the middle of a trial's drawings and texts, all of them at once.

    Returns:
        `rows`, `positions`, `length` (of a row, on average), `held` and `read` (positions whose keys and values rows have, and
        that attention reads), `cache_bytes` (that are reserved for them), `computed_by` (a class of `DecodeKernels`),
        `launches_a_layer` (of Triton's, else 0), `speeds` (`Speeds`), `parts` (`Part`s), `calls`, and in seconds `floor` (of
        all parts), `calls_seconds` and `step` (measured).
    """
    decoder = engine.decoder
    tickets = [decoder.submit(one) for one in requests_of(engine, trial, engine.image_tokenizer.num_codes, trial.num_tokens)]
    step_seconds = _advance_to_the_middle(engine, trial)
    with decoder.between_steps(), torch.inference_mode():
        running = decoder.running
        running.read_pending_step()
        step, rows = running.decode_step(), list(running.rows)
        widths = [row.job.width(window) if row.job.request.blank.kind in WINDOWED else 1 for row in rows]
        for row, width in zip(rows, widths, strict=True):
            row.job.guess(width - 1)
        step.set_rows(rows, widths)
        slots = max(row.length + width for row, width in zip(rows, widths, strict=True))
        num_rows, num_slots = step.rounded(len(rows), slots)
        lengths = [row.length for row in rows]
        read = step.cache.read_lengths(lengths, num_rows, num_slots)
        padded = step.size.of_widths(widths, window, num_rows)
        parts = _model_parts(engine, step, read, padded, trial)
        speeds = probe(engine.device, next(engine.model.parameters()).dtype, sum(part.bytes for part in parts), step)
        _measure_parts(parts, step, num_slots, step_seconds)
        cache_bytes = step.cache.num_bytes
    for part in parts:
        part.floor_seconds = max(part.bytes / speeds.bandwidth, part.flops / speeds.flops)
    for ticket in tickets:
        decoder.abort(ticket)
    calls = sum(part.calls or 0 for part in parts)
    return {
        "rows": len(rows),
        "positions": sum(widths),
        "length": statistics.mean(lengths),
        "held": sum(lengths),
        "read": sum(read),
        "cache_bytes": cache_bytes,
        "computed_by": type(step.model.kernels).__name__,
        "launches_a_layer": getattr(step.model.kernels, "launches_a_layer", 0),
        "speeds": asdict(speeds),
        "parts": [asdict(part) for part in parts],
        "calls": calls,
        "floor": sum(part.floor_seconds for part in parts),
        "calls_seconds": calls * speeds.call_seconds,
        "step": step_seconds,
    }


def clock_of(device: torch.device) -> Callable[[], float]:
    """Of seconds that a device takes."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


def _advance_to_the_middle(engine: Engine, trial: Trial) -> float:
    """Decode until half of it is there; returns the median seconds of the last steps."""
    decoder, clock = engine.decoder, clock_of(engine.device)
    half = (engine.image_tokenizer.num_codes if trial.num_images else trial.num_tokens) // 2
    seconds: list[float] = []
    while not (jobs := decoder.running.jobs) or max(len(job.filled) for job in jobs) < half:
        started = clock()
        decoder.step()
        seconds.append(clock() - started)
    return statistics.median(seconds[-max(1, len(seconds) // 2) :])


def _model_parts(engine: Engine, step: DecodeStep, read: list[int], widths: list[int], trial: Trial) -> list[Part]:
    """What the parts read and compute; of each row so many keys, for so many positions."""
    trunk, batch = engine.model.config.trunk_config(), step.batch
    assert batch is not None
    size = next(engine.model.parameters()).element_size()
    num_weights = sum(one.numel() for one in engine.model.trunk.layers.parameters())
    head_dim = getattr(trunk, "head_dim", None) or trunk.hidden_size // trunk.num_attention_heads
    products = Part(PRODUCTS, num_weights * BYTES_A_WEIGHT.get(trial.weights, size), 2.0 * num_weights * sum(widths))
    seen = sum(length * width for length, width in zip(read, widths, strict=False))  # padding may read nothing
    attention = Part(TRUNK, float(step.cache.bytes_a_position * sum(read)))
    attention.flops = 4.0 * trunk.num_hidden_layers * trunk.num_attention_heads * head_dim * seen
    heads = Part(HEADS)
    for kind, group in batch.groups.items():
        count = sum(one.numel() for one in engine.model.vocabulary_ports[kind].head.parameters())
        heads.bytes += count * (1.0 if trial.weights == "int8" else size)
        heads.flops += 2.0 * count * len(group.reads)
    return [products, attention, heads, Part(REST)]


def _measure_parts(parts: list[Part], step: DecodeStep, slots: int, step_seconds: float) -> None:
    """Count calls of the parts, and time them on a CPU: elsewhere they are launched, or captured as one."""
    model, cache, batch = step.model, step.cache, step.batch
    assert batch is not None
    x_PD = batch.embed(model)
    hidden_PD = model.advance(x_PD, batch.positions, slots, cache, batch.windows)

    def trunk() -> torch.Tensor:
        return model.advance(x_PD, batch.positions, slots, cache, batch.windows)

    def heads() -> Any:
        return batch.choose(model, hidden_PD)

    products, attention, choosing, rest = parts
    choosing.calls, rest.calls = count_calls(heads, model), count_calls(lambda: batch.embed(model), model)
    attention.calls = count_calls(trunk, model)
    multiply = _products(model, x_PD)
    if multiply is not None:
        products.calls = count_calls(multiply, model)
        attention.calls -= products.calls
    step.refresh()
    if x_PD.device.type != "cpu":
        return
    whole, choosing.seconds = _seconds(trunk, batch), _seconds(heads, batch)
    if multiply is not None:
        products.seconds = _seconds(multiply, batch)
        attention.seconds = whole - products.seconds
        rest.seconds = step_seconds - whole - choosing.seconds
    else:
        attention.seconds, rest.seconds = whole, step_seconds - whole - choosing.seconds


def _products(model: DecodeModel, x_PD: torch.Tensor) -> Callable[[], None] | None:
    """The trunk's products alone; None where they are part of other operations."""
    layers = [one.kernels for one in model.layers or ()]
    if not layers or not all(isinstance(one, TorchLayer) for one in layers):
        return None
    first: Any = layers[0]
    mixed = x_PD.new_ones(len(x_PD), first.num_heads * first.head_dim)
    gated_PF = x_PD.new_ones(len(x_PD), first.gate_up(x_PD).shape[1] // 2)

    def run() -> None:
        for layer in layers:
            assert isinstance(layer, TorchLayer)
            for multiply, x in ((layer.qkv, x_PD), (layer.out, mixed), (layer.gate_up, x_PD), (layer.down, gated_PF)):
                multiply(x)

    return run


def _seconds(work: Callable[[], Any], batch: DecodeBatch) -> float:
    """The median of a few runs over the same positions."""
    times = []
    for _ in range(REPEATS):
        batch.refresh()
        started = time.thread_time()  # parts are timed alone on devices that compute in this thread
        work()
        times.append(time.thread_time() - started)
    batch.refresh()
    return statistics.median(times)


class CallCounter(TorchDispatchMode):
    """Counts operators but those that only look at a tensor in another way, or allocate one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or "empty" in name or name in ("detach", "_unsafe_view"))
        return func(*args, **(kwargs or {}))


def count_calls(work: Callable[[], Any], model: DecodeModel) -> int:
    """Calls that some work of a decode model makes."""
    before = model.num_calls
    with CallCounter() as counter:
        work()
    return counter.count + model.num_calls - before


def probe(device: torch.device, dtype: torch.dtype, num_bytes: float, step: DecodeStep) -> Speeds:
    """How fast a device is at steps that read so many bytes."""
    bandwidth = read_bandwidth(device, max(int(num_bytes), 2**20), clock_of(device))
    stated = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        clock, width = getattr(properties, "memory_clock_rate", 0), getattr(properties, "memory_bus_width", 0)
        stated = 2e3 * clock * width / 8 or None  # kHz and bits; memory of GPUs is read twice a cycle
    seconds = _call_seconds(device, step.model.kernels.is_captured)
    return Speeds(bandwidth, 1e9 * measure_speed(dtype, device).product, seconds, stated, peak_flops(device))


def _call_seconds(device: torch.device, is_captured: bool) -> float:
    x, clock = torch.zeros(64, device=device), clock_of(device)

    def add() -> None:
        for _ in range(CALLS):
            x.add_(1.0)

    def settle() -> None:
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()

    add()
    settle()
    run = add
    if is_captured and device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            add()
        run = graph.replay
    times = []
    for _ in range(REPEATS):
        started = clock()
        run()
        settle()
        times.append((clock() - started) / CALLS)
    return min(times)
