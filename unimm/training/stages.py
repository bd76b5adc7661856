"""Stages: who learns, as a table. Janus' three are align (adapters and image head), pretrain (all but the vision tower) and
finetune (everything); from scratch, everything learns at once.

Source: Janus (arXiv 2410.13848) §3.3 and Janus-Pro (arXiv 2501.17811); the image tokenizer is frozen in all of them.
"""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import nn


@dataclass(frozen=True)
class Stage:
    """learns: factor on the learning rate of each part that learns; parts that are not named are frozen."""

    name: str
    learns: dict[str, float]


def freeze(parts: dict[str, nn.Module], stage: Stage) -> None:
    """Let exactly the parts that the stage names learn; what two parts share learns where either does.

    Raises:
        ValueError: the stage names a part that the model does not have.
    """
    unknown = sorted(set(stage.learns) - set(parts))
    if unknown:
        raise ValueError(f"Stage '{stage.name}' names unknown parts {unknown}: a model has {', '.join(parts)}.")
    for part in parts.values():
        part.requires_grad_(False)
    for name in stage.learns:
        parts[name].requires_grad_(True)


def stage_table(parts: dict[str, nn.Module], stage: Stage, num_parameters: int) -> Table:
    """The table that is printed at the start of a run: part, parameters, learning-rate factor.

    num_parameters: of the whole model; the parts must add up to it.
    """
    table = Table(title=f"Stage: {stage.name}", title_justify="left")
    for column, justify in (("part", "left"), ("parameters", "right"), ("learning rate", "right")):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    seen: set[int] = set()
    total = 0
    for name, part in parts.items():
        own = [p for p in part.parameters() if id(p) not in seen]
        seen.update(id(p) for p in own)
        count = sum(p.numel() for p in own)
        total += count
        rate = f"x {stage.learns[name]:g}" if name in stage.learns else "frozen"
        table.add_row(name, f"{count:,}", rate)
    assert total == num_parameters, f"parts hold {total:,} parameters, the model {num_parameters:,}"
    table.add_row("all", f"{total:,}", "")
    return table


def show(table: Table, active: bool = True) -> None:
    """Print a table, on the first process only."""
    Console(quiet=not active).print(table)
