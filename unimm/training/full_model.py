"""A model whose processes hold shards, in one piece on the first process for as long as it is sampled, scored or written.

Before a model is cut, its form is kept: the modules without weights. The whole model is the form with the weights of the
moment, gathered one by one; nobody holds it but the one who asks, and then its memory is free again. The first process needs
the room beside its own shards.
"""

import copy
import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from unimm.models.unified import UnifiedModel
from unimm.training.sharding import gather

SPARE = 1.2
"""So many times its weights a model takes where it decodes, at least: keys, values, and what lies between layers."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


class FullModelGatherer:
    """What puts a model together again.

    model: before it is cut, compiled or told to keep less for its backward pass.
    """

    def __init__(self, model: UnifiedModel) -> None:
        self._form = _with_parameters(model, lambda _, parameter: torch.empty_like(parameter, device="meta"))
        self._has_told = False

    def ask(self, model: UnifiedModel, question: Callable[[UnifiedModel], T], is_first: bool, device: torch.device) -> T | None:
        """What the first process finds by the whole model, in eval mode and without gradients; the others get None at once.

        Every process must ask. device: where the whole model is to lie; a GPU without room for it leaves it to the CPU.
        """
        weights = model.state_dict()
        names = [name for name, _ in self._form.named_parameters()]  # tied ones once
        if is_first:
            device = self._with_room(device, sum(weights[name].numel() * weights[name].element_size() for name in names))
        gathered = gather({name: weights[name] for name in names}, is_first, device)
        if not is_first:
            return None
        whole = _with_parameters(self._form, lambda name, _: gathered.pop(name)).to(device).eval()
        try:
            return question(whole)
        finally:
            del whole
            gc.collect()  # engines and decoders may lie in circles
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def _with_room(self, device: torch.device, num_bytes: int) -> torch.device:
        if device.type != "cuda":
            return device
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if SPARE * num_bytes <= free:
            return device
        if not self._has_told:
            self._has_told = True
            logger.warning(
                f"The whole model takes {num_bytes / 1e9:.1f} GB, and the first process has {free / 1e9:.1f} GB left on "
                f"{device}: it is sampled and scored on the CPU, which takes long. To do without, say trainer.sample_every=0 "
                f"trainer.validate_every=0."
            )
        return torch.device("cpu")


def _with_parameters(model: UnifiedModel, make: Callable[[str, nn.Parameter], torch.Tensor]) -> UnifiedModel:
    """A copy of a model with other tensors for its parameters, which learn nothing; what is tied stays tied."""
    others: dict[int, Any] = {
        id(parameter): nn.Parameter(make(name, parameter), requires_grad=False) for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, others)
