"""The decode-only forward of a Llama-shaped trunk: one position of every row at a time, or a few of some, with as few
operations as the device allows.

`transformers`' trunk serves every size and length; a decode step is always the same few products over few positions, so the
engine owns that one forward for trunks of Llama's shape (Llama, Qwen2, Qwen3): queries, keys and values as one product,
gate and up as one, weights packed once (`linear`), attention over the used part of the cache alone. Other trunks go through
`transformers`. Token for token the same in float32 (tests/inference/kernels/test_llama_decode.py).

Shapes: R rows, P new positions of all of them (one each, if nothing else is said), W of one row at most, D trunk width, H query
heads, G key-value heads, S slots in use, d head width, V vocabulary.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
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


@dataclass(frozen=True)
class Windows:
    """Rows that have several new positions in one step, some more than others; their positions lie row after row.

    rows_P: the row of each position.
    sources_RW: which position is at each place of a rectangle of rows, their last one again where they have fewer; None: it is
        full. places_P: the other way round, counted over the rectangle row after row.
    """

    num_rows: int
    width: int
    rows_P: torch.Tensor
    sources_RW: torch.Tensor | None
    places_P: torch.Tensor | None

    @classmethod
    def of(cls, widths: list[int], device: torch.device) -> "Windows":
        """Rows of these numbers of positions, one or more."""
        most, total = max(widths), sum(widths)
        rows = [row for row, width in enumerate(widths) for _ in range(width)]
        sources = places = None
        if total < most * len(widths):
            ends = list(accumulate(widths))
            table = [[end - width + min(at, width - 1) for at in range(most)] for end, width in zip(ends, widths, strict=True)]
            sources = torch.tensor(table, device=device)
            places = torch.tensor([row * most + at for row, width in enumerate(widths) for at in range(width)], device=device)
        return cls(len(widths), most, torch.tensor(rows, device=device), sources, places)

    def spread(self, x_P: torch.Tensor) -> torch.Tensor:
        """(P, ...) -> (R, W, ...)."""
        return x_P.unflatten(0, (self.num_rows, self.width)) if self.sources_RW is None else x_P[self.sources_RW]

    def gather(self, x_RW: torch.Tensor) -> torch.Tensor:
        """(R, W, ...) -> (P, ...)."""
        flat = x_RW.flatten(0, 1)
        return flat if self.places_P is None else flat[self.places_P]


class DecodeModel:
    """The decode step of a unified model: embed ids, a position of each through the trunk, one head.

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

    def advance(
        self,
        embeddings_PD: torch.Tensor,
        positions_P: torch.Tensor,
        used: int,
        cache: RowCache,
        windows: Windows | None = None,
    ) -> torch.Tensor:
        """New positions of every row, written at their places in the cache: (P, D) -> hidden states (P, D).

        used: slots that any row needs, these positions included. windows: rows with several positions; None: one each.
        """
        if self.layers is None:
            return self._advance_by_transformers(embeddings_PD, positions_P, used, cache, windows)
        num_rows = len(embeddings_PD) if windows is None else windows.num_rows
        cache.prepare(slice(0, num_rows), positions_P[:, None], used, None if windows is None else windows.rows_P[:, None])
        cos_P1d, sin_P1d = self.model.trunk.rotary_emb(embeddings_PD[:, None], positions_P[:, None])
        unseen_PS = torch.arange(used, device=positions_P.device) > positions_P[:, None]
        mask_PS = torch.zeros(unseen_PS.shape, device=unseen_PS.device).masked_fill(unseen_PS, -torch.inf)
        num_heads, num_kv_heads = self.layers[0].num_heads, self.layers[0].num_kv_heads
        if windows is None:
            mask_RGmS = mask_PS[:, None, None].repeat(1, num_kv_heads, 1, 1)
        else:
            mask_RGmS = windows.spread(mask_PS)[:, None].repeat(1, num_kv_heads, num_heads // num_kv_heads, 1)
        hidden_PD = embeddings_PD
        for layer, store in zip(self.layers, cache.layers, strict=True):
            assert isinstance(store, RowCacheLayer)
            hidden_PD = layer(hidden_PD, cos_P1d, sin_P1d, mask_RGmS, store, windows)
        return _norm(self.model.trunk.norm)(hidden_PD)

    def _advance_by_transformers(
        self, embeddings_PD: torch.Tensor, positions_P: torch.Tensor, used: int, cache: RowCache, windows: Windows | None
    ) -> torch.Tensor:
        if windows is None:
            embeddings_RWD, positions_RW = embeddings_PD[:, None], positions_P[:, None]
        else:  # a place without a position computes the last one of its row once more, which changes nothing
            embeddings_RWD, positions_RW = windows.spread(embeddings_PD), windows.spread(positions_P)
        cache.prepare(slice(0, len(positions_RW)), positions_RW, used)
        seen_RWS = torch.arange(used, device=positions_P.device) <= positions_RW[..., None]
        hidden_RWD = self.model.hidden(embeddings_RWD, seen_RWS[:, None], positions_RW, cache)
        return hidden_RWD[:, 0] if windows is None else windows.gather(hidden_RWD)


class _Layer:
    """One decoder layer over the new positions of rows."""

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
        self,
        x_PD: torch.Tensor,
        cos_P1d: torch.Tensor,
        sin_P1d: torch.Tensor,
        mask_RGmS: torch.Tensor,
        store: RowCacheLayer,
        windows: Windows | None,
    ) -> torch.Tensor:
        count = len(x_PD)
        heads_PHd = self.qkv(self.norm1(x_PD)).view(count, -1, self.head_dim)
        turned_PHd, v = heads_PHd.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = turned_PHd.split([self.num_heads, self.num_kv_heads], dim=1)
            turned_PHd = torch.cat([self.q_norm(q), self.k_norm(k)], dim=1)
        q, k = rotate(turned_PHd, cos_P1d, sin_P1d).split([self.num_heads, self.num_kv_heads], dim=1)
        keys_RGSd, values_RGSd = store.write(k[:, :, None], v[:, :, None])
        if windows is None:
            mixed_PHd = attend(q, keys_RGSd, values_RGSd, mask_RGmS, self.scale)
        else:
            mixed_PHd = self._attend_in_windows(q, keys_RGSd, values_RGSd, mask_RGmS, windows)
        x_PD = x_PD + self.out(mixed_PHd.to(x_PD.dtype).reshape(count, -1))
        gate_PF, up_PF = self.gate_up(self.norm2(x_PD)).chunk(2, dim=-1)
        return x_PD + self.down(self.activation(gate_PF) * up_PF)

    def _attend_in_windows(
        self, q_PHd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask_RGmS: torch.Tensor, windows: Windows
    ) -> torch.Tensor:
        """The queries of a row's positions are as many more heads of one, for which its keys are read once."""
        q_RHWd = windows.spread(q_PHd).transpose(1, 2)
        mixed_Rhd = attend(q_RHWd.flatten(1, 2), keys, values, mask_RGmS, self.scale)
        return windows.gather(mixed_Rhd.unflatten(1, (self.num_heads, windows.width)).transpose(1, 2))


def attend(
    q_RHd: torch.Tensor, keys_RGSd: torch.Tensor, values_RGSd: torch.Tensor, mask_RG1S: torch.Tensor, scale: float
) -> torch.Tensor:
    """One query a row and head against the cache, in the cache's dtype; heads share keys in groups. Gives (R, H, d).

    mask_RG1S: 0 where a row may look and minus infinity elsewhere, the same for all heads; or (R, G, H / G, S).

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
