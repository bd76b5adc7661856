"""What a decode step needs of a device: one class a device, which says how a layer's products and attention are computed there
and what follows for the steps around them (whether they are captured, read late, have windows that are chosen).

`DecodeKernels` itself is plain PyTorch, for any device (Apple's, for instance); `CpuKernels` has weights that are arranged for
oneDNN, FBGEMM and PyTorch's few-bit products in C++; `CudaKernels` has a fused attention and is captured as CUDA graphs;
`triton_layers.TritonKernels`, for who asks for them, compute a layer in five launches. Trunks that are not of Llama's shape go
through `transformers` on each of them (`llama_decode`).

Shapes: R rows, P new positions of all of them, D trunk width, F hidden width of the MLP, H query heads, G key-value heads, S
slots in use, d head width.
"""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from unimm.inference.decode.kv_cache import RowCacheLayer
from unimm.inference.kernels.quantized_linear import Linear, make_cpu_linear, make_joint_linear
from unimm.inference.kernels.step_inputs import StepInputs
from unimm.models.llama import rotate

KERNELS = ("torch", "triton")
"""What users may ask for: PyTorch's operators, as each device has them best; or Triton's kernels, on CUDA devices."""


class LayerKernels(Protocol):
    """One layer of a Llama-shaped trunk over the new positions of a step, as five operations."""

    def project(self, x_PD: torch.Tensor, step: StepInputs, store: RowCacheLayer) -> Any:
        """RMSNorm, queries, keys and values, their rotation; keys and values are written to the cache. Gives what `attend`
        takes: queries, and where the row's keys and values are."""
        ...

    def attend(self, projected: Any, step: StepInputs) -> Any:
        """Attention of each position over its row's slots up to its own: what `add_output` takes."""
        ...

    def add_output(self, x_PD: torch.Tensor, mixed: Any) -> torch.Tensor:
        """x + output projection."""
        ...

    def gate(self, x_PD: torch.Tensor) -> torch.Tensor:
        """RMSNorm, gate and up, activation: (P, F)."""
        ...

    def add_down(self, x_PD: torch.Tensor, gated_PF: torch.Tensor) -> torch.Tensor:
        """x + down projection."""
        ...


class DecodeKernels:
    """Plain PyTorch.

    is_captured: steps are launched faster as CUDA graphs, and one may be launched before the ids of the last one are read.
    has_copies: weights are copied as they are arranged; else joint weights become the layers' own.
    launches: of kernels of our own, so far.
    """

    is_captured = False
    has_copies = False
    prefill_positions = 1024

    def __init__(self, device: torch.device) -> None:
        self.device, self.launches = device, 0

    @property
    def reads_blocks(self) -> bool:
        """Whether attention finds a row's keys and values through a table of blocks (`PagedCache`)."""
        return False

    def linear(self, layers: list[nn.Linear], weights: str | None = None) -> Linear:
        """Linear layers that read the same input as one: x (P, I) -> (P, O1 + O2 + ...). weights: of fewer bits."""
        return make_joint_linear(layers, weights)

    def attend(
        self, q_RHd: torch.Tensor, keys_RGSd: torch.Tensor, values_RGSd: torch.Tensor, mask_RG1S: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """One query a row and head against the cache, in the cache's dtype: `attend`."""
        return attend(q_RHd, keys_RGSd, values_RGSd, mask_RG1S, scale)

    def layer(self, layer: nn.Module, weights: str | None = None) -> LayerKernels:
        """The operations of one layer of the trunk."""
        return TorchLayer(self, layer, weights)

    def layers(self, layers: Iterable[nn.Module], weights: str | None = None) -> list[LayerKernels]:
        """Those of all layers."""
        return [self.layer(one, weights) for one in layers]

    def check(self, weights: str | None, is_known: bool) -> None:
        """ValueError: these kernels have no such products, or not for this trunk. is_known: it is of Llama's shape."""

    def chooses_windows(self, dtype: torch.dtype) -> bool:
        """Whether windows of drawings are chosen by what steps cost. In float32 ids are the same with any window; in fewer
        bits, or where steps are captured, only who asks gets one."""
        return False


class CpuKernels(DecodeKernels):
    """Weights are arranged once; keys and values are float32, so single queries are plain products, which are faster than a
    fused kernel that is made for many."""

    has_copies = True

    def linear(self, layers: list[nn.Linear], weights: str | None = None) -> Linear:
        return make_cpu_linear(layers, weights)

    def check(self, weights: str | None, is_known: bool) -> None:
        if weights == "fp8":
            raise ValueError("fp8 weights are for GPUs: on a CPU take int8.")

    def chooses_windows(self, dtype: torch.dtype) -> bool:
        return dtype == torch.float32


class CudaKernels(DecodeKernels):
    """PyTorch's fused attention, in steps that are captured."""

    is_captured = True
    prefill_positions = 8192

    def attend(
        self, q_RHd: torch.Tensor, keys_RGSd: torch.Tensor, values_RGSd: torch.Tensor, mask_RG1S: torch.Tensor, scale: float
    ) -> torch.Tensor:
        return attend_fused(q_RHd, keys_RGSd, values_RGSd, mask_RG1S, scale)


def kernels_of(device: torch.device, name: str | None = None) -> DecodeKernels:
    """One of `KERNELS` for a device; None: PyTorch's.

    Raises:
        ValueError: there are none of that name, or not for this device.
    """
    if name not in (None, *KERNELS):
        raise ValueError(f"There are no kernels '{name}': choose one of {', '.join(KERNELS)}.")
    if name != "triton":
        return {"cpu": CpuKernels, "cuda": CudaKernels}.get(device.type, DecodeKernels)(device)
    if find_spec("triton") is None:
        raise ValueError("Triton is not installed, which PyTorch's builds for CUDA bring: leave out kernels='triton'.")
    # Here, for it takes a while to import, and needs none of what it is not asked for.
    from unimm.inference.kernels.triton_layers import TritonKernels

    return TritonKernels(device)


class TorchLayer:
    """One decoder layer in PyTorch's operators, over products and attention of a device.

    qkv, out, gate_up, down: its products.
    """

    def __init__(self, kernels: DecodeKernels, layer: Any, weights: str | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norm1, self._norm2 = fused_norm(layer.input_layernorm), fused_norm(layer.post_attention_layernorm)
        self.qkv = kernels.linear([attention.q_proj, attention.k_proj, attention.v_proj], weights)
        self.out = kernels.linear([attention.o_proj], weights)
        self.gate_up = kernels.linear([mlp.gate_proj, mlp.up_proj], weights)
        self.down = kernels.linear([mlp.down_proj], weights)
        self._activation, self._attend = mlp.act_fn, kernels.attend
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        has_norms = hasattr(attention, "q_norm")
        self._q_norm, self._k_norm = (fused_norm(attention.q_norm), fused_norm(attention.k_norm)) if has_norms else (None, None)

    def project(
        self, x_PD: torch.Tensor, step: StepInputs, store: RowCacheLayer
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (P, H, d), and keys and values (R, G, S, d) with the new ones."""
        sizes = [self.num_heads, self.num_kv_heads]
        heads_PHd = self.qkv(self._norm1(x_PD)).view(len(x_PD), -1, self.head_dim)
        turned_PHd, v = heads_PHd.split([sum(sizes), self.num_kv_heads], dim=1)
        if self._q_norm is not None and self._k_norm is not None:
            q, k = turned_PHd.split(sizes, dim=1)
            turned_PHd = torch.cat([self._q_norm(q), self._k_norm(k)], dim=1)
        q, k = rotate(turned_PHd, step.cos_P1d, step.sin_P1d).split(sizes, dim=1)
        return (q, *store.write(k[:, :, None], v[:, :, None]))

    def attend(self, projected: tuple[torch.Tensor, torch.Tensor, torch.Tensor], step: StepInputs) -> torch.Tensor:
        """(P, H, d). The queries of a row's positions are as many more heads of one, for which its keys are read once."""
        q_PHd, keys_RGSd, values_RGSd = projected
        mask_RGmS = step.mask(self.num_kv_heads, self.num_heads // self.num_kv_heads)
        windows = step.windows
        if windows is None:
            return self._attend(q_PHd, keys_RGSd, values_RGSd, mask_RGmS, self.scale)
        q_RHWd = windows.spread(q_PHd).transpose(1, 2)
        mixed_Rhd = self._attend(q_RHWd.flatten(1, 2), keys_RGSd, values_RGSd, mask_RGmS, self.scale)
        return windows.gather(mixed_Rhd.unflatten(1, (self.num_heads, windows.width)).transpose(1, 2))

    def add_output(self, x_PD: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """(P, D)."""
        return x_PD + self.out(mixed.to(x_PD.dtype).reshape(len(x_PD), -1))

    def gate(self, x_PD: torch.Tensor) -> torch.Tensor:
        """(P, F)."""
        gate_PF, up_PF = self.gate_up(self._norm2(x_PD)).chunk(2, dim=-1)
        return self._activation(gate_PF) * up_PF

    def add_down(self, x_PD: torch.Tensor, gated_PF: torch.Tensor) -> torch.Tensor:
        """(P, D)."""
        return x_PD + self.down(gated_PF)


def attend(
    q_RHd: torch.Tensor, keys_RGSd: torch.Tensor, values_RGSd: torch.Tensor, mask_RG1S: torch.Tensor, scale: float
) -> torch.Tensor:
    """One query a row and head against the cache, in the cache's dtype; heads share keys in groups. Gives (R, H, d).

    mask_RG1S: 0 where a row may look and minus infinity elsewhere, the same for all heads; or (R, G, H / G, S).
    """
    rows, num_heads, head_dim = q_RHd.shape
    groups = keys_RGSd.shape[1]
    q_Nnd = q_RHd.to(keys_RGSd.dtype).reshape(rows * groups, num_heads // groups, head_dim)
    mask_N1S = mask_RG1S.flatten(0, 1).to(keys_RGSd.dtype)
    scores_NnS = torch.baddbmm(mask_N1S, q_Nnd, keys_RGSd.flatten(0, 1).transpose(1, 2), alpha=scale)
    return torch.bmm(scores_NnS.softmax(-1), values_RGSd.flatten(0, 1)).view(rows, num_heads, head_dim)


def attend_fused(
    q_RHd: torch.Tensor, keys_RGSd: torch.Tensor, values_RGSd: torch.Tensor, mask_RG1S: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same by a fused kernel. Heads that share keys become queries of one head: not every such kernel knows groups."""
    q_RGnd = q_RHd.unflatten(1, (keys_RGSd.shape[1], -1))
    mask_R11S = mask_RG1S[:, :1].to(q_RHd.dtype)
    return F.scaled_dot_product_attention(q_RGnd, keys_RGSd, values_RGSd, mask_R11S, scale=scale).flatten(1, 2)


def fused_norm(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """RMSNorm (arXiv 1910.07467) as one operation, for which GPUs have one kernel; in bfloat16 rounded once, at the end."""
    weight, epsilon = norm.weight, norm.variance_epsilon
    return lambda x: F.rms_norm(x, weight.shape, weight, epsilon)
