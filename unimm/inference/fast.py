"""A model arranged for decoding: one position of every row at a time, with as few and as fast operations as the device has.

`transformers`' trunk serves every size and length; a decode step is always the same few products over one position a row, so
the engine owns that one forward for trunks of Llama's shape (Llama, Qwen2, Qwen3): queries, keys and values as one product,
gate and up as one, weights packed once (`linear`), attention over the used part of the cache alone. Other trunks go through
`transformers`. Token for token the same in float32 (tests/inference/test_fast.py).

Shapes: R rows, D trunk width, H query heads, G key-value heads, S slots in use, d head width, V vocabulary.
"""

import logging
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn

from unimm.inference.cache import RowCache, RowCacheLayer
from unimm.inference.linear import Linear, make_linear
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind

logger = logging.getLogger(__name__)

LLAMA_SHAPED = ("llama", "qwen2", "qwen3")


class FastModel:
    """The decode step of a unified model: embed one id a row, one position through the trunk, one head.

    The model's weights are read when it is made: make it again when they have changed (`is_current`).

    int8: keep weights as int8 with a scale a row. ValueError: the device, dtype or trunk has no such product.
    """

    def __init__(self, model: UnifiedModel, int8: bool = False) -> None:
        self.model = model
        self._versions = _versions(model)
        self.layers: list[_Layer] | None = None
        self.heads: dict[Kind, Linear] = {}
        device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
        is_llama_shaped = _is_llama_shaped(model.trunk.config)
        if int8 and not (device.type == "cpu" and dtype == torch.bfloat16 and is_llama_shaped):
            raise ValueError(
                f"int8 weights are for bfloat16 models with a trunk of {', '.join(LLAMA_SHAPED)} on a CPU, "
                f"not for {str(dtype).removeprefix('torch.')} with {model.trunk.config.model_type} on {device.type}."
            )
        # A GPU decodes with the model's own forward. On a CPU arranged weights lie beside the model's, which there are mostly
        # pages of its file that may go.
        if device.type != "cpu":
            return
        if not int8 and not _has_room_for_copies(model):
            logger.warning("Too little memory is free for arranged copies of the weights: decoding goes on without, slower.")
            return
        self.heads = {Kind.TEXT: make_linear([model.text.head], int8), Kind.CODES: _chain(model.codes.head, int8)}
        if is_llama_shaped:
            self.layers = [_Layer(layer, int8) for layer in model.trunk.layers]

    def is_current(self) -> bool:
        """Whether the model's weights are still those that were read."""
        return self._versions == _versions(self.model)

    def embed(self, kind: Kind, ids_n: torch.Tensor) -> torch.Tensor:
        """ids (n,) -> (n, D)."""
        return self.model.vocabulary_ports[kind].embed(ids_n)

    def sample(self, kind: Kind, hidden_nD: torch.Tensor, choose: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """One step of sampling of the rows that fill `kind`: as `VocabularyPort.sample`."""
        if kind in self.heads:
            return choose(self.heads[kind](hidden_nD))
        return self.model.vocabulary_ports[kind].sample(hidden_nD, choose)

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
        masked_R11S = torch.zeros(rows, 1, 1, used, device=positions_R.device).masked_fill(~seen_RS[:, None, None], -torch.inf)
        hidden_RD = embeddings_RD
        for layer, store in zip(self.layers, cache.layers, strict=True):
            assert isinstance(store, RowCacheLayer)
            hidden_RD = layer(hidden_RD, cos_R1d, sin_R1d, masked_R11S, store)
        return self.model.trunk.norm(hidden_RD)


class _Layer:
    """One decoder layer over one position a row."""

    def __init__(self, layer: Any, int8: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm1, self.norm2 = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = make_linear([attention.q_proj, attention.k_proj, attention.v_proj], int8)
        self.out = make_linear([attention.o_proj], int8)
        self.gate_up = make_linear([mlp.gate_proj, mlp.up_proj], int8)
        self.down = make_linear([mlp.down_proj], int8)
        self.activation = mlp.act_fn
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)

    def __call__(
        self, x_RD: torch.Tensor, cos_R1d: torch.Tensor, sin_R1d: torch.Tensor, mask_R11S: torch.Tensor, store: RowCacheLayer
    ) -> torch.Tensor:
        rows = len(x_RD)
        heads_RHd = self.qkv(self.norm1(x_RD)).view(rows, -1, self.head_dim)
        q, k, v = heads_RHd.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q, k = _rotate(q, cos_R1d, sin_R1d), _rotate(k, cos_R1d, sin_R1d)
        keys_RGSd, values_RGSd = store.write(k[:, :, None], v[:, :, None])
        mixed_RHd = attend(q, keys_RGSd, values_RGSd, mask_R11S, self.scale).to(x_RD.dtype)
        x_RD = x_RD + self.out(mixed_RHd.reshape(rows, -1))
        gate_RF, up_RF = self.gate_up(self.norm2(x_RD)).chunk(2, dim=-1)
        return x_RD + self.down(self.activation(gate_RF) * up_RF)


def attend(
    q_RHd: torch.Tensor, keys_RGSd: torch.Tensor, values_RGSd: torch.Tensor, mask_R11S: torch.Tensor, scale: float
) -> torch.Tensor:
    """One query a row and head against the cache, in the cache's dtype; heads share keys in groups. Gives (R, H, d).

    Plain products: for single queries they are faster than the fused kernel on a CPU, which is made for many.
    """
    rows, num_heads, head_dim = q_RHd.shape
    groups = keys_RGSd.shape[1]
    q_RGnd = (q_RHd * scale).to(keys_RGSd.dtype).view(rows, groups, num_heads // groups, head_dim)
    scores_RGnS = q_RGnd @ keys_RGSd.transpose(-1, -2)
    weights_RGnS = (scores_RGnS.float() + mask_R11S).softmax(-1).to(values_RGSd.dtype)
    return (weights_RGnS @ values_RGSd).view(rows, num_heads, head_dim)


def _rotate(x_RHd: torch.Tensor, cos_R1d: torch.Tensor, sin_R1d: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864), halves paired as in Llama."""
    first, second = x_RHd.chunk(2, dim=-1)
    return x_RHd * cos_R1d + torch.cat([-second, first], dim=-1) * sin_R1d


def _chain(head: nn.Sequential, int8: bool) -> Linear:
    steps = [make_linear([part], int8) if isinstance(part, nn.Linear) else part for part in head]

    def run(x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def _is_llama_shaped(config: Any) -> bool:
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return config.model_type in LLAMA_SHAPED and set(layers) == {"full_attention"}


def _has_room_for_copies(model: UnifiedModel) -> bool:
    parts = (model.trunk, model.text.head, model.codes.head)
    needed = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    return needed < 0.7 * psutil.virtual_memory().available


def _versions(model: UnifiedModel) -> list[tuple[int, int]]:
    """Where the weights are and how often they were written to."""
    return [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in model.parameters()]
