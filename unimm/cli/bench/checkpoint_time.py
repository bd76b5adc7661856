"""`unimm bench checkpoint`: the composition root of `unimm.bench.checkpoint_time`; a table, JSON with where it was measured."""

import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from unimm.bench.checkpoint_time import Setting, measure
from unimm.bench.provenance import provenance
from unimm.cli.bench.checkpoint import sizes_of
from unimm.runtime.atomic_files import check_writable, write_json

MOST = 0.2
"""The share of the time that training may stand still for."""

ROWS = {
    "gathered": "gathered by the first process: training stands still",
    "copying": "beside the training: it stands still",
    "writing": "beside the training: written after",
}

console = Console(highlight=False)


def run(model: str, processes: int, sharding: str, repeats: int, out: Path) -> None:
    """Write checkpoints of a model with random weights both ways.

    Args:
        model: a size by name (a file of conf/model).

    Raises:
        SystemExit: training stands still for too long (1).
        ValueError: there is no such size or sharding.
    """
    config, _ = sizes_of(model)
    if sharding not in ("ddp", "fsdp"):
        raise ValueError(f"Unknown sharding '{sharding}': use ddp or fsdp.")
    check_writable(out)
    setting = Setting(processes, sharding, repeats)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="checkpoints-") as folder:
        measured = measure(config, setting, Path(folder))
    table = Table(title=f"{model}, {processes} processes ({sharding}), {measured['gigabytes']:.2f} GB", title_justify="left")
    table.add_column("a checkpoint")
    table.add_column("seconds", justify="right")
    for name, text in ROWS.items():
        table.add_row(text, f"{statistics.median(measured[name]):.2f}")
    console.print(table)
    console.print(f"Training stands still for {measured['share']:.3f} of the time (at most {MOST}).")
    result = {"model": model, "setting": vars(setting), "measured": measured}
    write_json(out, {"bench": "checkpoint", "provenance": provenance(torch.device("cpu")), **result})
    console.print(str(out))
    if measured["share"] > MOST:
        raise SystemExit(1)
