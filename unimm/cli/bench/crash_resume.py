"""`unimm bench crash-resume`: the composition root of `unimm.bench.crash_resume`; a line a training, and all of it as JSON."""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table

from unimm.bench.crash_resume import Verdict, run_kills
from unimm.bench.provenance import provenance
from unimm.bench.toy_training import SHARDINGS
from unimm.runtime.atomic_files import check_writable, write_json

console = Console(highlight=False)


def run(models: list[str], workers: list[int], processes: list[int], sharding: str, kills: int, out: Path) -> None:
    """Kill every combination, and print how each ended.

    Raises:
        SystemExit: a training that was killed learned something else, or lost a checkpoint (1); its folder stays beside `out`.
        ValueError: there is no such training, or no such sharding.
    """
    if unknown := set(models) - {"unified", "tokenizer"}:
        raise ValueError(f"There is no training '{unknown.pop()}': choose unified or tokenizer.")
    if sharding not in SHARDINGS:
        raise ValueError(f"Unknown sharding '{sharding}': use one of {', '.join(SHARDINGS)}.")
    check_writable(out)
    workspace = out.with_name(f"{out.name}.trainings")  # a name of our own: what is there from before is removed
    shutil.rmtree(workspace, ignore_errors=True)
    verdicts = []
    for verdict in run_kills(models, workers, processes, kills, workspace, sharding=sharding):
        verdicts.append(verdict)
        one = verdict.training
        outcome = f"differs: {', '.join(verdict.differences)}" if verdict.differences else "equal to the bit"
        console.print(
            f"{one.model}, {one.num_processes} processes ({one.sharding}), {one.num_workers} workers: {outcome}; "
            f"{verdict.num_announced} checkpoints announced ({verdict.seconds:.0f} s)"
        )
    measured = [asdict(verdict) for verdict in verdicts]
    write_json(out, {"bench": "crash-resume", "provenance": provenance(torch.device("cpu")), "measured": measured})
    show(verdicts)
    console.print(out)
    if any(verdict.differences for verdict in verdicts):
        raise SystemExit(1)
    shutil.rmtree(workspace)


def show(verdicts: list[Verdict]) -> None:
    """A line a training, within 80 columns: kills, those inside a save, steps, those done twice, seconds, differences."""
    console.print("Killed and started again, against a run that was left alone:")
    titles = ("training", "processes", "workers", "kills", "in a save", "steps", "twice", "seconds", "differ")
    table = Table(*(Column(title, justify="left" if title == "training" else "right") for title in titles), box=None)
    for one in verdicts:
        numbers = (one.training.num_processes, one.training.num_workers, one.num_kills, one.num_half_written)
        rest = (one.training.num_steps, one.num_steps_repeated, round(one.seconds), len(one.differences))
        table.add_row(one.training.model, *(str(number) for number in (*numbers, *rest)))
    console.print(table)
