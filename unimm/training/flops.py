"""How much a step computes, by formula: what MFU, the share of a device's peak that a training uses, is made of.

Counted is what the model asks for: products of weights at real positions (of heads, and of the last layer behind its keys and
values, where something is learned), attention of each document to its own past, the vision tower; each once forward, once more
for the gradient of what goes in where something before it is trained, once more for gradients of weights that are. Not counted:
padding, what rounds up the number of learned positions, pairs that a mask hides, activations computed again, everything that
is no product of matrices. A multiplication with its addition is two.

From that count and the speed of one product on this machine a CPU's seconds a step are predicted, and printed before the first
one: hours without a line look like a hang.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from unimm.batch import Batch
from unimm.models.attention import document_sizes
from unimm.models.unified import UnifiedModel
from unimm.runtime.devices import measure_speed

PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
}
"""Dense products a second with 16-bit numbers, by a piece of the name (the first that fits), from NVIDIA's data sheets."""


def peak_flops(device: torch.device) -> float | None:
    """The most that a device computes in a second with 16-bit numbers; None where it is not known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """The same of a GPU by its name."""
    return next((peak for piece, peak in PEAKS.items() if piece in name), None)


class _Part(NamedTuple):
    """The products of a part, for one vector that goes through it.

    flops: forward and backward. is_followed: whether gradients pass through what comes out of it.
    """

    flops: int
    is_followed: bool

    @property
    def times(self) -> int:
        """How often what has no weights (attention) is computed, forward and backward."""
        return 1 + 2 * self.is_followed


class FlopCount:
    """The FLOPs of batches, for what is trained of a model now. Layers with a window of attention count as if without."""

    def __init__(self, model: UnifiedModel) -> None:
        self.model = model
        self.paths = {kind: _path(port.path()) for kind, port in model.ports.items()}
        is_followed = any(part.is_followed for parts in self.paths.values() for part in parts[-1:])
        self.trunk = _part(model.trunk, is_followed)
        self.heads = {kind: _path(port.head_path(), self.trunk.is_followed) for kind, port in model.predicted_ports.items()}
        trunk = model.config.trunk_config()
        width = getattr(trunk, "head_dim", None) or trunk.hidden_size // trunk.num_attention_heads
        # Scores and their sums, each 2 operations a pair and dimension, of one layer.
        self.a_pair = 4 * trunk.num_attention_heads * width * self.trunk.times
        self.num_layers = trunk.num_hidden_layers
        last = model.trunk.layers[-1]
        behind = [last.self_attn.o_proj, last.mlp] if model.skips_unused_positions else []
        self.behind = _part(nn.ModuleList(behind), self.trunk.is_followed)

    def about(self, num_positions: int) -> int:
        """Forward and backward pass of so many positions through trunk and the largest head, before their batch is made:
        without attention and images."""
        return num_positions * (self.trunk.flops + max(sum(part.flops for part in head) for head in self.heads.values()))

    def of(self, batch: Batch) -> int:
        """Forward and backward pass of a batch that still lies in main memory."""
        sizes = document_sizes(batch.documents)
        sizes = sizes[sizes > 0]
        is_read = {kind: port.is_read(batch) for kind, port in self.model.predicted_ports.items()}
        any_BT = torch.stack(list(is_read.values())).any(0)
        pairs = int((sizes * (sizes + 1) // 2).sum())
        last_pairs = int((batch.positions + 1)[any_BT].sum()) if self.behind.flops else pairs
        count = int(sizes.sum()) * (self.trunk.flops - self.behind.flops) + int(any_BT.sum()) * self.behind.flops
        count += ((self.num_layers - 1) * pairs + last_pairs) * self.a_pair
        for kind, port in self.model.ports.items():
            for part, passes in zip(self.paths[kind], port.passes(batch), strict=True):
                count += passes.vectors * part.flops + passes.attention * part.times
        return count + sum(int(is_read[kind].sum()) * part.flops for kind, head in self.heads.items() for part in head)


def _path(modules: list[nn.Module], is_followed: bool = False) -> list[_Part]:
    """The parts that something goes through one after another. is_followed: whether gradients pass through what goes in."""
    parts: list[_Part] = []
    for module in modules:
        parts.append(_part(module, is_followed))
        is_followed = parts[-1].is_followed
    return parts


def _part(part: nn.Module, is_followed: bool = False) -> _Part:
    """is_followed: whether gradients pass through what goes into it."""
    flops = 0
    for module in part.modules():
        learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Conv2d):
            flops += 2 * module.weight.numel() * (1 + is_followed + module.weight.requires_grad)
        is_followed |= learns
    return _Part(flops, is_followed)


SLOW_SECONDS = 60.0
MANY_POSITIONS = 2**15
"""A step of so many is made for a GPU, as those of trainer=gpu are."""

CPU_ROWS, CPU_POSITIONS = 2, 1024
"""What is offered instead: images of a Janus still fit into such a row."""

REACHED = 0.5
"""Of the speed of one large product: about what a training reaches, which also attends, normalises and waits for memory."""

SLOWEST = 1.0
"""GFLOP/s that every machine has: what is quick at this speed is not worth a measurement."""


def warn_of_cost(
    count: FlopCount | None, num_positions: int, precision: str, has_muon: bool, device: torch.device
) -> Iterator[str]:
    """A line where a CPU will take long for a step, or where its step is one for a GPU; else none.

    Args:
        count: of the operations that the model asks for; None where there is no such count, and then no line.
        num_positions: of a step, on one process.
        precision: "no" or "bf16".
        has_muon: whether matrices are updated by Muon, as `trainer=cpu` does by default.
        device: where it trains.
    """
    if device.type != "cpu" or count is None:
        return
    gflops = 1e-9 * count.about(num_positions)
    if num_positions < MANY_POSITIONS and gflops < SLOW_SECONDS * SLOWEST * REACHED:
        return
    speed, measured = _measured(precision, "product")
    seconds = gflops / (REACHED * speed)
    if num_positions < MANY_POSITIONS and seconds < SLOW_SECONDS:
        return
    yield (
        f"WARNING: a step of {num_positions:,} positions takes this CPU about {_duration(seconds)} ({measured}); "
        f"{_instead(num_positions, seconds, has_muon)}"
    )


def warn_of_image_cost(flops: int, num_images: int, image_size: int, precision: str, device: torch.device) -> Iterator[str]:
    """As `warn_of_cost`, for a step of an image tokenizer. flops: of a step of so many images, on one process."""
    gflops = 1e-9 * flops
    if device.type != "cpu" or gflops < SLOW_SECONDS * SLOWEST * REACHED:
        return
    speed, measured = _measured(precision, "convolution")
    seconds = gflops / (REACHED * speed)
    if seconds < SLOW_SECONDS:
        return
    fewer = max(1, round(num_images * SLOW_SECONDS / seconds))
    few = f"images.batch_size={fewer} (about {_duration(seconds * fewer / num_images)} a step) or "
    instead = f"{few if fewer < num_images else ''}tokenizer=tiny, for images of 64 x 64; a GPU is quicker."
    images = f"{num_images:,} images of {image_size} x {image_size}"
    yield f"WARNING: a step of {images} takes this CPU about {_duration(seconds)} ({measured}); steps for a CPU: {instead}"


@torch.no_grad()
def convolution_flops(network: nn.Module, x_NCHW: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Operations of a network's convolutions in a forward pass, and what it gives."""
    flops = 0

    def count(layer: nn.Module, _: Any, out_NCHW: torch.Tensor) -> None:
        nonlocal flops
        assert isinstance(layer, nn.Conv2d)
        flops += 2 * layer.weight.numel() * out_NCHW.numel() // out_NCHW.shape[1]

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    was_training = network.training
    try:
        out_NCHW = network.eval()(x_NCHW)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return flops, out_NCHW


def _measured(precision: str, what: str) -> tuple[float, str]:
    """GFLOP/s of a product or a convolution on this CPU, and how that is said."""
    bf16 = precision == "bf16"
    speed = getattr(measure_speed(torch.bfloat16 if bf16 else torch.float32), what)
    return speed, f"predicted from {speed:,.0f} GFLOP/s in {'bfloat16' if bf16 else 'float32'}, measured just now"


def _instead(num_positions: int, seconds: float, has_muon: bool) -> str:
    """What to do about it."""
    fewer = CPU_ROWS * CPU_POSITIONS
    if num_positions <= fewer:
        return "a GPU or a smaller model is quicker."
    words = f"trainer=cpu trainer.num_rows={CPU_ROWS} trainer.num_positions={CPU_POSITIONS}"
    words += "" if has_muon else " trainer.optimizer.muon_lr=null"
    return f"steps for a CPU: {words} (about {_duration(seconds * fewer / num_positions)} each)."


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 90 else f"{seconds / 60:,.0f} minutes"
