"""`unimm bench train`: the composition root of `unimm.bench.train`; a table, a plot, JSON with where it was measured."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from unimm.bench.plot import plot_bars
from unimm.bench.provenance import provenance
from unimm.bench.subprocess_trials import run_in_turns
from unimm.bench.train import Trial
from unimm.checkpoints.weight_files import DEMO
from unimm.cli.bench.checkpoint import checkpoint
from unimm.models.attention import BACKENDS
from unimm.runtime.atomic_files import check_writable, write_json
from unimm.runtime.devices import choose_device

console = Console(highlight=False)
status = Console(stderr=True)

COLUMNS = ("who", "tokens/s", "images/s", "ms a step", "fill", "loss", "GiB", "x theirs")
WHO = ("unimm", "transformers", "unimm, unpacked")
COMPILED = "transformers, compiled"


def run(
    model: str,
    device: str | None,
    precision: str,
    sizes: tuple[int, int, int, int],
    compiled: bool,
    attention: list[str],
    repeats: int,
    out: Path,
) -> None:
    """Time learning to see with a model, here and in transformers' Trainer.

    Args:
        model: "demo", a size by name (a file of conf/model, then with random weights), or a Janus' folder.
        precision: "no" (float32) or "bf16".
        sizes: conversations a step, positions of a row, steps that are measured, steps before them.
        compiled: whether unimm compiles, and transformers is timed a second time, compiled.
        attention: other attention backends, for a trial of unimm each.
        out: JSON file for the figures; the plot lies beside it.

    Raises:
        ValueError: there is no such size or folder or attention backend, or a trial failed.
    """
    if unknown := [backend for backend in attention if backend not in BACKENDS]:
        raise ValueError(f"Unknown attention '{unknown[0]}': use {', '.join(BACKENDS)}.")
    check_writable(out)
    where = choose_device(device)
    with status.status("") as shown, checkpoint(str(DEMO) if model == "demo" else model, torch.float32, shown.update) as at:
        peers = (*WHO, *(f"unimm, {backend}" for backend in attention), *([COMPILED] if compiled else []))
        trials = [Trial(who, str(at), str(where), precision, *sizes, compiled) for who in peers]
        measured = run_in_turns("unimm.bench.train", trials, repeats, lambda trial: shown.update(f"{trial.who} trains"))
    for one in measured:
        one["folder"] = model
    show(model, precision, measured)
    write_json(out, {"bench": "train", "repeats": repeats, "provenance": provenance(where), "measured": measured})
    picture = out.with_suffix(".png")
    plot_bars(
        picture,
        {model: {one["who"]: one["tokens_a_second"] for one in measured}},
        title=f"{model}, {precision}: real tokens a second",
        axis="tokens a second",
    )
    console.print(f"{out}\n{picture}")


def show(model: str, precision: str, measured: list[dict[str, Any]]) -> None:
    """The table: every peer, with its ratio to the faster of transformers' two."""
    best = max(one["tokens_a_second"] for one in measured if one["who"].startswith("transformers"))
    table = Table(title=f"{model}, {precision}", title_justify="left")
    for title in COLUMNS:
        table.add_column(title, justify="left" if title == "who" else "right", no_wrap=True)
    for one in measured:
        table.add_row(
            one["who"],
            f"{one['tokens_a_second']:,.0f}",
            f"{one['images_a_second']:.1f}",
            f"{one['ms_a_step']:.0f}",
            f"{one['fill']:.3f}",
            f"{one['loss']:.3f}",
            f"{one['peak_gib']:.1f}",
            f"{one['tokens_a_second'] / best:.2f}",
        )
    wide = console if console.is_terminal else Console(highlight=False, width=120)
    wide.print(table)
