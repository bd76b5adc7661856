"""Training that is killed again and again learns what training left alone learns, to the bit.

A small training is killed (SIGKILL) at random moments, every other time inside the writing of a checkpoint, and started again,
until it has died often enough; then it runs to its end. After each kill the newest checkpoint that was announced ("Saved step
...") must be there, or a later one. Compared with a run that was left alone are: the last checkpoint (weights, their average
where there is one, optimizers, adversary, all tensors bit for bit, its state but for the clock), the batch of every step of
every process as a digest, also where a step was done twice, and every logged number but speeds.

Each start is a fork of one server process that has imported everything, and takes a second; a kill is as final.
"""

import itertools
import multiprocessing
import random
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unimm.bench.toy_training import SAVE_EVERY, ToyTraining, live
from unimm.training.checkpoint import CHECKPOINTS, find_checkpoint, load_checkpoint
from unimm.training.logbook import read_numbers

STEPS_A_KILL = 2 * SAVE_EVERY
"""Steps at most between a start and a kill: a run of so many for each kill is long enough."""

STUCK_SECONDS = 300.0


@dataclass
class Verdict:
    """What became of one training that was killed: the kills, how many left a checkpoint half-written, what differs, and how
    many checkpoints were announced."""

    training: ToyTraining
    num_kills: int
    num_half_written: int
    num_steps_repeated: int
    seconds: float
    differences: list[str]
    num_announced: int = 0


def run_kills(
    models: list[str],
    workers: list[int],
    processes: list[int],
    num_kills: int,
    workspace: Path,
    seed: int = 0,
    sharding: str = "ddp",
) -> Iterator[Verdict]:
    """Kill every combination `num_kills` times; `workspace` is a folder to work in. The same seed draws the same moments.

    sharding: of unified models that several processes train.

    Raises:
        RuntimeError: a training failed by itself, or makes no progress.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unimm.bench.toy_training"])
    for model, count in itertools.product(models, processes):
        way = sharding if count > 1 and model == "unified" else "ddp"
        alone = ToyTraining(model, (num_kills + 1) * STEPS_A_KILL, num_processes=count, sharding=way)
        untouched = workspace / f"{model}-{count}-alone"
        _Attempt(context, alone, untouched).finish()
        for number in workers:
            training = replace(alone, num_workers=number)
            folder = workspace / f"{model}-{count}-{number}"
            started = time.monotonic()
            half_written, lost = _kill_often(context, training, folder, num_kills, random.Random(f"{seed}/{training}"))
            _Attempt(context, training, folder).finish()
            repeated = len(_lines(folder / "order-0.txt")) - training.num_steps
            differences = [*lost, *find_differences(untouched, folder, training)]
            seconds, num_announced = time.monotonic() - started, len(_announced(folder))
            yield Verdict(training, num_kills, half_written, repeated, seconds, differences, num_announced)
            if not differences:
                shutil.rmtree(folder)


def _kill_often(context: Any, training: ToyTraining, folder: Path, num_kills: int, rng: random.Random) -> tuple[int, list[str]]:
    """Start and kill a training again and again; gives how many kills left a half-written checkpoint, and what was lost."""
    half_written, lost = 0, []
    for number in range(num_kills):
        attempt = _Attempt(context, training, folder)
        if number % 2:
            attempt.wait_for_save()
            time.sleep(rng.uniform(0.0, 0.02))
        else:
            attempt.wait_for_steps(rng.randrange(1, STEPS_A_KILL))
            time.sleep(rng.uniform(0.0, 0.05))
        attempt.kill(rng.sample(range(training.num_processes), training.num_processes), rng.choice((0.0, 0.1)))
        half_written += bool(list((folder / CHECKPOINTS).glob(".step-*")))
        found, announced = find_checkpoint(folder / CHECKPOINTS) or 0, max(_announced(folder), default=0)
        if found < announced:
            lost.append(f"after kill {number + 1} step {found} is the newest, and {announced} was announced")
    return half_written, lost


class _Attempt:
    """The processes of a training between a start and a kill."""

    def __init__(self, context: Any, training: ToyTraining, folder: Path) -> None:
        self._folder, self._training = folder, training
        self._lines_before = len(_lines(folder / "order-0.txt"))
        self._saves_before = _saves(folder)
        ranks, port = range(training.num_processes), _free_port()
        self._processes = [context.Process(target=live, args=(training, folder, rank, port)) for rank in ranks]
        for process in self._processes:
            process.start()
        self._deadline = time.monotonic() + STUCK_SECONDS

    def wait_for_steps(self, number: int) -> None:
        """Until so many steps have begun."""
        while len(_lines(self._folder / "order-0.txt")) < self._lines_before + number:
            self._look()

    def wait_for_save(self) -> None:
        """Until a checkpoint is being written, or has just been."""
        while _saves(self._folder) == self._saves_before:
            self._look()

    def kill(self, order: list[int], seconds_between: float) -> None:
        """One process after the other, as when one is lost and the launcher ends the rest."""
        for number in order:
            self._processes[number].kill()
            time.sleep(seconds_between if number != order[-1] else 0.0)
        for process in self._processes:
            process.join()

    def finish(self) -> None:
        """Until the end of the training."""
        while any(process.is_alive() for process in self._processes):
            self._look()
        self._look()

    def _look(self) -> None:
        failed = [number for number, process in enumerate(self._processes) if process.exitcode not in (None, 0)]
        if failed or time.monotonic() > self._deadline:
            for process in self._processes:
                process.kill()
            raise RuntimeError(f"{self._training} {'failed' if failed else 'is stuck'}: see {self._folder}/output-*.txt.")
        time.sleep(0.0005)


def find_differences(one: Path, other: Path, training: ToyTraining) -> Iterator[str]:
    """What differs between two runs of the same training: their ends, and their batches and numbers on the way."""
    kept, again = load_checkpoint(one / "checkpoints"), load_checkpoint(other / "checkpoints")
    if kept is None or again is None or (kept.step, again.step) != (training.num_steps, training.num_steps):
        yield "a last checkpoint is missing"
        return
    if kept.tensors.keys() != again.tensors.keys():
        yield "the checkpoints hold other tensors"
    same = kept.tensors.keys() & again.tensors.keys()
    yield from (f"tensor {name}" for name in sorted(same) if not torch.equal(kept.tensors[name], again.tensors[name]))
    if {**kept.state, "seconds": 0} != {**again.state, "seconds": 0}:
        yield "the state"
    for rank in range(training.num_processes):
        expected, seen = (set(_lines(folder / f"order-{rank}.txt")) for folder in (one, other))
        if expected != seen or len(expected) != training.num_steps:
            yield f"the batches of process {rank}"
    if _numbers(one) != _numbers(other):
        yield "the logged numbers"


def _numbers(folder: Path) -> list[dict[str, Any]]:
    lines = read_numbers(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def _lines(path: Path) -> list[str]:
    return re.findall(r"^\d+ [0-9a-f]{64}$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else []


def _announced(folder: Path) -> list[int]:
    """The steps whose checkpoints the first process has said to be there."""
    told = (folder / "output-0.txt").read_text(encoding="utf-8")
    return [int(step.replace(",", "")) for step in re.findall(r"^Saved step ([\d,]+): ", told, re.MULTILINE)]


def _saves(folder: Path) -> set[str]:
    checkpoints = folder / "checkpoints"
    return {path.name for path in checkpoints.iterdir()} if checkpoints.is_dir() else set()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
