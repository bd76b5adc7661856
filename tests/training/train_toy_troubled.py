"""Trouble on one of two processes, for `test_two_processes_in_trouble` to launch: train_toy_troubled.py FOLDER TROUBLE...

signal      SIGUSR1 comes to the second process alone, while the first one samples
disk        the first process finds no room for a checkpoint, ever
data        the second process cannot read what its third step would learn from
skip, stop  the loss of the second process is not finite at step 3, which the run may or may not skip
leave       SIGUSR1 comes to both while the first one validates averages at step 3, which it then leaves
goes_on     the same run again
shards, shards_go_on: these two where each process holds a shard
apart       and once more, but the second process looks for it in a folder of its own
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

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


class Poisoned(Likelihood):
    """Not finite at its third step, on the second process."""

    calls = 0

    def forward(self, batch):
        self.calls += 1
        factor = float("nan") if (self.calls, RANK) == (3, 1) else 1.0
        return {name: tally._replace(loss=tally.loss * factor) for name, tally in super().forward(batch).items()}


def make_step(steps: Steps, number: int) -> StepBatch:
    """In place of the one of all processes."""
    if (number, RANK) == (2, 1):
        raise ValueError("Cannot read it.")
    return STEP(steps, number)


def save_file(*words: object) -> None:
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

    config = make_config(6, sample_every=1, max_skipped_steps=int(trouble == "skip"), save_every=int(trouble == "disk"))
    if trouble in ("leave", "goes_on", "shards", "shards_go_on"):
        sharding = Sharding("fsdp" if trouble.startswith("shards") else "ddp")
        config = replace(config, validate_every=3, ema_decay=0.9, sharding=sharding)
    objective = Poisoned if trouble in ("skip", "stop") else Likelihood
    words = {"sample": sample, "validate": validate, "device": None}
    trainer: Trainer = make_trainer(folder, config, make_mixture(), objective, **words)
    try:
        trainer.fit()
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
    disk = mock.patch.object(checkpoint, "save_file", save_file if trouble == "disk" else checkpoint.save_file)
    with disk, mock.patch.object(Steps, "__getitem__", make_step if trouble == "data" else STEP):
        train(folder, trouble)
leave_group()
