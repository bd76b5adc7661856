"""Stages: which parts are trained, as a table. Janus' three are align (adapters and image head), pretrain (all but the vision
tower) and finetune (everything); from scratch, everything is trained at once. Where adapters are attached (`models.lora`), they
are trained instead of the part that they are in, whatever the stage says.

Source: Janus (arXiv 2410.13848) §3.3 and Janus-Pro (arXiv 2501.17811); the image tokenizer is frozen in all of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from unimm.models.lora import adapter_parameters

RENAMED = {"look": "vision"}
"""Stages that older runs name otherwise."""


@dataclass(frozen=True)
class Stage:
    """lr_scales: factor on the learning rate of each part that is trained; parts that are not named are frozen."""

    name: str
    lr_scales: dict[str, float]


def current_name(stage: str) -> str:
    """The name that a stage has now, also of one that an older run names otherwise."""
    return RENAMED.get(stage, stage)


def freeze(parts: dict[str, nn.Module], stage: Stage) -> None:
    """Make exactly the parts that the stage names trainable, and of parts with adapters exactly these; what two parts share is
    trainable where either is.

    Raises:
        ValueError: the stage names a part that the model does not have.
    """
    unknown = sorted(set(stage.lr_scales) - set(parts))
    if unknown:
        raise ValueError(f"Stage '{stage.name}' names unknown parts {unknown}: a model has {', '.join(parts)}.")
    for part in parts.values():
        part.requires_grad_(False)
    for name, part in parts.items():
        whole = list(part.parameters()) if name in stage.lr_scales else []
        for parameter in adapter_parameters(part) or whole:
            parameter.requires_grad_(True)


def check_heads(heads: Mapping[str, nn.Module], stage: Stage, own_stage: str | None) -> None:
    """Raises ValueError where nothing of an objective's head is trainable: it would stay as it was made, from chance.

    heads: after `freeze`. own_stage: the name of the stage that was made for the objective, if there is one.
    """
    for name, head in heads.items():
        if not any(parameter.requires_grad for parameter in head.parameters()):
            todo = "name its parts in the stage" if own_stage is None else f"add stage={own_stage}"
            raise ValueError(f"Nothing of the head '{name}' learns in stage '{stage.name}': {todo}.")


def hold_frozen(frozen: Mapping[str, nn.Module], learned: nn.Module, device: torch.device) -> None:
    """Prepare the networks that an objective needs and nothing changes: on the device, in evaluation mode, without gradients.

    frozen: `Objective.frozen`. learned: the objective.

    Raises:
        ValueError: one of them is a part of what is trained.
    """
    own = {id(parameter) for parameter in learned.parameters()}
    for name, module in frozen.items():
        if any(id(parameter) in own for parameter in module.parameters()):
            raise ValueError(f"The frozen module '{name}' shares weights with what is trained: give the objective a copy.")
        module.requires_grad_(False).eval().to(device)


def factors(parts: dict[str, nn.Module], stage: Stage) -> dict[str, float]:
    """The factor on the learning rate of each part in which something is trainable: 1 for adapters where the stage names
    none.
    """
    adapted = {name: 1.0 for name, part in parts.items() if name not in stage.lr_scales and adapter_parameters(part)}
    return {**stage.lr_scales, **adapted}


def stage_table(
    parts: dict[str, nn.Module], stage: Stage, num_parameters: int, frozen: Mapping[str, nn.Module] | None = None
) -> Table:
    """The table that is printed at the start of a run: part, parameters, learning-rate factor. Adapters have rows of their own.

    num_parameters: of the whole model, with the objective's own. frozen: what the objective needs beside it.

    Raises:
        ValueError: the parts do not add up to it.
    """
    table = Table(title=f"Stage: {stage.name}", title_justify="left")
    for column, justify in (("part", "left"), ("parameters", "right"), ("learning rate", "right")):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    seen: set[int] = set()
    total = 0
    for title, parameters, rate in _rows(parts, stage):
        own = [p for p in parameters if id(p) not in seen]
        seen.update(id(p) for p in own)
        count = sum(p.numel() for p in own)
        total += count
        table.add_row(title, f"{count:,}", rate)
    if total != num_parameters:
        raise ValueError(
            f"The parts that a stage can name hold {total:,} parameters, of {num_parameters:,} in all: name the others in "
            f"parts() of the objective or port that has them."
        )
    table.add_row("all", f"{total:,}", "")
    for name, module in (frozen or {}).items():
        table.add_row(f"beside it: {name}", f"{sum(p.numel() for p in module.parameters()):,}", "frozen")
    return table


def _rows(parts: dict[str, nn.Module], stage: Stage) -> Iterator[tuple[str, list[nn.Parameter], str]]:
    """Title, parameters and rate of every row: where a part has adapters, these first."""
    rates = {name: f"x {factor:g}" for name, factor in factors(parts, stage).items()}
    for name, part in parts.items():
        adapters = adapter_parameters(part)
        if adapters:
            yield f"{name}, LoRA", adapters, rates[name]
        yield name, list(part.parameters()), "frozen" if adapters else rates.get(name, "frozen")


def show(table: Table, active: bool = True) -> None:
    """Print a table, on the first process only."""
    Console(quiet=not active).print(table)
