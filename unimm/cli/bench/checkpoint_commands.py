"""The commands of `unimm bench` about checkpoints: whether one is ever lost, and how long training stands still for one."""

from pathlib import Path
from typing import Annotated

import typer

checkpoint_commands = typer.Typer(rich_markup_mode=None)


@checkpoint_commands.command("crash-resume")
def crash_resume(
    count: Annotated[int, typer.Option("--kills", min=1, help="How often each training dies.")] = 20,
    training: Annotated[list[str] | None, typer.Option(help="unified or tokenizer; repeat it [default: both].")] = None,
    workers: Annotated[list[int] | None, typer.Option(help="Processes that load data; repeat it [default: 0, 1, 2].")] = None,
    processes: Annotated[list[int] | None, typer.Option(help="Processes that train; repeat it [default: 1, 2].")] = None,
    sharding: Annotated[
        str,
        typer.Option(
            help="How several hold a unified model: ddp, whole in each; fsdp, in shards; context, in shards, sharing rows."
        ),
    ] = "ddp",
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write what came of it, as JSON.")] = Path(
        "runs/bench/crash_resume.json"
    ),
) -> None:
    """Whether a training that is killed again and again ends, to the bit, as one that was left alone.

    Small trainings on the CPU die by SIGKILL at random moments, every other time inside the writing of a checkpoint. The exit
    code is 1 if anything differs, or if a checkpoint that was announced is lost.

    \b
    Examples:
      unimm bench crash-resume --kills 20
      unimm bench crash-resume --kills 50 --training unified --processes 2 --workers 1 --sharding fsdp
    """
    from unimm.cli.bench.crash_resume import run

    run(training or ["unified", "tokenizer"], workers or [0, 1, 2], processes or [1, 2], sharding, count, out)


@checkpoint_commands.command("checkpoint")
def checkpoint(
    model: Annotated[str, typer.Option("--model", "-m", help="A size by name; its weights are random.")] = "janus_110m",
    processes: Annotated[int, typer.Option(min=1, help="That train together, on CPUs.")] = 2,
    sharding: Annotated[str, typer.Option(help="ddp, whole in each; fsdp, in shards.")] = "fsdp",
    repeats: Annotated[int, typer.Option(min=1, help="Checkpoints of each way, in turns; the median is reported.")] = 3,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = Path(
        "runs/bench/checkpoint.json"
    ),
) -> None:
    """How long training stands still for a checkpoint: written beside it in parts, against gathered by the first process.

    Both ways write the same run, AdamW's state included, to the folder of OUT, in turns. The exit code is 1 if training stands
    still for more than a fifth of the time.

    \b
    Examples:
      unimm bench checkpoint
      unimm bench checkpoint --model tiny --processes 1 --sharding ddp
    """
    from unimm.cli.bench.checkpoint_time import run

    run(model, processes, sharding, repeats, out)
