"""Whether Triton's kernels of a decode step are right, and what they take: launches, errors, registers and shared memory.

On a GPU they run there; without one, Triton's interpreter runs them on the CPU, which shows what they compute and nothing of
how fast. Compiled for a GPU they can be without one, too: Triton brings NVIDIA's assembler.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from triton import knobs  # pyright: ignore[reportAttributeAccessIssue]
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unimm.inference.kernels.decode_kernels import TorchLayer
from unimm.inference.kernels.layer_check import TOLERANCE, Dequantized, layer_errors
from unimm.inference.kernels.triton_layers import TritonKernels, TritonLayer
from unimm.models.llama import DecoderLayer

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
NAMES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int8: "*i8", torch.int64: "*i64"}


@dataclass(frozen=True)
class Shape:
    """A layer and a step. widths: new positions of each row; lengths: of each row before."""

    trunk: str
    width: int
    hidden_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    widths: tuple[int, ...]
    lengths: tuple[int, ...]
    dtype: str = "bfloat16"
    weights: str | None = None

    def layer(self, device: torch.device, seed: int = 0) -> DecoderLayer:
        """One of these sizes, whose norms and biases are random, too."""
        torch.manual_seed(seed)
        config = CONFIGS[self.trunk](
            hidden_size=self.width,
            intermediate_size=self.hidden_width,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            num_hidden_layers=1,
            vocab_size=8,
        )
        layer = DecoderLayer(config, 0)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return layer.to(device, getattr(torch, self.dtype)).requires_grad_(False)


def random_shape(number: int, is_large: bool) -> Shape:
    """Of a number always the same. is_large: as models have them; else toys, which an interpreter can run."""
    noise = np.random.default_rng(number)

    def among(*values: Any) -> Any:
        return values[int(noise.integers(len(values)))]

    num_kv_heads, group = (among(1, 2, 4, 8), among(1, 2, 4, 7)) if is_large else (among(1, 2), among(1, 2, 3))
    most, rows = (700, among(1, 2, 8, 33)) if is_large else (150, among(1, 1, 2))
    window = among(1, 1, 2, 16) if is_large else among(1, 2, 5)
    return Shape(
        trunk=among(*CONFIGS),
        width=num_kv_heads * group * (among(64, 100, 128) if is_large else among(8, 14, 33)),
        hidden_width=among(512, 1408, 5632) if is_large else among(16, 40),
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        head_dim=among(64, 80, 128) if is_large else among(8, 16, 24),
        widths=tuple(int(noise.integers(1, window + 1)) for _ in range(rows)),
        lengths=tuple(int(noise.integers(most)) for _ in range(rows)),
        dtype=among("bfloat16", "float32"),
        weights=among(None, "int8"),
    )


def check_shapes(count: int, device: torch.device, begin: int = 0) -> list[dict[str, Any]]:
    """Layers and steps of random shapes by Triton and by PyTorch: `errors` of each operation (relative), `most` of one,
    `launches` of the layer."""
    found = []
    for number in range(begin, begin + count):
        shape = random_shape(number, device.type == "cuda")
        layer, kernels = shape.layer(device, number), TritonKernels(device)
        reference = TorchLayer(Dequantized(device), layer, shape.weights)
        own = TritonLayer(kernels, layer, shape.weights)
        errors = layer_errors(own, reference, layer, list(shape.widths), list(shape.lengths), number)
        most = TOLERANCE[getattr(torch, shape.dtype)]
        found.append({"shape": asdict(shape), "errors": errors, "most": most, "launches": kernels.launches})
    return found


class Recorder(TritonKernels):
    """Notes what would be launched, and launches nothing: no GPU is needed."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.noted: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def _check_device(self) -> None:
        pass

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **blocks: Any) -> None:
        self.noted.append((kernel, arguments, blocks))


def compile_ahead(shape: Shape, capability: int = 90) -> list[dict[str, Any]]:
    """Compile the kernels of one layer for NVIDIA's GPUs of a compute capability, without one: for each its `kernel`,
    `registers` and `spilled` bytes a thread, and bytes of `shared` memory a program."""
    recorder, layer = Recorder(), shape.layer(torch.device("cpu"))
    reference = TorchLayer(Dequantized(recorder.device), layer, shape.weights)
    own = TritonLayer(recorder, layer, shape.weights)
    layer_errors(own, reference, layer, list(shape.widths), list(shape.lengths))
    first: dict[str, Any] = {}
    for noted in recorder.noted:
        first.setdefault(noted[0].__name__, noted)
    return [_compile(kernel, arguments, blocks, capability) for kernel, arguments, blocks in first.values()]


def _compile(kernel: Any, arguments: tuple[Any, ...], blocks: dict[str, Any], capability: int) -> dict[str, Any]:
    named = dict(zip(kernel.arg_names, arguments, strict=False))
    signature = {name: _kind(value) for name, value in named.items()} | dict.fromkeys(blocks, "constexpr")
    if "queries" in named:  # a GPU's cache is in the model's dtype
        signature |= dict.fromkeys(("keys", "values"), signature["queries"])
    # Buffers begin at multiples of 16 bytes, and so do the rows of weights of most models: loads are wide.
    whole = [
        name for name, value in named.items() if signature[name][0] == "*" or (signature[name] == "i32" and value % 16 == 0)
    ]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in whole}
    source = ASTSource(fn=kernel, signature=signature, constexprs=blocks, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        dump = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        told = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|LOCAL|STACK):(\d+)", told)}
    return {
        "kernel": kernel.__name__,
        "registers": used["REG"],
        "spilled": max(used.get("LOCAL", 0), used.get("STACK", 0)),
        "shared": compiled.metadata.shared,
    }


def _kind(value: Any) -> str:
    return NAMES[value.dtype] if isinstance(value, torch.Tensor) else "i32" if isinstance(value, int) else "fp32"


EXAMPLE = Shape("llama", 256, 512, 2, 2, 128, (1, 1), (600, 600))
"""Blocks of Janus-Pro's heads; how wide the trunk is changes no register."""


def main() -> None:
    """`check COUNT BEGIN DEVICE` or `compile WEIGHTS CAPABILITY`; JSON comes out."""
    what, first, second, *rest = sys.argv[1:]
    if what == "check":
        print(json.dumps(check_shapes(int(first), torch.device(rest[0]), int(second))))
    else:
        weights = None if first == "none" else first
        print(json.dumps(compile_ahead(Shape(**{**asdict(EXAMPLE), "weights": weights}), int(second))))


if __name__ == "__main__":
    main()
