"""Trouble on one of two processes, for `test_two_processes_in_trouble` to launch: train_toy_troubled.py FOLDER TROUBLE...

signal      SIGUSR1 comes to the second process alone, while the first one samples
disk        the first process finds no room for a checkpoint, ever
data        the second process cannot read what its third step would learn from
skip, stop  the loss of the second process is not finite at step 3, though with a finite gradient, or like its gradient; the
            run may skip it, or may not
exchanges, shards_exchange: none; what torch.distributed is called for in each step is written to exchanges-RANK
leave       SIGUSR1 comes to both while the first one validates averages at step 3, which it then leaves
goes_on     the same run again
shards, shards_go_on: these two where each process holds a shard
apart       and once more, but the second process looks for it in a folder of its own
"""

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from torch import distributed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toys import make_config, make_mixture, make_trainer

from unimm.cli.compose import leave_group
from unimm.data.plan import StepBatch, Steps
from unimm.models.unified import UnifiedModel
from unimm.training import checkpoint
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.sharding import Sharding, whole
from unimm.training.trainer import Trainer

RANK = int(os.environ["RANK"])
STEP = Steps.__getitem__
COLLECTIVES = ("all_reduce", "broadcast", "barrier", "reduce", "gather", "scatter", "all_gather", "all_to_all")
COLLECTIVES += ("all_gather_object", "broadcast_object_list", "all_gather_into_tensor", "reduce_scatter_tensor")


class Poisoned(Likelihood):
    """Not finite at its third step, on the second process."""

    calls, factor, summand = 0, float("nan"), 0.0

    def forward(self, batch):
        self.calls += 1
        factor, summand = (self.factor, self.summand) if (self.calls, RANK) == (3, 1) else (1.0, 0.0)
        return {name: tally._replace(loss=tally.loss * factor + summand) for name, tally in super().forward(batch).items()}


class Infinite(Poisoned):
    """With a gradient that is finite."""

    factor, summand = 1.0, float("inf")


def record_exchanges(trainer: Trainer, patches: ExitStack) -> list[list[str]]:
    """What is called in each step, from the reading of its data on. Gradients of copies are exchanged below Python."""
    calls: list[list[str]] = [[] for _ in range(8)]

    def recorded(name: str, function: Any) -> Any:
        def call(*words: Any, **more: Any) -> Any:
            calls[trainer.step].append(name)
            return function(*words, **more)

        return call

    for name in COLLECTIVES:
        patches.enter_context(mock.patch.object(distributed, name, recorded(name, getattr(distributed, name))))
    return calls


def make_step(steps: Steps, number: int) -> StepBatch:
    """In place of the one of all processes."""
    if (number, RANK) == (2, 1):
        raise ValueError("Cannot read it.")
    return STEP(steps, number)


def write_parts(*words: object) -> None:
    """In place of the one that writes tensors."""
    raise OSError(28, "No space left on device")


def train(folder: Path, trouble: str) -> None:
    """Until the trouble ends it, or the end; what became of it is written to outcome-RANK."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"pid-{RANK}").write_text(str(os.getpid()))

    def sample(model: UnifiedModel, step: int, logbook: object) -> None:
        if trouble == "signal" and step == 3:
            os.kill(int((folder / "pid-1").read_text()), signal.SIGUSR1)
            time.sleep(1.0)

    def validate(model: UnifiedModel, step: int, losses: dict[str, float]) -> dict[str, float] | None:
        with (folder / f"validated-{RANK}").open("a") as file:
            print(step, trouble, file=file)
        if trouble in ("leave", "shards"):
            for rank in (0, 1):
                os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGUSR1)
            time.sleep(1.0)
        return None if trainer.stop.made else {"mean": 0.5}

    counted = trouble in ("exchanges", "shards_exchange")
    config = make_config(6, sample_every=1, max_skipped_steps=int(trouble == "skip"), save_every=int(trouble == "disk"))
    if trouble in ("leave", "goes_on", "shards", "shards_go_on"):
        sharding = Sharding("fsdp" if trouble.startswith("shards") else "ddp")
        config = replace(config, validate_every=3, ema_decay=0.9, sharding=sharding)
    if counted:
        config = replace(config, report_every=0, sample_every=0, sharding=Sharding("fsdp" if "shards" in trouble else "ddp"))
    objective = {"skip": Infinite, "stop": Poisoned}.get(trouble, Likelihood)
    words = {"sample": sample, "validate": validate, "device": None}
    trainer: Trainer = make_trainer(folder, config, make_mixture(), objective, **words)
    try:
        with ExitStack() as patches:
            calls = record_exchanges(trainer, patches) if counted else []
            trainer.fit()
            (folder / f"exchanges-{RANK}").write_text(json.dumps(calls))
        outcome = "finished"
    except SystemExit as stopped:
        outcome = f"exit {stopped.code}"
    except (OSError, ValueError, FloatingPointError) as error:
        outcome = type(error).__name__
    weights = sum(float(whole(parameter.detach()).double().abs().sum()) for parameter in trainer.model.parameters())
    told = f"{outcome}, step {trainer.step}, skipped {trainer.guard.num_skipped}, {weights!r}"
    with (folder / f"outcome-{RANK}").open("a") as file:
        print(told, file=file)


def meet(folder: Path) -> None:
    """The two look for one run in two folders; what comes of it is written to apart-RANK."""
    try:
        make_trainer(folder / ("elsewhere" if RANK else "leave"), make_config(6), make_mixture(), Likelihood, device=None)
        outcome = "they went on"
    except ValueError as error:
        outcome = str(error)
    (folder / f"apart-{RANK}").write_text(outcome)


for trouble in sys.argv[2:]:
    if trouble == "apart":
        meet(Path(sys.argv[1]))
        continue
    folder = Path(sys.argv[1]) / {"goes_on": "leave", "shards_go_on": "shards"}.get(trouble, trouble)
    disk = mock.patch.object(checkpoint, "write_parts", write_parts if trouble == "disk" else checkpoint.write_parts)
    with disk, mock.patch.object(Steps, "__getitem__", make_step if trouble == "data" else STEP):
        train(folder, trouble)
leave_group()
