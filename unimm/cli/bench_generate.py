"""`unimm bench generate`: the composition root of `unimm.bench.generate`; a table, and JSON with where it was measured."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from unimm.bench.generate import Trial
from unimm.bench.provenance import provenance
from unimm.bench.trials import PEERS, run_in_turns
from unimm.cli.bench_checkpoint import checkpoint
from unimm.devices import choose_device, choose_dtype
from unimm.files import write_json

console = Console(highlight=False)
status = Console(stderr=True)


def run(
    model: str,
    device: str | None,
    dtype: str | None,
    batch_sizes: list[int],
    guidance_scale: float,
    int8: bool,
    repeats: int,
    out: Path,
) -> None:
    """Time drawing with a model, here and in transformers.

    Args:
        model: a size by name (a file of conf/model, then with random weights), or a Janus' folder.
        int8: time unimm with int8 weights too.
        out: JSON file for the figures.

    Raises:
        ValueError: there is no such size or folder.
    """
    where = choose_device(device)
    name = str(choose_dtype(dtype, where)).removeprefix("torch.")
    # Without guidance transformers cannot draw.
    peers = [(who, "as dtype") for who in PEERS if who == "unimm" or guidance_scale > 1]
    peers += [("unimm", "int8")] if int8 else []
    with status.status("") as shown, checkpoint(model, getattr(torch, name), shown.update) as folder:
        trials = [
            Trial(who, str(folder), str(where), name, size, guidance_scale, weights)
            for size in batch_sizes
            for who, weights in peers
        ]

        def tell(trial: Trial) -> None:
            shown.update(f"Drawing {trial.batch_size}: {trial.who}, {trial.weights}")

        measured = run_in_turns("unimm.bench.generate", trials, repeats, tell)
    for one in measured:
        one["folder"] = model
    show(model, name, measured)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"bench": "generate", "repeats": repeats, "provenance": provenance(where), "measured": measured})
    console.print(out)


def show(model: str, dtype: str, measured: list[dict[str, Any]]) -> None:
    """The table: every peer at every batch size, with its ratio to transformers and to the floor."""
    table = Table(title=f"Drawing with {model} in {dtype}", title_justify="left")
    for title in ("images", "who", "ms a step", "s", "images/s", "x transformers", "x floor", "decode, s", "peak, GiB"):
        table.add_column(title, justify="left" if title == "who" else "right")
    for one in measured:
        alike = [other for other in measured if other["batch_size"] == one["batch_size"]]
        theirs = next((other for other in alike if other["who"] == "transformers"), None)
        floor = next(other["floor_ms"] for other in alike if other["who"] == "unimm" and other["weights"] == "as dtype")
        table.add_row(
            str(one["batch_size"]),
            one["who"] if one["weights"] == "as dtype" else f"{one['who']}, {one['weights']}",
            f"{one['ms_a_step']:.1f}",
            f"{one['seconds']:.1f}",
            f"{one['images_a_second']:.2f}",
            f"{theirs['seconds'] / one['seconds']:.2f}" if theirs else "-",
            f"{one['ms_a_step'] / floor:.2f}",
            f"{one['decode_seconds']:.2f}",
            f"{one['peak_gib']:.1f}",
        )
    console.print(table)
