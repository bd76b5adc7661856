"""`unimm bench broken-data`: the composition root of `unimm.bench.broken_data`; a line a command, and all of it as JSON."""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from unimm.bench.broken_data import Outcome, run_cases
from unimm.bench.provenance import provenance
from unimm.runtime.atomic_files import check_writable, write_json

console = Console(highlight=False)


def run(kills: int, images: int, out: Path) -> None:
    """Kill every command, and print how each ended.

    Raises:
        SystemExit: a command that was killed made something else (1); its folder is kept beside `out`.
    """
    check_writable(out)
    workspace = out.with_name(f"{out.name}.runs")  # a name of our own: what is there from before is removed
    shutil.rmtree(workspace, ignore_errors=True)
    outcomes = run_cases(workspace, kills, images, show)
    measured = [asdict(one) for one in outcomes]
    write_json(out, {"bench": "broken-data", "provenance": provenance(torch.device("cpu")), "measured": measured})
    console.print(out)
    if any(one.differences for one in outcomes):
        raise SystemExit(1)
    shutil.rmtree(workspace)


def show(one: Outcome) -> None:
    """A line: the command, kills, bad records, what differs."""
    outcome = f"differs: {', '.join(one.differences)}" if one.differences else "equal to the bit"
    console.print(
        f"{one.name}, processes: {one.num_processes}, killed {one.num_kills} times, {one.num_bad} bad records: {outcome} "
        f"({one.seconds:.0f} s)"
    )
