"""A trunk of Llama's shape: what `transformers`' LlamaModel, Qwen2Model and Qwen3Model are behind their token embedding, less
what no loss reads.

Names of parameters, first values from a seed and results are theirs, which tests compare it with; so are the config and every
kind of rotary positions. Their own modules take as long to import as torch and `transformers` together (torchvision,
dynamo, every library for quantized weights), longer than a small model takes to answer. Other trunks are
`transformers`' own (`unimm.models.unified`).

In training, the last layer computes only positions with a loss, which in answers about pictures are one in ten, once queries,
keys and values are there, and a few others that make their number a round one. One position a row at a time goes through the
engine's own step (`unimm.inference.kernels.llama_decode`).

Shapes: B rows, T positions, S keys, M positions with a loss, D trunk width, H query heads, E head width.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from unimm.models.attention import BACKENDS, Mask, attend_within_documents
from unimm.models.context_parallel import ContextGroup, SplitMask

LLAMA_SHAPED = ("llama", "qwen2", "qwen3")


def is_llama_shaped(trunk: Any) -> bool:
    """Whether a trunk, or its config, is Llama's kind of Transformer, with full causal attention."""
    config = getattr(trunk, "config", trunk)
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return config.model_type in LLAMA_SHAPED and set(layers) == {"full_attention"}


class LlamaTrunk(nn.Module):
    """Embeddings (B, T, D) -> hidden states (B, T, D).

    config: a `transformers` config that `is_llama_shaped`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.set_attn_implementation("sdpa")
        std = config.initializer_range
        # Theirs initialise a token embedding first. The text port has its own, but a seed is to give the same weights.
        embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        nn.init.normal_(embedding.weight, std=std)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def set_attn_implementation(self, backend: str) -> None:
        """Sets the attention backend; named as in `transformers`.

        Raises:
            ValueError: it is none of `unimm.models.attention.BACKENDS`.
        """
        if backend not in BACKENDS:
            raise ValueError(f"Unknown attention backend '{backend}': use one of {', '.join(BACKENDS)}.")
        self.config._attn_implementation = backend

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: "Mask | SplitMask",
        position_ids: torch.Tensor,
        cache: Any = None,
        loss_positions_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), or (1, M, D) of those positions, counted over all rows.

        attention_mask: a `SplitMask` where each process of a group holds a part of the positions, and all those of
            `position_ids` (B, T).
        cache: a `transformers` Cache, which keys and values are written to; none in training.
        """
        turns = self.rotary_emb(inputs_embeds, position_ids)
        if isinstance(attention_mask, SplitMask):  # cut afterwards: frequencies may depend on the longest document
            turns = tuple(attention_mask.context.own(turn) for turn in turns)
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden, turns, attention_mask, cache, loss_positions_M)
        return self.norm(hidden)


class RotaryEmbedding(nn.Module):
    """Rotary positions (arXiv 2104.09864): cosines and sines (B, T, E) of positions (B, T), scaled as the config says."""

    inv_freq: torch.Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        # What `dynamic_rope_update` goes by where frequencies change with the length.
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        frequencies, self.attention_scaling = _frequencies(config, self.rope_type)
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        turns = torch.cat((half, half), dim=-1)
        return (turns.cos() * self.attention_scaling).to(x.dtype), (turns.sin() * self.attention_scaling).to(x.dtype)


def _frequencies(config: Any, kind: str) -> tuple[torch.Tensor, float]:
    if kind != "default":
        return ROPE_INIT_FUNCTIONS[kind](config, None)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float) / width)), 1.0


class RMSNorm(nn.Module):
    """arXiv 1910.07467, computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """What an attention has: projections, Qwen3's norms of queries and keys, and how it attends. The layer uses them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        is_qwen2 = config.model_type == "qwen2"  # its biases stand in no config
        width, wide = config.hidden_size, config.num_attention_heads * self.head_dim
        narrow, bias = config.num_key_value_heads * self.head_dim, is_qwen2 or config.attention_bias
        self.q_proj = nn.Linear(width, wide, bias=bias)
        self.k_proj = nn.Linear(width, narrow, bias=bias)
        self.v_proj = nn.Linear(width, narrow, bias=bias)
        self.o_proj = nn.Linear(wide, width, bias=bias and not is_qwen2)
        if config.model_type == "qwen3":
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), or with another activation that the config names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, hidden, bias = config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)
        self.act_fn = _activation(config.hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """(B, T, D) -> (B, T, D); the last one gives (1, M, D) of M positions with a loss."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.index, self.is_last = index, index == config.num_hidden_layers - 1
        self._within_documents: Callable[..., Any] = _within_documents
        self._to_heads: Callable[..., Any] = ContextGroup.to_heads
        self._to_positions: Callable[..., Any] = ContextGroup.to_positions

    def compile(self, *args: Any, **kwargs: Any) -> None:
        # Here, since it loads dynamo, half a second that inference would spend for nothing.
        for name in ("_within_documents", "_to_heads", "_to_positions"):
            setattr(self, name, cast(Any, torch.compiler.disable(getattr(self, name))))
        super().compile(*args, **kwargs)

    def forward(
        self,
        hidden_BTD: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        mask: Any,
        cache: Any = None,
        loss_positions_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """turns: cosines and sines (B, T, E). mask: of `unimm.models.attention`, or a `SplitMask` of it. cache: a
        `transformers` Cache, or none."""
        attention = self.self_attn
        query, key, value = self._heads(hidden_BTD, turns)
        dropout = attention.attention_dropout if attention.training else 0.0
        is_by_document = attention.config._attn_implementation == "documents"
        # Queries and keys that a norm has widened under autocast are as the values again: kernels take one dtype. By document
        # queries are scaled before, as `attend_by_document` does it; here, where it can be compiled.
        query, key = (query * attention.scaling if is_by_document else query).to(value.dtype), key.to(value.dtype)
        if isinstance(mask, SplitMask):
            seen, hidden = self._attend_split((query, key, value), mask, dropout), hidden_BTD
        elif is_by_document:
            seen, hidden = self._within_documents(
                self.is_last, (query, key, value), hidden_BTD, mask, loss_positions_M, dropout
            )
        else:
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            if cache is not None:
                key, value = cache.update(key, value, self.index)
            seen, hidden = _within_rows(attention, (query, key, value), mask, dropout), hidden_BTD
        if self.is_last and loss_positions_M is not None and (isinstance(mask, SplitMask) or not is_by_document):
            seen, hidden = (x.flatten(0, 1)[loss_positions_M][None] for x in (seen, hidden))
        hidden = hidden + attention.o_proj(seen)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def _attend_split(self, heads: tuple[torch.Tensor, ...], mask: SplitMask, dropout: float) -> torch.Tensor:
        """(B, S, H * E): what the positions that this process holds gather over whole rows, whose others its group holds."""
        attention = self.self_attn
        heads = self._to_heads(mask.context, *heads)
        if attention.config._attn_implementation == "documents":
            seen, _ = self._within_documents(False, heads, heads[0], mask.mask, None, dropout)
        else:
            query, key, value = (x.transpose(1, 2) for x in heads)
            seen = _within_rows(attention, (query, key, value), mask.mask, dropout)
        return self._to_positions(mask.context, seen)

    def attention_weights(
        self, hidden_BTD: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor], mask_B1TS: torch.Tensor
    ) -> torch.Tensor:
        """(B, H, T, S) float32: how much each position looks at each other one, which fused kernels keep to themselves.

        mask_B1TS: bool, true where a position may look.
        """
        query, key, value = self._heads(hidden_BTD, turns)
        key = key.repeat_interleave(self.self_attn.num_key_value_groups, dim=2)
        query, key = (x.to(value.dtype).float().transpose(1, 2) for x in (query, key))
        scores_BHTS = (query @ key.transpose(2, 3)) * self.self_attn.scaling
        return scores_BHTS.masked_fill(~mask_B1TS, -torch.inf).softmax(-1)

    def _heads(
        self, hidden_BTD: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, T, H, E), keys and values (B, T, G, E) of G heads that H heads share; the first two rotated."""
        attention = self.self_attn
        cos, sin = (turn[:, :, None] for turn in turns)  # (B, T, 1, E): of all heads
        x_BTD = self.input_layernorm(hidden_BTD)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (project(x_BTD).unflatten(-1, (-1, attention.head_dim)) for project in projections)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        return rotate(query, cos, sin), rotate(key, cos, sin), value


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864), halves paired as in Llama; all (..., E)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _activation(name: str) -> nn.Module:
    if name == "silu":
        return nn.SiLU()
    from transformers.activations import ACT2FN  # here, for it loads accelerate and FSDP

    return ACT2FN[name]


def _within_rows(
    attention: Attention, heads_BHTE: tuple[torch.Tensor, torch.Tensor, torch.Tensor], mask: Any, dropout: float
) -> torch.Tensor:
    """What the positions gather over whole rows: (B, T, H * E)."""
    if attention.config._attn_implementation != "sdpa":
        # Imported here: it loads every library for quantized weights that is installed, and they print.
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
        return attend(attention, *heads_BHTE, mask, scaling=attention.scaling, dropout=dropout)[0].flatten(2)
    # Keys repeated rather than `enable_gqa`, which with a mask takes the slow kernel.
    query, key, value = heads_BHTE
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    seen_BHTE = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=attention.scaling)
    return seen_BHTE.transpose(1, 2).flatten(2)


def _within_documents(
    is_last: bool,
    heads: tuple[torch.Tensor, ...],
    hidden_BTD: torch.Tensor,
    sizes: torch.Tensor,
    loss_positions_M: torch.Tensor | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the positions gather document by document, (B, T, H * E), and what they were, (B, T, D); or (1, M, ...)."""
    query, key, value = (x.flatten(0, 1) for x in heads)
    if loss_positions_M is None or not is_last:
        seen_NHE = attend_within_documents(query, key, value, sizes, None, dropout)
        return seen_NHE.view(*hidden_BTD.shape[:2], -1), hidden_BTD
    hidden_MD, query_MHE = _Taken.apply(hidden_BTD.flatten(0, 1), loss_positions_M), _Taken.apply(query, loss_positions_M)
    return attend_within_documents(query_MHE, key, value, sizes, loss_positions_M, dropout).flatten(1)[None], hidden_MD[None]


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
