"""What the layers of a trunk do with one sequence: hidden states before each of them, and how much positions look at others.

Fast attention keeps its weights to itself. Here they are computed once more, beside the pass as it always is: of trunks of
Llama's shape by their layers, of others by the eager attention of `transformers`, for which their setting is changed during the
pass and set back behind it.

Shapes: B rows, L layers, T positions, D trunk width, H query heads (of grouped ones each by itself).
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
"""What is kept of a layer's attention weights, float32: how much a position looks at each that is not later."""


def run_layers(model: UnifiedModel, batch: Batch, keep: Keep | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """One pass over a batch of one row; `keep` is given the weights (H, T, T) of each layer.

    Nobody else may use the model meanwhile, where its trunk is one of `transformers`.

    Returns:
        Hidden states, L + 1 of (T, D): what enters each layer, and last what the heads read (behind the final norm). And what
        is kept of the attention weights of each layer; without `keep` they are not computed.
    """
    first = None if keep is None else (lambda weights_BHTT: keep(weights_BHTT[0]))
    states, kept = _run(model, batch, first)
    return [state[0] for state in states], kept


def attention_of_rows(model: UnifiedModel, batch: Batch, keep: Keep) -> list[Tensor]:
    """What `keep` makes of the attention weights (B, H, T, T) float32 of each layer, in one pass over any number of rows.
    Nobody else may use the model meanwhile, as in `run_layers`."""
    return _run(model, batch, keep)[1]


def _run(model: UnifiedModel, batch: Batch, keep: Keep | None) -> tuple[list[Tensor], list[Tensor]]:
    run = _run_llama if isinstance(model.trunk, LlamaTrunk) else _run_transformers
    return run(model.trunk, model.embed(batch), batch, keep)


def final_norm(trunk: Any) -> nn.Module:
    """The norm behind the last layer. ValueError: it is called by no name that is known."""
    for name in FINAL_NORMS:
        if isinstance(norm := getattr(trunk, name, None), nn.Module):
            return norm
    raise ValueError(f"The norm behind the last layer of {trunk.config.model_type} is none of {', '.join(FINAL_NORMS)}.")


def _run_llama(trunk: LlamaTrunk, hidden_BTD: Tensor, batch: Batch, keep: Keep | None) -> tuple[list[Tensor], list[Tensor]]:
    turns = trunk.rotary_emb(hidden_BTD, batch.positions)
    mask, mask_B1TT = mask_of(trunk.config._attn_implementation, batch), batch.attention_mask()
    states, weights = [], []
    layers: Any = trunk.layers
    for layer in layers:
        states.append(hidden_BTD)
        if keep is not None:  # a layer at a time: those of all of them are gigabytes of a large model
            weights.append(keep(layer.attention_weights(hidden_BTD, turns, mask_B1TT)))
        hidden_BTD = layer(hidden_BTD, turns, mask)
    return [*states, trunk.norm(hidden_BTD)], weights


def _run_transformers(trunk: Any, hidden_BTD: Tensor, batch: Batch, keep: Keep | None) -> tuple[list[Tensor], list[Tensor]]:
    config, mask_B1TT = trunk.config, batch.attention_mask()
    backend = config._attn_implementation
    try:
        if keep is not None or backend != "sdpa":
            config._attn_implementation = "eager"  # which adds its mask
            mask_B1TT = torch.zeros_like(mask_B1TT, dtype=hidden_BTD.dtype).masked_fill(
                ~mask_B1TT, torch.finfo(hidden_BTD.dtype).min
            )
        given = {"attention_mask": mask_B1TT, "position_ids": batch.positions, "use_cache": False}
        output = trunk(inputs_embeds=hidden_BTD, **given, output_hidden_states=True, output_attentions=keep is not None)
    finally:
        config._attn_implementation = backend
    states = [*output.hidden_states[: len(trunk.layers)]]
    weights = [keep(one.float()) for one in output.attentions] if keep is not None else []
    return [*states, output.last_hidden_state], weights
