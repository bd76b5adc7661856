"""A trunk of Llama's shape: what `transformers`' LlamaModel, Qwen2Model and Qwen3Model are behind their token embedding.

Names of parameters, first values from a seed and results are theirs, which tests compare it with; so are the config and every
kind of rotary positions. Their own modules take as long to import as torch and `transformers` together (torchvision,
dynamo, every library for quantized weights), longer than a small model takes to answer. Other trunks are
`transformers`' own (`unimm.models.unified`).

Shapes: B rows, T positions, S keys, M positions with a loss, D trunk width, E head width.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from unimm.models.attention import BACKENDS, Mask
from unimm.models.llama_layer import DecoderLayer, RMSNorm


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
        attention_mask: Mask,
        position_ids: torch.Tensor,
        cache: Any = None,
        loss_positions_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), or (1, M, D) of those positions, counted over all rows.

        cache: a `transformers` Cache, which keys and values are written to; none while it learns.
        """
        turns = self.rotary_emb(inputs_embeds, position_ids)
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
