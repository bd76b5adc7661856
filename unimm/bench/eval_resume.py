"""An evaluation that is killed again and again, that asks one item at a time, or that several processes share, ends as one that
was left alone: the same answers, byte for byte, and the same scores.

Every run is `unimm eval` in processes of its own, in float32. A kill is SIGKILL to all of them at a random moment between the
first answer and the last; then the same command is given again.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-c", "from unimm.cli import main; main()", "eval", "--precision", "fp32"]

STUCK_SECONDS = 3600.0


@dataclass(frozen=True)
class Way:
    """One way to evaluate. words: further options. num_kills: how often it is killed."""

    name: str
    words: tuple[str, ...] = ()
    num_kills: int = 0


@dataclass
class Verdict:
    """What became of one way: how often it was killed, after how many answers, how long all of it took, and what differs."""

    way: Way
    answers_at_kills: list[int]
    seconds: float
    differences: list[str]


def ways(num_kills: int) -> list[Way]:
    """All ways, the first of which the others are compared with."""
    return [
        Way("alone"),
        Way("batches of 1", ("--batch-size", "1")),
        Way("batches of 16", ("--batch-size", "16")),
        Way("2 processes", ("--num-processes", "2")),
        Way("killed", num_kills=num_kills),
        Way("2 processes, killed", ("--num-processes", "2"), num_kills),
    ]


def run_ways(words: list[str], num_kills: int, workspace: Path, seed: int = 0) -> Iterator[Verdict]:
    """Evaluate in every way. words: of `unimm eval`: model, tasks, device.

    Raises:
        RuntimeError: an evaluation failed by itself, or makes no progress.
    """
    alone: Path | None = None
    for way in ways(num_kills):
        folder = workspace / way.name.replace(", ", "-").replace(" ", "-")
        command = [*COMMAND, *words, *way.words, "--out", str(folder)]
        started, counts, rng = time.monotonic(), [], random.Random(f"{seed}/{way.name}")
        total = None if alone is None else _count(alone)
        for _ in range(way.num_kills):
            assert total is not None, "the first way is never killed"
            counts += _kill_after(command, folder, rng.randint(1, total - 1), total)
        _run(command)
        seconds = time.monotonic() - started
        alone = alone or folder
        yield Verdict(way, counts, seconds, list(find_differences(alone, folder)))


def find_differences(alone: Path, other: Path) -> Iterator[str]:
    """What two folders of evaluations differ in: answers, images, scores but for the seconds they took."""
    if (alone / "answers.jsonl").read_bytes() != (other / "answers.jsonl").read_bytes():
        yield "answers"
    images = [{path.name: path.read_bytes() for path in (folder / "images").iterdir()} for folder in (alone, other)]
    if images[0] != images[1]:
        yield "images"
    if _scores(alone) != _scores(other):
        yield "scores"


def _scores(folder: Path) -> dict[str, Any]:
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    for task in scores["tasks"].values():
        del task["seconds"]
    return scores


def _count(folder: Path) -> int:
    """Answers that are on disk, whole."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("answers*.jsonl"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=STUCK_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def _kill_after(command: list[str], folder: Path, count: int, total: int) -> list[int]:
    """Start an evaluation and kill it once so many answers are on disk; how many there were, or none where it was done."""
    count = max(count, min(_count(folder) + 1, total - 1))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + STUCK_SECONDS
    while _count(folder) < count and process.poll() is None:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"{folder} has no more than {_count(folder)} answers after {STUCK_SECONDS:.0f} seconds.")
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [_count(folder)] if process.returncode else []
