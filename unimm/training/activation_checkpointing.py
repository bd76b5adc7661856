"""Activation checkpointing: fewer activations are kept for the backward pass, and the others recomputed there.

none        everything is kept
selective   of each layer of the trunk the results of matrix products are kept; what lies between them is recomputed, and so
            is the last product of attention by document
full        of each layer of the trunk the input is kept, and all of it is recomputed: a third more work
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

MODES = ("none", "selective", "full")

_ATEN = torch.ops.aten
KEPT = {
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN.baddbmm.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}
"""What costs more to recompute than to keep."""


def checkpoint_activations(layers: Iterable[nn.Module], mode: str) -> None:
    """Wrap the forward of each layer for training. Names of modules and parameters stay what they were; inference is not
    touched.

    Raises:
        ValueError: the mode is none of `MODES`.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown activation checkpointing '{mode}': use one of {', '.join(MODES)}.")
    if mode == "none":
        return
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward, mode)  # pyright: ignore[reportAttributeAccessIssue]


def _forward(layer: nn.Module, forward: Any, mode: str, *inputs: Any, **keywords: Any) -> Any:
    sizes = [one.numel() for one in inputs if isinstance(one, torch.Tensor)]
    is_empty = bool(sizes) and not any(sizes)  # no images: nothing to keep
    if is_empty or not (layer.training and torch.is_grad_enabled()):
        return forward(*inputs, **keywords)
    context = {} if mode == "full" else {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}
    return checkpoint(forward, *inputs, use_reentrant=False, **context, **keywords)


def _policy(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
