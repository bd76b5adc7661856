"""What the layers of a trunk do with one sequence: hidden states before each of them, and how much positions look at others.

Fast attention keeps its weights to itself. Here they are computed once more, beside the pass as it always is: of trunks of
Llama's shape by their layers, of others by the eager attention of `transformers`, for which their setting is changed during the
pass and set back behind it.

Shapes: L layers, T positions, D trunk width, H query heads (of grouped ones each by itself).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unimm.batch import Batch
from unimm.models.attention import mask_of
from unimm.models.llama import LlamaTrunk
from unimm.models.unified import UnifiedModel

FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
"""What the norm behind the last layer is called."""


Keep = Callable[[Tensor], Tensor]
"""What is kept of a layer's attention weights (H, T, T) float32: how much a position looks at each that is not later."""


def run_layers(model: UnifiedModel, batch: Batch, keep: Keep | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """One pass over a batch of one row.

    Nobody else may use the model meanwhile, where its trunk is one of `transformers`.

    Returns:
        Hidden states, L + 1 of (T, D): what enters each layer, and last what the heads read (behind the final norm). And what
        is kept of the attention weights of each layer; without `keep` they are not computed.
    """
    embeddings_1TD = model.embed(batch)
    if isinstance(model.trunk, LlamaTrunk):
        return _run_llama(model.trunk, embeddings_1TD, batch, keep)
    return _run_transformers(model.trunk, embeddings_1TD, batch, keep)


def final_norm(trunk: Any) -> nn.Module:
    """The norm behind the last layer. ValueError: it is called by no name that is known."""
    for name in FINAL_NORMS:
        if isinstance(norm := getattr(trunk, name, None), nn.Module):
            return norm
    raise ValueError(f"The norm behind the last layer of {trunk.config.model_type} is none of {', '.join(FINAL_NORMS)}.")


def _run_llama(trunk: LlamaTrunk, hidden_1TD: Tensor, batch: Batch, keep: Keep | None) -> tuple[list[Tensor], list[Tensor]]:
    turns = trunk.rotary_emb(hidden_1TD, batch.positions)
    mask, mask_11TT = mask_of(trunk.config._attn_implementation, batch), batch.attention_mask()
    states, weights = [], []
    layers: Any = trunk.layers
    for layer in layers:
        states.append(hidden_1TD[0])
        if keep is not None:  # a layer at a time: those of all of them are gigabytes of a large model
            weights.append(keep(layer.attention_weights(hidden_1TD, turns, mask_11TT)[0]))
        hidden_1TD = layer(hidden_1TD, turns, mask)
    return [*states, trunk.norm(hidden_1TD)[0]], weights


def _run_transformers(trunk: Any, hidden_1TD: Tensor, batch: Batch, keep: Keep | None) -> tuple[list[Tensor], list[Tensor]]:
    config, mask_11TT = trunk.config, batch.attention_mask()
    backend = config._attn_implementation
    try:
        if keep is not None or backend != "sdpa":
            config._attn_implementation = "eager"  # which adds its mask
            mask_11TT = torch.zeros_like(mask_11TT, dtype=hidden_1TD.dtype).masked_fill(
                ~mask_11TT, torch.finfo(hidden_1TD.dtype).min
            )
        given = {"attention_mask": mask_11TT, "position_ids": batch.positions, "use_cache": False}
        output = trunk(inputs_embeds=hidden_1TD, **given, output_hidden_states=True, output_attentions=keep is not None)
    finally:
        config._attn_implementation = backend
    states = [state[0] for state in output.hidden_states[: len(trunk.layers)]]
    weights = [keep(one[0].float()) for one in output.attentions] if keep is not None else []
    return [*states, output.last_hidden_state[0]], weights
