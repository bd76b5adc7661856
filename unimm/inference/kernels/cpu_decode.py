"""A decode step of a Llama-shaped trunk on a CPU: PyTorch's products of packed weights, and between them a few calls of our own
C++ (cpu_decode.cpp) in place of some forty operations a layer, which take longer to start than to run.

Where weights are bfloat16, or of fewer bits, so is what products read and give; all between them is float32, what layers add up
included.

It reads keys and values row by row, each over its own length (`RaggedCache`): no mask, and no row waits for a longer one. Where
there is no compiler, or the model is of another kind, `llama_decode` does all of it in PyTorch.

Shapes: P new positions, D trunk width, H heads, G heads of keys, d head width, F inner width.
"""

import ctypes
from typing import Any

import torch

from unimm.inference.decode.ragged_cache import RaggedCache
from unimm.inference.kernels.decode_kernels import TorchLayer
from unimm.models.llama import is_llama_shaped
from unimm.models.lora import adapted_layers
from unimm.models.unified import UnifiedModel
from unimm.native import library_beside

PARALLEL = 2**21
"""Multiplications of a layer's attention from which on it is worth more than one thread."""

SILU = ("SiLU", "SiLUActivation")
"""Activations that are the kernel's."""


class _Step(ctypes.Structure):
    """As the kernel declares it."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("num_positions", "num_heads", "num_key_heads", "width")),
        *((name, ctypes.c_long) for name in ("num_layers", "layer", "num_threads")),
        *((name, ctypes.c_float) for name in ("scale", "epsilon")),
        *((name, ctypes.c_void_p) for name in ("heads", "q_weight", "k_weight", "cos", "sin")),
        *((name, ctypes.c_void_p) for name in ("positions", "rows", "bases", "slots", "out")),
    )


class CpuDecode:
    """The layers of a `DecodeModel` by these kernels.

    num_calls: of them so far: two norms, attention and activation a layer and step, and the last norm.
    """

    def __init__(self, trunk: Any, layers: list[TorchLayer], library: ctypes.CDLL) -> None:
        self._layers, self._library, self._rotary = layers, library, trunk.rotary_emb
        self.num_calls = 0
        norms = [(one.input_layernorm, one.post_attention_layernorm) for one in trunk.layers]
        self._norms = [_Norm(norm) for pair in norms for norm in pair] + [_Norm(trunk.norm)]
        has_norms = hasattr(trunk.layers[0].self_attn, "q_norm")
        of_heads = [(one.self_attn.q_norm, one.self_attn.k_norm) for one in trunk.layers] if has_norms else []
        self._head_norms = [(_Norm(q_norm), _Norm(k_norm)) for q_norm, k_norm in of_heads]

    def advance(
        self, embeddings_PD: torch.Tensor, positions_P: torch.Tensor, cache: RaggedCache, rows_P: torch.Tensor | None
    ) -> torch.Tensor:
        """New positions of rows, written at their places in the cache: (P, D) -> hidden states (P, D). rows_P: the row of each;
        None: there is one of each row."""
        self.num_calls += 4 * len(self._layers) + 1
        x_PD, added_PD, dtype = torch.empty_like(embeddings_PD, dtype=torch.float32), None, embeddings_PD.dtype
        x_PD = x_PD.contiguous().copy_(embeddings_PD)
        step, kept = self._step(x_PD, positions_P, cache, rows_P)
        first = self._layers[0]
        mixed_PD = x_PD.new_empty(len(x_PD), first.num_heads * first.head_dim)
        step.out = mixed_PD.data_ptr()
        for number, layer in enumerate(self._layers):
            heads = layer.qkv(self._add_and_norm(x_PD, added_PD, self._norms[2 * number]).to(dtype)).float().contiguous()
            self._attend(step, number, heads)
            normed_PD = self._add_and_norm(x_PD, layer.out(mixed_PD.to(dtype)).float(), self._norms[2 * number + 1])
            added_PD = layer.down(self._gate(layer.gate_up(normed_PD.to(dtype)).float()).to(dtype)).float()
        del kept
        return self._add_and_norm(x_PD, added_PD, self._norms[-1]).to(dtype)

    def _step(
        self, x_PD: torch.Tensor, positions_P: torch.Tensor, cache: RaggedCache, rows_P: torch.Tensor | None
    ) -> tuple[_Step, list[torch.Tensor]]:
        """The kernel's arguments that all layers share, and the tensors that they point to."""
        layer, count = self._layers[0], len(positions_P)
        cos_Pd, sin_Pd = (x[:, 0].contiguous() for x in self._rotary(x_PD[:, None], positions_P[:, None]))
        bases_R, slots_R = cache.addresses()
        kept = [cos_Pd, sin_Pd, positions_P, bases_R, slots_R, *([] if rows_P is None else [rows_P])]
        step = _Step(count, layer.num_heads, layer.num_kv_heads, layer.head_dim, len(self._layers))
        work = count * cache.used * layer.num_heads * layer.head_dim
        step.num_threads = torch.get_num_threads() if work >= PARALLEL else 1
        step.scale = layer.scale
        step.cos, step.sin, step.positions = cos_Pd.data_ptr(), sin_Pd.data_ptr(), positions_P.data_ptr()
        step.rows = None if rows_P is None else rows_P.data_ptr()
        step.bases, step.slots = bases_R.data_ptr(), slots_R.data_ptr()
        return step, kept

    def _attend(self, step: _Step, number: int, heads: torch.Tensor) -> None:
        step.layer, step.heads = number, heads.data_ptr()
        if self._head_norms:
            q_norm, k_norm = self._head_norms[number]
            step.epsilon = q_norm.epsilon
            step.q_weight, step.k_weight = q_norm.weight.data_ptr(), k_norm.weight.data_ptr()
        self._library.attend(ctypes.byref(step))

    def _add_and_norm(self, x_PD: torch.Tensor, added_PD: torch.Tensor | None, norm: "_Norm") -> torch.Tensor:
        out_PD = torch.empty_like(x_PD)
        added = None if added_PD is None else added_PD.data_ptr()
        sizes = ctypes.c_long(x_PD.shape[0]), ctypes.c_long(x_PD.shape[1])
        pointers = (ctypes.c_void_p(one) for one in (x_PD.data_ptr(), added, norm.weight.data_ptr(), out_PD.data_ptr()))
        self._library.add_and_norm(*pointers, *sizes, ctypes.c_float(norm.epsilon))
        return out_PD

    def _gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        count, width = gate_up.shape[0], gate_up.shape[1] // 2
        out_PF = gate_up.new_empty(count, width)
        pointers = ctypes.c_void_p(gate_up.data_ptr()), ctypes.c_void_p(out_PF.data_ptr())
        self._library.gate(*pointers, ctypes.c_long(count), ctypes.c_long(width))
        return out_PF


class _Norm:
    """An RMSNorm's weight in float32, as long as it is used: its own, where it is float32."""

    def __init__(self, norm: Any) -> None:
        self.weight, self.epsilon = norm.weight.detach().float(), norm.variance_epsilon


def make_cpu_decode(model: UnifiedModel, layers: list[Any]) -> CpuDecode | None:
    """These kernels for the layers of a `DecodeModel`, where they are for the model and can be compiled."""
    if not has_cpu_decode(model) or not all(isinstance(layer, TorchLayer) for layer in layers):
        return None
    library = _library()
    return None if library is None else CpuDecode(model.trunk, layers, library)


def has_cpu_decode(model: UnifiedModel) -> bool:
    """Whether a model decodes by these kernels: a plain Llama-shaped trunk in float32 or bfloat16 on a CPU, with their
    activation, and they can be compiled."""
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    if not is_llama_shaped(model.trunk) or adapted_layers(model.trunk):
        return False
    activation = model.trunk.layers[0].mlp.act_fn
    return type(activation).__name__ in SILU and _library() is not None


def _library() -> ctypes.CDLL | None:
    return library_beside(__file__, "Decoding takes longer than it could")
