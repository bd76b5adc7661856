"""Triton's kernels of a layer (`triton_decode`) as `DecodeKernels`: what is launched, over how many programs,
with which blocks.

Off by default: no GPU has shown them right and faster yet. So before they are used, every layer is compared with PyTorch's
operators, operation by operation, on its own weights, over random rows and windows (`layer_check`); where one differs, all
layers are PyTorch's, and a warning says which layer it was, and what of it.

Kernels find keys through the table of a `PagedCache`: a row costs the memory and the reading of its own length, beside however
long others.

Shapes: R rows, P new positions of all of them, W of one row at most, D trunk width, H query heads, G key-value heads, S slots
in use, d head width, F hidden width of the MLP, C splits of the keys.
"""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from unimm.inference.decode.kv_cache import BUCKET, RowCacheLayer
from unimm.inference.decode.paged_cache import PagedLayer
from unimm.inference.kernels import triton_decode as kernels
from unimm.inference.kernels.decode_kernels import CudaKernels, LayerKernels, TorchLayer
from unimm.inference.kernels.layer_check import TOLERANCE, Dequantized, layer_errors
from unimm.inference.kernels.quantized_linear import Linear, join, quantize_rows, share
from unimm.inference.kernels.step_inputs import StepInputs
from unimm.models.llama import LLAMA_SHAPED

logger = logging.getLogger(__name__)

BLOCK_S, BLOCK_K, BLOCK_N = 32, 128, 16
"""Slots, inputs and outputs that a program has in hand at a time."""

MOST_SPLITS = 8
"""Of a row's keys. Each is read again by every program of the output projection."""

LONG_SPLIT = 1024
"""Slots from which on a row's keys are split though other rows give processors work enough: all wait for the longest row."""

WAVES = 2
"""Programs of attention that a processor of the GPU is to have, where there are so many keys."""


def is_interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter, on a CPU."""
    return type(kernels.linear_kernel).__name__ == "InterpretedFunction"


class TritonKernels(CudaKernels):
    """A layer in five launches. `launches_a_layer`: those of a step through one, once it was
    checked. is_checked: whether layers have been compared with PyTorch's. has_failed: they differed.

    Raises:
        ValueError: the device has no Triton.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._check_device()
        self.is_captured = device.type == "cuda"
        self.launches_a_layer, self.is_checked, self.has_failed = 0, False, False
        self._numbers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        properties = torch.cuda.get_device_properties(device) if self.is_captured else None
        self.num_processors = properties.multi_processor_count if properties is not None else 4

    def _check_device(self) -> None:
        if self.device.type != "cuda" and not is_interpreted():
            raise ValueError(
                "Triton's kernels are for CUDA devices: leave out kernels='triton' (or set TRITON_INTERPRET=1 before Python "
                "starts, to try them on a CPU, very slowly)."
            )

    def check(self, weights: str | None, is_known: bool) -> None:
        if not is_known:
            raise ValueError(
                f"Triton's kernels are for trunks of {', '.join(LLAMA_SHAPED)} whose adapters are merged: leave out "
                "kernels='triton'."
            )
        if weights not in (None, "int8"):
            raise ValueError(f"Triton's kernels have int8 weights, not {weights}: take int8, or leave out kernels='triton'.")

    @property
    def reads_blocks(self) -> bool:
        return not self.has_failed

    def linear(self, layers: list[nn.Linear], weights: str | None = None) -> Linear:
        if weights is None or self.has_failed:
            return super().linear(layers, weights)
        return TritonLinear(self, layers, weights)

    def layer(self, layer: nn.Module, weights: str | None = None) -> LayerKernels:
        return TritonLayer(self, layer, weights)

    def layers(self, layers: Iterable[nn.Module], weights: str | None = None) -> list[LayerKernels]:
        """When these are the first ones, each has been compared with PyTorch's on its own weights; if one differs, all are
        PyTorch's."""
        layers = list(layers)
        if not self.is_checked:
            self.is_checked, why = True, self._why_not(layers, weights)
            if why:
                logger.warning("Triton's kernels are not used, but PyTorch's: %s.", why)
                self.has_failed = True
            else:
                logger.info("Triton's kernels: %d launches a layer, equal to PyTorch's.", self.launches_a_layer)
        return (CudaKernels(self.device) if self.has_failed else super()).layers(layers, weights)

    def _why_not(self, layers: list[Any], weights: str | None) -> str:
        """Why they cannot be used for such layers; nothing where they agree with PyTorch's."""
        dtype, activation = layers[0].self_attn.q_proj.weight.dtype, type(layers[0].mlp.act_fn).__name__
        if dtype not in TOLERANCE:
            return f"they are for {' and '.join(str(one).removeprefix('torch.') for one in TOLERANCE)}, not {dtype}"
        if activation not in ("SiLU", "SiLUActivation"):
            return f"their activation is SiLU, not {activation}"
        most = TOLERANCE[dtype]
        for number, layer in enumerate(layers):
            launches = self.launches
            try:
                reference = TorchLayer(Dequantized(self.device), layer, weights)
                errors = layer_errors(self.layer(layer, weights), reference, layer, [3, 1, 2], [70, 1, 200], number)
            except Exception as raised:  # whatever a compiler or a driver may raise
                said = str(raised).splitlines()[0] if str(raised) else ""
                return f"the first step of layer {number} failed ({type(raised).__name__}: {said})"
            if wrong := [f"{name} by {error:.2g}" for name, error in errors.items() if error > most]:
                return f"in layer {number} they differ from them in {', '.join(wrong)} of what is computed, more than {most:g}"
            self.launches_a_layer = self.launches - launches
        return ""

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **blocks: Any) -> None:
        """Launch a kernel, and count it."""
        self.launches += 1
        kernel[grid](*arguments, **blocks)

    def rows_of(self, step: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The row of each position, and where each row's positions begin (R + 1,)."""
        if step.windows is not None:
            return step.windows.rows_P, step.windows.starts
        count = step.num_rows
        if count not in self._numbers:
            self._numbers[count] = torch.arange(count, device=self.device), torch.arange(count + 1, device=self.device)
        return self._numbers[count]

    def splits(self, num_programs: int, used: int) -> tuple[int, int]:
        """Into how many parts keys are split, and slots of each: so that processors have work, and no part is too small or far
        too long."""
        wanted = min(MOST_SPLITS, max(-(-WAVES * self.num_processors // num_programs), -(-used // LONG_SPLIT)))
        chunk = -(-used // (BLOCK_S * wanted)) * BLOCK_S
        return -(-used // chunk), chunk


class TritonLinear:
    """weight (O, I) with a scale a row where it has fewer bits; x (P, I) -> (P, O), or residual + that."""

    def __init__(self, owner: TritonKernels, layers: list[nn.Linear], weights: str | None) -> None:
        self._owner = owner
        self.weight, self.bias = join(layers)
        self.scale = None
        if weights is not None:
            self.weight, self.scale = quantize_rows(self.weight)
        else:
            share(layers, self.weight, self.bias)
        self.num_outputs, self.num_inputs = self.weight.shape

    @property
    def arguments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weight, scale and bias as kernels take them: where there is none, something that is not read."""
        return self.weight, _or(self.scale, self.weight), _or(self.bias, self.weight)

    @property
    def flags(self) -> dict[str, bool]:
        """Which of these there are."""
        return {"SCALED": self.scale is not None, "BIASED": self.bias is not None}

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        x, count = x.contiguous(), len(x)
        out, block = x.new_empty(count, self.num_outputs), block_of(count)
        grid = (-(-self.num_outputs // BLOCK_N), -(-count // block))
        sizes = (count, self.num_outputs, self.num_inputs)
        blocks = {"BLOCK_P": block, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "ADDED": residual is not None}
        self._owner.launch(
            kernels.linear_kernel, grid, x, *self.arguments, _or(residual, x), out, *sizes, **blocks, **self.flags
        )
        return out


class Mixed(NamedTuple):
    """What each split of `chunk` slots has mixed (C, P, H, d), and the logarithms of its sums (C, P, H), for positions (P,)."""

    means: torch.Tensor
    logsums: torch.Tensor
    positions: torch.Tensor
    blocks_a_row: int
    chunk: int


class TritonLayer:
    """One decoder layer: five launches."""

    def __init__(self, owner: TritonKernels, layer: Any, weights: str | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._owner, self._norm1, self._norm2 = owner, layer.input_layernorm, layer.post_attention_layernorm
        self._qkv = TritonLinear(owner, [attention.q_proj, attention.k_proj, attention.v_proj], weights)
        self._out = TritonLinear(owner, [attention.o_proj], weights)
        self._gate_up = TritonLinear(owner, [mlp.gate_proj, mlp.up_proj], weights)
        self._down = TritonLinear(owner, [mlp.down_proj], weights)
        self._head_dim, self._scale = attention.head_dim, attention.scaling
        self._num_heads = attention.q_proj.out_features // self._head_dim
        self._num_kv_heads = attention.k_proj.out_features // self._head_dim
        self._q_norm, self._k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)

    def project(self, x_PD: torch.Tensor, step: StepInputs, store: RowCacheLayer) -> tuple[torch.Tensor, PagedLayer]:
        """Queries (P, H, d), and the blocks with the new keys and values."""
        assert isinstance(store, PagedLayer), "its kernels read blocks"
        owner, x_PD, count = self._owner, x_PD.contiguous(), len(x_PD)
        if not store.is_initialized:
            shape = x_PD.new_empty(1, self._num_kv_heads, 1, self._head_dim)
            store.lazy_initialization(shape, shape)
        store.grow()
        assert store.keys is not None and store.values is not None
        queries = x_PD.new_empty(count, self._num_heads, self._head_dim)
        table, (rows, _) = store.table, owner.rows_of(step)
        has_norms, block = self._q_norm is not None, block_of(count)
        gammas = [x_PD if norm is None else norm.weight for norm in (self._q_norm, self._k_norm)]
        half = self._head_dim // 2
        columns = power_of_two(half) if has_norms else BLOCK_N
        grid = (self._num_heads + 2 * self._num_kv_heads, -(-half // columns), -(-count // block))
        turns = (step.cos_P1d.contiguous(), step.sin_P1d.contiguous())
        sizes = (count, x_PD.shape[1], self._num_heads, self._num_kv_heads, table.shape[1])
        epsilons = (self._norm1.variance_epsilon, self._q_norm.variance_epsilon if self._q_norm is not None else 0.0)
        blocks = {"HEAD_DIM": self._head_dim, "BLOCK_P": block, "BLOCK_N": columns, "BLOCK_K": BLOCK_K}
        owner.launch(
            kernels.qkv_kernel, grid, x_PD, self._norm1.weight, *self._qkv.arguments, *turns, *gammas, queries, store.keys,
            store.values, table, rows, step.positions_P, *sizes, *epsilons, **blocks, SLOTS_A_BLOCK=BUCKET,
            NORMED=has_norms, **self._qkv.flags,
        )  # fmt: skip
        return queries, store

    def attend(self, projected: tuple[torch.Tensor, PagedLayer], step: StepInputs) -> "Mixed":
        """Each position over its row's blocks, as far as the row goes."""
        owner, (queries, store) = self._owner, projected
        assert store.keys is not None and store.values is not None
        count, group = len(queries), self._num_heads // self._num_kv_heads
        width = 1 if step.windows is None else step.windows.width
        block = min(64, max(16, power_of_two(width * group)))
        parts = -(-width * group // block)
        num_splits, chunk = owner.splits(step.num_rows * self._num_kv_heads * parts, step.used)
        dtype = queries.dtype if num_splits == 1 else torch.float32
        mixed = torch.empty(num_splits, *queries.shape, dtype=dtype, device=queries.device)
        logsums = queries.new_empty(num_splits, count, self._num_heads, dtype=torch.float32)
        table, (_, starts) = store.table, owner.rows_of(step)
        sizes = (count, self._num_heads, self._num_kv_heads, table.shape[1], chunk, self._scale)
        owner.launch(
            kernels.attend_kernel, (step.num_rows, self._num_kv_heads * parts, num_splits), queries, store.keys, store.values,
            table, starts, step.positions_P, mixed, logsums, *sizes, GROUP=group, NUM_PARTS=parts, BLOCK_Q=block,
            HEAD_DIM=self._head_dim, BLOCK_D=power_of_two(self._head_dim), BLOCK_S=BLOCK_S, SLOTS_A_BLOCK=BUCKET,
            SPLIT=num_splits > 1,
        )  # fmt: skip
        return Mixed(mixed, logsums, step.positions_P, table.shape[1], chunk)

    def add_output(self, x_PD: torch.Tensor, mixed: "Mixed") -> torch.Tensor:
        """(P, D)."""
        x_PD, out_PD, (count, width) = x_PD.contiguous(), torch.empty_like(x_PD), x_PD.shape
        block = block_of(count)
        self._owner.launch(
            kernels.output_kernel, (-(-width // BLOCK_N), -(-count // block)), *mixed[:3], *self._out.arguments, x_PD, out_PD,
            count, width, self._num_heads, mixed.blocks_a_row, mixed.chunk, SPLIT=len(mixed.means) > 1, SLOTS_A_BLOCK=BUCKET,
            HEAD_DIM=self._head_dim, BLOCK_D=power_of_two(self._head_dim), BLOCK_P=block, BLOCK_N=BLOCK_N, **self._out.flags,
        )  # fmt: skip
        return out_PD

    def gate(self, x_PD: torch.Tensor) -> torch.Tensor:
        """(P, F)."""
        (count, width), hidden_width, block = x_PD.shape, self._gate_up.num_outputs // 2, block_of(len(x_PD))
        gated_PF = x_PD.new_empty(count, hidden_width)
        self._owner.launch(
            kernels.gate_kernel, (-(-hidden_width // BLOCK_N), -(-count // block)), x_PD, self._norm2.weight,
            *self._gate_up.arguments, gated_PF, count, width, hidden_width, self._norm2.variance_epsilon,
            BLOCK_P=block, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, **self._gate_up.flags,
        )  # fmt: skip
        return gated_PF

    def add_down(self, x_PD: torch.Tensor, gated_PF: torch.Tensor) -> torch.Tensor:
        """(P, D)."""
        return self._down(gated_PF, x_PD)


def block_of(count: int) -> int:
    """Positions that a program has at a time: what matrix instructions take at least, and no more than registers hold."""
    return min(64, max(16, power_of_two(count)))


def power_of_two(count: int) -> int:
    """The next one, not below 16, which is what matrix instructions take."""
    return max(16, 1 << (count - 1).bit_length())


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if tensor is None else tensor
