"""`unimm bench eval-resume`: the composition root of `unimm.bench.eval_resume`; a line a way, and all of it as JSON."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.options import Model, default_model

TASKS = ("shapes_answers?n=200", "digits_drawings?n=40")


def eval_resume(
    model: Model = None,
    task: Annotated[list[str] | None, typer.Option(help=f"As of unimm eval; repeat it [default: {', '.join(TASKS)}].")] = None,
    kills: Annotated[int, typer.Option(min=1, help="How often an evaluation dies.")] = 3,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write what came of it, as JSON.")] = Path(
        "runs/bench/eval_resume.json"
    ),
) -> None:
    """Whether an evaluation that is killed again and again, asks one item at a time or is shared by two processes ends as one
    that was left alone, byte for byte.

    It runs in float32 on the CPU. The exit code is 1 if anything differs.

    \b
    Example:
      unimm bench eval-resume --kills 3
    """
    import torch
    from rich.console import Console

    from unimm.bench.eval_resume import run_ways
    from unimm.bench.provenance import provenance
    from unimm.runtime.atomic_files import check_writable, write_json

    console = Console(highlight=False)
    check_writable(out)
    workspace = out.with_name(f"{out.name}.evaluations")  # a name of our own: what is there from before is removed
    shutil.rmtree(workspace, ignore_errors=True)
    tasks, verdicts = task or [*TASKS], []
    words = ["--model", model or default_model(), "--device", "cpu", *(word for one in tasks for word in ("--task", one))]
    for verdict in run_ways(words, kills, workspace):
        verdicts.append(verdict)
        outcome = f"differs: {', '.join(verdict.differences)}" if verdict.differences else "equal, byte for byte"
        at = f", killed at {', '.join(map(str, verdict.answers_at_kills))} answers" if verdict.answers_at_kills else ""
        console.print(f"{verdict.way.name}{at}: {outcome} ({verdict.seconds:.0f} s)")
    measured = [asdict(verdict) for verdict in verdicts]
    content = {"bench": "eval-resume", "tasks": tasks, "provenance": provenance(torch.device("cpu")), "measured": measured}
    write_json(out, content)
    if any(verdict.differences for verdict in verdicts):
        raise typer.Exit(1)  # the folders are kept
    shutil.rmtree(workspace)
