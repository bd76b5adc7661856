"""Commands on broken files, killed and started again, end as those that were left alone, to the bit.

`unimm train-tokenizer`, `unimm encode`, `unimm encode-features` and `unimm train` work on a folder of broken and unusual files
(`broken_files`), as processes of their own, also two that share the work. Each is killed (SIGKILL) in the middle, some times,
and then runs to its end. Compared with a run that was left alone are the files that it wrote: weights, codes, features, the
list of bad records, and every logged number but speeds.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimm.bench.broken_files import make_folder
from unimm.data.bad_records import BAD_RECORDS
from unimm.training.logbook import read_numbers

STEPS, SAVE_EVERY = 24, 4
MAX_BAD = "max_bad=0.5"
STUCK_SECONDS = 900.0

TINY_TOKENIZER = (
    *("tokenizer.image_size=32", "tokenizer.base_channels=32", "tokenizer.num_res_blocks=1", "tokenizer.latent_channels=32"),
    *("tokenizer.quantizer.codebook_size=32", "tokenizer.quantizer.code_dim=4"),
)
TINY_MODEL = (
    *("model.trunk.hidden_size=64", "model.trunk.intermediate_size=128", "model.trunk.num_hidden_layers=1"),
    *("model.vision.image_size=16", "model.vision.patch_size=8", "model.vision.width=32", "model.vision.num_layers=1"),
    *("model.vision.num_heads=2", "text_vocabulary=300", "whitened_images=0"),
)
OFTEN_SAVED = (
    "schedule.warmup_steps=2",
    "report_every=1",
    f"save_every={SAVE_EVERY}",
    f"budget.max_steps={STEPS}",
    "num_workers=1",
)


@dataclass(frozen=True)
class Case:
    """A command that is killed. module: as `python -m` takes it. progress: how far the folder that it writes is; it is
    killed on its way to `middle`, step by step, or (1) each time that it is one further."""

    name: str
    module: str
    words: tuple[str, ...]
    progress: Callable[[Path], float]
    middle: float
    num_processes: int = 1


@dataclass
class Outcome:
    """What became of a command that was killed: how often, bad records that it listed, seconds, and what differs."""

    name: str
    num_processes: int
    num_kills: int
    num_bad: int
    seconds: float
    differences: list[str]


def run_cases(workspace: Path, num_kills: int, num_images: int, say: Callable[[Outcome], None]) -> list[Outcome]:
    """Run every command alone and killed, in a folder to work in; later ones use what earlier ones made.

    Raises:
        RuntimeError: a command failed by itself, or makes no progress.
    """
    photos = make_folder(workspace / "photos", num_good=num_images)
    outcomes = []
    for case in cases(photos, workspace):
        started = time.monotonic()
        alone, killed = (workspace / f"{case.name}-{case.num_processes}-{how}" for how in ("alone", "killed"))
        _run(case, alone)
        kills = sum(_kill_in_the_middle(case, killed, number, num_kills) for number in range(num_kills))
        _run(case, killed)
        listed = sorted((killed / BAD_RECORDS).parent.rglob(BAD_RECORDS))
        num_bad = sum(len(path.read_text("utf-8").splitlines()) for path in listed)
        seconds = time.monotonic() - started
        outcomes.append(Outcome(case.name, case.num_processes, kills, num_bad, seconds, find_differences(alone, killed)))
        say(outcomes[-1])
    return outcomes


def cases(photos: Path, workspace: Path) -> list[Case]:
    """The commands, in their order."""
    data = ("data=image_folder", f"data.folder={photos}", MAX_BAD, "device=cpu")
    images = ("images=image_folder", f"images.folder={photos}", f"images.validation_folder={photos}", "num_validation=4")
    tokenizer = workspace / "train-tokenizer-1-alone/model"
    codes = workspace / "encode-1-alone"
    few = tuple(f"tokenizer_trainer.{word}" for word in (*OFTEN_SAVED, "loss.lpips=0", "precision='no'"))
    small = tuple(f"trainer.{word}" for word in (*OFTEN_SAVED, "num_positions=256", "num_rows=4", "sample_every=0"))
    train = ("stage=scratch", f"image_tokenizer={tokenizer}", f"codes={codes}", *TINY_MODEL, *small, "trainer.precision='no'")
    start = f"init_from={workspace / 'train-1-alone/model'}"
    return [
        Case(
            "train-tokenizer",
            "unimm.cli.train_tokenizer",
            (*images, "images.batch_size=4", MAX_BAD, "device=cpu", *TINY_TOKENIZER, *few),
            _steps,
            STEPS / 2,
        ),
        *(Case("encode", "unimm.cli.encode", (*data, f"image_tokenizer={tokenizer}"), _parts, 1, number) for number in (1, 2)),
        *(Case("train", "unimm.train", (*data, *train), _steps, STEPS / 2, number) for number in (1, 2)),
        Case("encode-features", "unimm.cli.encode_features", (*data, start), _parts, 1),
    ]


def find_differences(alone: Path, killed: Path) -> list[str]:
    """The files that differ between two folders, but for clocks and the order in which two processes list bad records; both may
    list one that they meet in the same step."""
    one, other = _content(alone), _content(killed)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _content(folder: Path) -> dict[str, Any]:
    """What is compared of a folder, by the name of the file."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == BAD_RECORDS:
            found[name] = sorted(set(path.read_text("utf-8").splitlines()))
        elif path.name == "metrics.jsonl":
            found[name] = [{key: one for key, one in line.items() if "speed" not in key} for line in read_numbers(path)]
        elif "checkpoints" not in path.parts and (path.suffix == ".safetensors" or path.name == "manifest.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _steps(folder: Path) -> float:
    path = folder / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _parts(folder: Path) -> float:
    return len(list(folder.parent.glob(f".{folder.name}*.unfinished/*.sha256"))) + len(
        list(folder.rglob(".*.unfinished/*.sha256"))
    )


@contextmanager
def _started(case: Case, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of a command, as torchrun would start them; none of them outlives the block."""
    command = [sys.executable, "-m", case.module, *case.words, f"out={folder}"]
    port, started = _free_port(), list[subprocess.Popen[bytes]]()
    try:
        for rank in range(case.num_processes):
            where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.num_processes, "MASTER_PORT": port}
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            if case.num_processes > 1:
                environment |= {name: str(value) for name, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"}
            with (folder.parent / f"{folder.name}-{rank}.txt").open("ab") as log:
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
                    )
                )
        yield started
    finally:  # also at Ctrl-C, which does not reach them: their sessions are their own
        for one in started:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
        for one in started:
            one.wait()


def _kill_in_the_middle(case: Case, folder: Path, number: int, num_kills: int) -> int:
    """Start it, and kill it when it is so far, which is further than it was; 1 where that was in time, else 0."""
    goal = max(case.middle * (number + 1) / num_kills if case.middle > 1 else 0, case.progress(folder) + 1)
    return int(_run(case, folder, lambda: case.progress(folder) >= goal))


def _run(case: Case, folder: Path, is_enough: Callable[[], bool] = lambda: False) -> bool:
    """Run it to its end, or until it is enough and it is killed; says whether it was killed.

    Raises:
        RuntimeError: one of its processes failed, or it takes too long.
    """
    deadline = time.monotonic() + STUCK_SECONDS
    with _started(case, folder) as processes:
        while True:
            codes = [one.poll() for one in processes]
            if any(codes):
                raise RuntimeError(f"{folder.name} failed: see {folder}-*.txt.")
            if None not in codes:
                return False
            if is_enough():
                return True
            if time.monotonic() > deadline:
                raise RuntimeError(f"{folder.name} is stuck, after {STUCK_SECONDS:g} seconds: see {folder}-*.txt.")
            time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
