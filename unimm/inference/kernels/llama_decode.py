"""The decode-only forward of a Llama-shaped trunk: one position of every row at a time, with as few operations as the device
allows.

`transformers`' trunk serves every size and length; a decode step is always the same few products over one position a row, so
the engine owns that one forward for trunks of Llama's shape (Llama, Qwen2, Qwen3): queries, keys and values as one product,
gate and up as one, weights packed once (`linear`), attention over the used part of the cache alone. Other trunks go through
`transformers`. Token for token the same in float32 (tests/inference/kernels/test_llama_decode.py).

Shapes: R rows, D trunk width, H query heads, G key-value heads, S slots in use, d head width, V vocabulary.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from unimm.inference.decode.kv_cache import RowCache, RowCacheLayer
from unimm.inference.kernels.quantized_linear import QUANTIZED, Linear, make_linear
from unimm.models.llama import LLAMA_SHAPED, is_llama_shaped, rotate
from unimm.models.lora import adapted_layers
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DecodeModel:
    """The decode step of a unified model: embed one id a row, one position through the trunk, one head.

    The model's weights are read when it is made: make it again when they have changed (`is_current`).

    weights: decode with copies of the trunk's weights in fewer bits, one of `QUANTIZED` ("int8" of the heads, too).
        ValueError: the device, dtype or trunk has no such products.
    """

    def __init__(self, model: UnifiedModel, weights: str | None = None) -> None:
        self.model, self._ports = model, model.vocabulary_ports
        self.layers: list[_Layer] | None = None
        self.heads: dict[Kind, Linear] = {}
        # What adapters add is in no weight yet.
        is_known = is_llama_shaped(model.trunk) and not adapted_layers(model.trunk)
        on_cpu = next(model.parameters()).device.type == "cpu"
        if weights is not None:
            _check_weights(weights, model, is_known)
        # On a CPU arranged weights lie beside the model's, which there are mostly pages of its file that may go.
        if on_cpu and weights is None and not _has_room_for_copies(model):
            logger.warning("Too little memory is free for arranged copies of the weights: decoding goes on without, slower.")
        else:
            of_heads = weights if weights == "int8" else None
            if on_cpu or of_heads:
                self.heads = {kind: _chain(port.head, of_heads) for kind, port in model.vocabulary_ports.items()}
            if is_known:
                self.layers = [_Layer(layer, weights) for layer in model.trunk.layers]
        self._versions = weight_versions(model)

    def is_current(self) -> bool:
        """Whether the model's weights are still those that were read."""
        return self._versions == weight_versions(self.model)

    def embed(self, kind: Kind, ids_n: torch.Tensor) -> torch.Tensor:
        """ids (n,) -> (n, D)."""
        return self._ports[kind].embed(ids_n)

    def sample(self, kind: Kind, hidden_nD: torch.Tensor, choose: Callable[[torch.Tensor], T]) -> T:
        """One step of sampling of the rows that fill `kind`: as `VocabularyPort.sample`."""
        if kind in self.heads:
            return choose(self.heads[kind](hidden_nD))
        return self._ports[kind].sample(hidden_nD, choose)

    def advance(self, embeddings_RD: torch.Tensor, positions_R: torch.Tensor, used: int, cache: RowCache) -> torch.Tensor:
        """One position a row, written at its place in the cache: (R, D) -> hidden states (R, D).

        used: slots that any row needs, this position included.
        """
        rows = len(embeddings_RD)
        cache.prepare(slice(0, rows), positions_R[:, None], used)
        seen_RS = torch.arange(used, device=positions_R.device) <= positions_R[:, None]
        if self.layers is None:
            return self.model.hidden(embeddings_RD[:, None], seen_RS[:, None, None], positions_R[:, None], cache)[:, 0]
        cos_R1d, sin_R1d = self.model.trunk.rotary_emb(embeddings_RD[:, None], positions_R[:, None])
        mask_RS = torch.zeros(rows, used, device=positions_R.device).masked_fill(~seen_RS, -torch.inf)
        mask_RG1S = mask_RS[:, None, None].repeat(1, self.layers[0].num_kv_heads, 1, 1)
        hidden_RD = embeddings_RD
        for layer, store in zip(self.layers, cache.layers, strict=True):
            assert isinstance(store, RowCacheLayer)
            hidden_RD = layer(hidden_RD, cos_R1d, sin_R1d, mask_RG1S, store)
        return _norm(self.model.trunk.norm)(hidden_RD)


class _Layer:
    """One decoder layer over one position a row."""

    def __init__(self, layer: Any, weights: str | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm1, self.norm2 = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.qkv = make_linear([attention.q_proj, attention.k_proj, attention.v_proj], weights)
        self.out = make_linear([attention.o_proj], weights)
        self.gate_up = make_linear([mlp.gate_proj, mlp.up_proj], weights)
        self.down = make_linear([mlp.down_proj], weights)
        self.activation = mlp.act_fn
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        has_norms = hasattr(attention, "q_norm")
        self.q_norm, self.k_norm = (_norm(attention.q_norm), _norm(attention.k_norm)) if has_norms else (None, None)

    def __call__(
        self, x_RD: torch.Tensor, cos_R1d: torch.Tensor, sin_R1d: torch.Tensor, mask_RG1S: torch.Tensor, store: RowCacheLayer
    ) -> torch.Tensor:
        rows = len(x_RD)
        heads_RHd = self.qkv(self.norm1(x_RD)).view(rows, -1, self.head_dim)
        turned_RHd, v = heads_RHd.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = turned_RHd.split([self.num_heads, self.num_kv_heads], dim=1)
            turned_RHd = torch.cat([self.q_norm(q), self.k_norm(k)], dim=1)
        q, k = rotate(turned_RHd, cos_R1d, sin_R1d).split([self.num_heads, self.num_kv_heads], dim=1)
        keys_RGSd, values_RGSd = store.write(k[:, :, None], v[:, :, None])
        mixed_RHd = attend(q, keys_RGSd, values_RGSd, mask_RG1S, self.scale).to(x_RD.dtype)
        x_RD = x_RD + self.out(mixed_RHd.reshape(rows, -1))
        gate_RF, up_RF = self.gate_up(self.norm2(x_RD)).chunk(2, dim=-1)
        return x_RD + self.down(self.activation(gate_RF) * up_RF)


def attend(
    q_RHd: torch.Tensor, keys_RGSd: torch.Tensor, values_RGSd: torch.Tensor, mask_RG1S: torch.Tensor, scale: float
) -> torch.Tensor:
    """One query a row and head against the cache, in the cache's dtype; heads share keys in groups. Gives (R, H, d).

    mask_RG1S: 0 where a row may look and minus infinity elsewhere, the same for all heads.

    On a CPU by plain products: for single queries they are faster there than the fused kernel, which is made for many.
    """
    rows, num_heads, head_dim = q_RHd.shape
    groups = keys_RGSd.shape[1]
    if q_RHd.is_cuda:
        return attend_fused(q_RHd, keys_RGSd, values_RGSd, mask_RG1S, scale)
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


def _norm(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """RMSNorm (arXiv 1910.07467) as one operation, for which GPUs have one kernel; in bfloat16 rounded once, at the end."""
    weight, epsilon = norm.weight, norm.variance_epsilon
    return lambda x: F.rms_norm(x, weight.shape, weight, epsilon)


def _chain(head: nn.Linear | nn.Sequential, weights: str | None) -> Linear:
    if isinstance(head, nn.Linear):
        return make_linear([head], weights)
    steps = [make_linear([part], weights) if isinstance(part, nn.Linear) else part for part in head]

    def run(x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def _check_weights(weights: str, model: UnifiedModel, is_known: bool) -> None:
    first = next(model.parameters())
    if weights not in QUANTIZED:
        raise ValueError(f"There are no weights '{weights}': choose one of {', '.join(QUANTIZED)}.")
    if first.dtype != torch.bfloat16 or not is_known:
        raise ValueError(
            f"Weights of fewer bits are for bfloat16 models with a trunk of {', '.join(LLAMA_SHAPED)}, not for "
            f"{str(first.dtype).removeprefix('torch.')} with {model.trunk.config.model_type}: load it with dtype='bfloat16'."
        )
    if first.device.type == "cpu" and weights == "fp8":
        raise ValueError("fp8 weights are for GPUs: on a CPU take int8.")


def _has_room_for_copies(model: UnifiedModel) -> bool:
    parts = (model.trunk, *(port.head for port in model.vocabulary_ports.values()))
    needed = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    return needed < 0.7 * psutil.virtual_memory().available


def weight_versions(model: UnifiedModel) -> list[tuple[int, int]]:
    """Where the weights are and how often they were written to."""
    return [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in model.parameters()]
