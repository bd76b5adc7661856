"""The layers of a trunk of Llama's shape while it learns: what `transformers`' compute, less what nobody looks at.

Of the last layer only positions are wanted that something is predicted from, which in answers about pictures are one in ten:
once queries, keys and values are made, it works for these alone, and for a few others that make their number a round one. What
is cached goes through `transformers`' own layers, or the engine's (`unimm.inference.fast`).

Shapes: B rows, T positions, M wanted positions, D trunk width, H query heads, E head width.
"""

from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from unimm.models.document_attention import attend_within_documents

LLAMA_SHAPED = ("llama", "qwen2", "qwen3")


def is_llama_shaped(trunk: Any) -> bool:
    """Whether a trunk is Llama's kind of Transformer, which looks at all of its past."""
    layers = getattr(trunk.config, "layer_types", None) or ["full_attention"]
    return trunk.config.model_type in LLAMA_SHAPED and set(layers) == {"full_attention"}


def arrange_layers(trunk: Any) -> None:
    """Let a trunk that `is_llama_shaped` be told which positions are wanted; names of parameters stay what they are.

    All layers, for one compilation to serve them all.
    """
    for layer in trunk.layers:
        layer.is_last = layer is trunk.layers[-1]
        layer.forward = partial(_forward, layer)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864), halves paired as in Llama; all (..., E)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _forward(
    layer: Any,
    hidden_BTD: torch.Tensor,
    position_embeddings: Any = None,
    wanted: torch.Tensor | None = None,
    **others: Any,
) -> torch.Tensor:
    """A layer: (B, T, D) -> (B, T, D); the last one gives (1, M, D) if M positions are wanted."""
    if others.get("cache") is not None or others.get("past_key_values") is not None:
        return type(layer).forward(layer, hidden_BTD, position_embeddings=position_embeddings, **others)
    attention = layer.self_attn
    cos, sin = (turn[:, :, None] for turn in position_embeddings)  # (B, T, 1, E): of all heads
    x_BTD = layer.input_layernorm(hidden_BTD)
    heads = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (project(x_BTD).unflatten(-1, (-1, attention.head_dim)) for project in heads)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    dropout = attention.attention_dropout if attention.training else 0.0
    if attention.config._attn_implementation == "documents":
        # In the values' dtype, as `attend_by_document` does; here, where it can be compiled.
        query, key = (query * attention.scaling).to(value.dtype), key.to(value.dtype)
        seen, hidden = _within_documents(layer, (query, key, value), hidden_BTD, others["sizes"], wanted, dropout)
    else:
        seen = _within_rows(attention, (query, key, value), others.get("attention_mask"), dropout)
        hidden = hidden_BTD
        if layer.is_last and wanted is not None:
            seen, hidden = (x.flatten(0, 1)[wanted][None] for x in (seen, hidden))
    hidden = hidden + attention.o_proj(seen)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _within_rows(attention: Any, heads: tuple[torch.Tensor, ...], mask: Any, dropout: float) -> torch.Tensor:
    """What the positions gather by one of `transformers`' ways: (B, T, H * E)."""
    # Here, for it loads every library for quantized weights that is installed, and they talk.
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    # Queries and keys that a norm has widened under autocast are as the values again: FlexAttention takes one dtype.
    heads = tuple(x.to(heads[2].dtype).transpose(1, 2) for x in heads)
    return attend(attention, *heads, mask, scaling=attention.scaling, dropout=dropout)[0].flatten(2)


@torch.compiler.disable()
def _within_documents(
    layer: Any,
    heads: tuple[torch.Tensor, ...],
    hidden_BTD: torch.Tensor,
    sizes: torch.Tensor,
    wanted_M: torch.Tensor | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the positions gather document by document, (B, T, H * E), and what they were, (B, T, D); or (1, M, ...)."""
    query, key, value = (x.flatten(0, 1) for x in heads)
    if wanted_M is None or not layer.is_last:
        seen_NHE = attend_within_documents(query, key, value, sizes, None, dropout)
        return seen_NHE.view(*hidden_BTD.shape[:2], -1), hidden_BTD
    hidden_MD, query_MHE = _Taken.apply(hidden_BTD.flatten(0, 1), wanted_M), _Taken.apply(query, wanted_M)
    return attend_within_documents(query_MHE, key, value, sizes, wanted_M, dropout).flatten(1)[None], hidden_MD[None]


class _Taken(torch.autograd.Function):
    """Rows of (N, ...), each once at most, so that gradients need not be added up: on a CPU that is one row after another."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = len(x)
        return x[rows]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (rows,) = ctx.saved_tensors
        slope = grads[0].new_zeros(ctx.num_rows, *grads[0].shape[1:])
        slope[rows] = grads[0]
        return slope, None
