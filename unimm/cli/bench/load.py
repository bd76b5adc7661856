"""`unimm bench load`: the composition root of `unimm.bench.load`; figures as a table, and as JSON with where they come from."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from unimm.bench.load import Trial
from unimm.bench.provenance import provenance
from unimm.bench.subprocess_trials import PEERS, run_in_turns
from unimm.cli.bench.checkpoint import checkpoint
from unimm.runtime.atomic_files import check_writable, write_json
from unimm.runtime.devices import choose_device, choose_dtype

console = Console(highlight=False)
status = Console(stderr=True)


def run(model: str, device: str | None, dtype: str, repeats: int, out: Path) -> None:
    """Time loading a model, here and in transformers.

    Args:
        model: a size by name (a file of conf/model, then with random weights), or a Janus' folder.
        out: JSON file for the figures.

    Raises:
        ValueError: there is no such size or folder.
    """
    check_writable(out)
    where = choose_device(device)
    name = str(choose_dtype(dtype, where)).removeprefix("torch.")
    with status.status("") as shown, checkpoint(model, getattr(torch, name), shown.update) as folder:
        trials = [Trial(who, str(folder), str(where), name) for who in PEERS]
        measured = run_in_turns("unimm.bench.load", trials, repeats, lambda next_one: shown.update(f"Loading: {next_one.who}"))
    for one in measured:
        one["folder"] = model
    show(model, name, measured)
    write_json(out, {"bench": "load", "repeats": repeats, "provenance": provenance(where), "measured": measured})
    console.print(out)


def show(model: str, dtype: str, measured: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(title=f"Loading {model} in {dtype}", title_justify="left")
    columns = {"seconds": "load, s", "touch_seconds": "touch, s", "weights_gib": "weights, GiB", "peak": "peak / weights"}
    if any("device_peak" in one for one in measured):
        columns["device_peak"] = "device peak / weights"
    for title in ("", *columns.values()):
        table.add_column(title, justify="right" if title else "left")
    for one in measured:
        table.add_row(one["who"], *(f"{one[key]:.2f}" for key in columns))
    console.print(table)
