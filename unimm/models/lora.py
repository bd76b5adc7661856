"""LoRA (arXiv 2106.09685), by peft: small matrices learn beside linear layers that stay as they are.

    attach    W x  becomes  W x + (alpha / rank) B A x, with B zero at first: the same model
    merge     W + (alpha / rank) B A  takes the place of W: a plain model again

W is (O, I), A (rank, I), B (O, rank). A layer with an adapter keeps its place in the model; below its name are then
`base_layer`, `lora_A.default` and `lora_B.default`. Adapters as files: `adapter_folder`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unimm.models.unified import UnifiedModel
from unimm.runtime.number_checks import check_number, check_whole

ADAPTER = "default"
"""The name of the one adapter, as peft calls it."""


@dataclass(frozen=True)
class LoraConfig:
    """What is attached to which layers.

    rank, alpha: of the matrices, and what their product is scaled by, divided by rank.
    dropout: of what an adapter reads. Above 0 a run that is resumed goes on with other noise than one that was never stopped.
    targets: parts of the model, all of whose linear layers get an adapter ("trunk", "vision", "projector"), or layers of one
        name in a part ("trunk.q_proj", "vision.qkv").
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] | list[str] = ("trunk",)

    def __post_init__(self) -> None:
        check_whole(self, 1, "rank")
        check_number(self, "alpha", above=0)
        check_number(self, "dropout", below=1)
        if not self.targets:
            raise ValueError("lora.targets is empty: name trunk, vision, projector, or layers of them such as trunk.q_proj.")


def attach(model: UnifiedModel, config: LoraConfig) -> None:
    """Give the targets' linear layers fresh adapters, in place; then nothing but these has gradients.

    Raises:
        ValueError: peft is missing or too old, a target is none, or the model has adapters already.
    """
    if adapted_layers(model):
        raise ValueError("The model has adapters already: merge them first.")
    layers = target_layers(model, config.targets)
    peft = import_peft()
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] - any number is one
        lora_dropout=config.dropout,
        target_modules=layers,
    )
    try:
        peft.inject_adapter_in_model(settings, model, ADAPTER)
    except ImportError as error:
        raise ValueError(f"peft does not go with another package that is here ({error}): `pip install -U peft`.") from error


def merge(model: UnifiedModel) -> None:
    """Add every adapter to its layer's weight, in place: the model has then the layers and names it was made with.

    Raises:
        ValueError: an adapter holds values that are not finite.
    """
    for name, layer in adapted_layers(model).items():
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def target_layers(model: UnifiedModel, targets: tuple[str, ...] | list[str]) -> list[str]:
    """The names of the linear layers that targets mean.

    Raises:
        ValueError: a target is no part that takes adapters, or no layer of one. Heads take none: `linear_cross_entropy`
            multiplies by a head's own weight, and would pass the adapter over.
    """
    parts = model.hidden_parts()
    names = {id(module): name for name, module in model.named_modules()}
    chosen: list[str] = []
    for target in targets:
        part, _, layer = target.partition(".")
        if part not in parts:
            raise ValueError(
                f"lora.targets: '{part}' takes no adapter, {', '.join(parts)} do. A head, an embedding or the code aligner "
                f"learns as a whole where the stage names it."
            )
        inside = [names[id(module)] for module in model.parts()[part].modules() if isinstance(module, nn.Linear)]
        found = [name for name in inside if not layer or name.endswith(f".{layer}")]
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in inside}))
            raise ValueError(f"lora.targets: the {part} has no linear layer '{layer}'; it has {known or 'none at all'}.")
        chosen += found
    return list(dict.fromkeys(chosen))


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers of a model, by name: `base_layer`, and `lora_A`, `lora_B` and `scaling` by adapter."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}


def adapter_parameters(part: nn.Module) -> list[nn.Parameter]:
    """The matrices of all adapters in a part; empty where it has none."""
    return [parameter for name, parameter in part.named_parameters() if is_adapter(name)]


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """In this context the model is what it was before adapters were attached: these are multiplied by 0."""
    scalings = [layer.scaling for layer in adapted_layers(model).values()]
    kept = [dict(one) for one in scalings]
    try:
        for one in scalings:
            one.update(dict.fromkeys(one, 0.0))
        yield
    finally:
        for one, own in zip(scalings, kept, strict=True):
            one.update(own)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return re.search(r"(^|\.)lora_[AB]\.", name) is not None


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """In this context the model computes as it did before its adapters were attached."""
    layers = list(adapted_layers(model).values())
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def delta(a_RI: torch.Tensor, b_OR: torch.Tensor, scaling: float) -> torch.Tensor:
    """What an adapter adds to a weight: (O, I) float32."""
    return scaling * (b_OR.float() @ a_RI.float())


def import_peft() -> Any:
    """peft, imported where it is used.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            'LoRA learns by peft, which is not installed: `pip install "unimm[lora]"`, or `pip install peft`.'
        ) from error
    return peft
