"""`unimm eval`: tasks, a model and a folder, in one process or several.

Processes share nothing but the folder: `--num-processes 2` starts one more and puts all together at the end; `--shard 0/2` and
`--shard 1/2` are started by hand, on any machines that see the folder; `torchrun` and `accelerate launch` say by RANK and
WORLD_SIZE which process is which.
"""

import multiprocessing
import os
import re
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimm.cli.options import OWN, BestOf, Device, Model, Weights, open_model

if TYPE_CHECKING:
    from unimm.eval.task import Task

evaluation = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True)
class EvalOptions:
    """What is evaluated on what, and where the answers go: as the options of `unimm eval` have it; dtype is what was chosen."""

    model: str | None
    suite: str | None
    tasks: tuple[str, ...]
    out: Path
    seed: int
    guidance_scale: float | None
    temperature: float | None
    best_of: int
    device: str | None
    dtype: str
    weights: str | None
    batch_size: int | None
    existing: str

    def make_tasks(self) -> "list[Task]":
        """The tasks. ValueError: one of them is unknown, or none."""
        from unimm.eval.suites import choose_tasks
        from unimm.eval.tasks.drawings import DrawingSettings

        drawing = DrawingSettings(self.seed, self.guidance_scale, self.temperature, self.best_of)
        return choose_tasks([*self.tasks], self.suite, drawing)


@evaluation.command("eval")
def evaluate_model(
    model: Model = None,
    suite: Annotated[
        str | None,
        typer.Option(help="glance, brief, quick (minutes) or full [default: quick, or none where no task is of a suite]."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this task, by its name or as pkg.module:Task, with arguments behind a question mark; repeat it "
            "[default: the suite]."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for scores, pictures and every single answer; what is there goes on.")
    ] = Path("runs/eval"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever is in the folder.")] = False,
    seed: Annotated[int, typer.Option(help="Which items are asked.")] = 0,
    guidance_scale: Annotated[float | None, typer.Option(help="Of all drawings; 1 is off" + OWN)] = None,
    temperature: Annotated[float | None, typer.Option(help="Of all drawings; 0 takes the likeliest" + OWN)] = None,
    best_of: BestOf = 1,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Items asked at once [default: the tasks' own].")] = None,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes that share the items out, a GPU each.")] = 1,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Be process K of N, counted from 0, which are started one by one [default: RANK's]."),
    ] = None,
    device: Device = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto: which of them the device is faster in, as in trainings.")
    ] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16, in place of --precision.")] = None,
    weights: Weights = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="Show the tasks that have names, and stop.")] = False,
) -> None:
    """Score a model on the built-in benchmarks, or on tasks of your own.

    A run that was stopped, or killed, goes on after the answers in its folder when the command is given again. A task of your
    own is a class or a function that makes one.

    \b
    Examples:
      unimm eval --suite full --out runs/eval
      unimm eval --task "shapes_answers?n=200" --num-processes 2 --out runs/answers
      unimm eval --task "my_tasks:Counting?n=100" --out runs/counting
      unimm eval --list
    """
    from unimm.eval.runner import evaluate

    if list_tasks:
        print_tasks()
        return
    place = read_shard(shard)
    check_processes(num_processes, place, overwrite)
    options = EvalOptions(
        model, suite, tuple(task or ()), out, seed, guidance_scale, temperature, best_of, device, dtype or "", weights,
        batch_size, "restart" if overwrite else "resume",
    )  # fmt: skip
    tasks = options.make_tasks()
    options = replace(options, dtype=dtype or choose_dtype(precision, device, None if overwrite else out))
    if num_processes > 1:
        evaluate_in_processes(options, num_processes)
        return
    engine = open_model(model, device_of(device, place[0]) if place[1] > 1 else device, options.dtype, weights)
    evaluate(engine, tasks, out, existing=options.existing, shard=place, batch_size=batch_size)


def read_shard(shard: str | None) -> tuple[int, int]:
    """Which process this is of how many: as "0/2" says, else as RANK and WORLD_SIZE do, else the only one.

    Raises:
        ValueError: there is no such process.
    """
    if shard is None and "WORLD_SIZE" not in os.environ:
        return 0, 1
    shard = shard or f"{os.environ.get('RANK', 0)}/{os.environ['WORLD_SIZE']}"
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"--shard is K/N with K from 0 to N - 1, such as 0/2 and 1/2, not '{shard}'.")
    return int(found[1]), int(found[2])


def check_processes(num_processes: int, shard: tuple[int, int], overwrite: bool) -> None:
    """Raises ValueError where processes are asked for in two ways, or one of several is to overwrite."""
    if shard[1] > 1 and num_processes > 1:
        raise ValueError("--num-processes starts processes itself: leave out --shard, and torchrun.")
    if shard[1] > 1 and overwrite:
        raise ValueError("One of several processes cannot --overwrite what the others write: remove the folder first.")


def choose_dtype(precision: str, device: str | None, out: Path | None) -> str:
    """The name of the dtype that an evaluation runs in. auto takes that of the answers in `out`; else what is faster, which is
    said on stderr."""
    from unimm.eval.answer_folder import recorded_precision
    from unimm.runtime.devices import choose_device, evaluation_dtype

    where = choose_device(device)
    recorded = recorded_precision(out) if precision == "auto" and out is not None else None
    if recorded is not None:
        return recorded
    dtype = str(evaluation_dtype(precision, where)).removeprefix("torch.")
    if precision == "auto":
        typer.echo(f"precision=auto takes {dtype} on this {where.type} device.", err=True)
    return dtype


def device_of(device: str | None, number: int) -> str | None:
    """The device of process `number` of several: of GPUs one each, in turn."""
    import torch

    from unimm.runtime.devices import choose_device

    if choose_device(device) != torch.device("cuda"):
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', number)) % torch.cuda.device_count()}"


def evaluate_in_processes(options: EvalOptions, count: int) -> None:
    """Evaluate in `count` processes, of which this is the first. What one that ends early leaves is answered here.

    Raises:
        ValueError: as `unimm.eval.evaluate` does.
    """
    import torch

    from unimm.eval.answer_folder import AnswerFolder
    from unimm.eval.fingerprints import describe_engine
    from unimm.eval.progress import EvaluationProgress
    from unimm.eval.runner import Evaluation, check_tasks

    engine = open_model(options.model, device_of(options.device, 0), options.dtype, options.weights)
    tasks = options.make_tasks()
    folder = AnswerFolder(options.out, describe_engine(engine), check_tasks(tasks), existing=options.existing)
    folder.open()  # what a run of another number of processes has left is put together first
    folder.close()
    count = count if any(folder.missing(task) for task in tasks) else 1
    folder.shard = (0, count)
    all_threads = torch.get_num_threads()
    num_threads = max(1, all_threads // count)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_answer_shard, args=(options, (number, count), num_threads), daemon=True)
        for number in range(1, count)
    ]
    for process in others:
        process.start()
    torch.set_num_threads(num_threads)
    with EvaluationProgress(None, active=True) as display:
        run = Evaluation(engine, tasks, folder, display, options.batch_size)
        run.answer()
        for number, process in enumerate(others, start=1):
            process.join()
            if process.exitcode:
                display.say(f"Process {number} of {count} ended with {process.exitcode}: what it has left is answered here.")
        torch.set_num_threads(all_threads)
        report = run.take_over() if others else run.finish()
    display.show(report.table())


def _answer_shard(options: EvalOptions, shard: tuple[int, int], num_threads: int) -> None:
    """One of several processes: answers its items, and ends where the first one has ended."""
    import torch

    from unimm.eval.answer_folder import AnswerFolder
    from unimm.eval.fingerprints import describe_engine
    from unimm.eval.progress import EvaluationProgress
    from unimm.eval.runner import Evaluation

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    tasks = options.make_tasks()
    engine = open_model(options.model, device_of(options.device, shard[0]), options.dtype, options.weights)
    folder = AnswerFolder(options.out, describe_engine(engine), tasks, shard)
    Evaluation(engine, tasks, folder, EvaluationProgress(None, active=False), options.batch_size).answer()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def print_tasks() -> None:
    """The tasks that have names, with what each asks and its items in the suites."""
    from rich.console import Console
    from rich.table import Table

    from unimm.eval.suites import FURTHER_TASKS, SUITES, TASKS

    table = Table("task", "asks", *SUITES, box=None)
    for name, task in TASKS.items():
        table.add_row(name, task.about, *(f"{getattr(task, suite):,}" for suite in SUITES))
    for name, task in FURTHER_TASKS.items():
        table.add_row(name, task.about)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        'Arguments follow a question mark: "shapes_answers?n=200&seed=1". Tasks of your own are named pkg.module:Task.'
    )
