"""How long training stands still for a checkpoint: written beside it in parts, or gathered and written by the first process.

Processes on CPUs hold one model of random weights, whole or in shards, and make one step, after which AdamW has its state. Then
they write both ways in turns: as a run does, where training stands still while each copies its part, and as one that gathers
all tensors on the first process, which writes and hashes them while the others wait. Both flush to the same disk.
"""

import json
import multiprocessing
import shutil
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimm.bench.toy_training import PARTS, set_launched
from unimm.data.mixture import Mixture, Source
from unimm.data.records import Record, Text
from unimm.data.template import PromptFormat, Template
from unimm.data.text import train_byte_bpe
from unimm.data.views import PlainText
from unimm.models.unified import UnifiedConfig, UnifiedModel
from unimm.runtime.environment import usable_cores
from unimm.training.checkpoint import Checkpoint
from unimm.training.checkpoint_writer import CheckpointConfig, save_checkpoint
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import Budget, OptimizerConfig
from unimm.training.sharding import Sharding, gather
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer, TrainerConfig

RESULT = "measured.json"


@dataclass(frozen=True)
class Setting:
    """How many processes hold the model and how ("ddp", "fsdp"), and how many checkpoints each way writes."""

    num_processes: int = 2
    sharding: str = "fsdp"
    repeats: int = 3


def measure(config: UnifiedConfig, setting: Setting, folder: Path) -> dict[str, Any]:
    """Write checkpoints of a model of these sizes below a folder, which is left without them.

    Returns:
        Seconds of each repeat (lists): `gathered`, which training stood still for; `copying`, which it stands still for where
        they are written beside it, of the slowest process; `writing`, which that takes. Their medians' `share`, copying through
        gathered; and `gigabytes` of a checkpoint.

    Raises:
        RuntimeError: a process failed, and said why.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unimm.bench.checkpoint_time"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = [(config, setting, folder, rank, port) for rank in range(setting.num_processes)]
    processes = [context.Process(target=_live, args=own) for own in words]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("A process failed, and says why above.")
    return json.loads((folder / RESULT).read_text())


class _Unsaved(Trainer):
    """A trainer that keeps nothing by itself."""

    def save(self) -> None:
        """What is written is timed."""


def _live(config: UnifiedConfig, setting: Setting, folder: Path, rank: int, port: int) -> None:
    set_launched(rank, setting.num_processes, port)
    torch.set_num_threads(max(1, int(usable_cores()) // setting.num_processes))
    torch.manual_seed(0)
    trainer = _make_trainer(config, setting, folder / "run")
    trainer.fit()
    seconds: dict[str, list[float]] = {"gathered": [], "copying": [], "writing": []}
    num_bytes = 0
    for number in range(1, setting.repeats + 1):
        seconds["gathered"].append(_slowest(trainer, lambda step=number: _gather(trainer, folder / "gathered", step)))
        checkpoint = Checkpoint(number, trainer.tensors(), trainer.state())
        seconds["copying"].append(_slowest(trainer, lambda one=checkpoint: trainer.writer.begin(one)))
        saving = trainer.writer.wait()
        assert saving is not None
        if saving.error is not None:
            raise saving.error
        seconds["writing"].append(saving.seconds)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.tensors.values())
    trainer.ranks.barrier()
    if trainer.is_main:
        for written in ("gathered", "run"):
            shutil.rmtree(folder / written)
        share = statistics.median(seconds["copying"]) / statistics.median(seconds["gathered"])
        (folder / RESULT).write_text(json.dumps({**seconds, "share": share, "gigabytes": num_bytes / 1e9}))


def _slowest(trainer: Trainer, work: Callable[[], None]) -> float:
    """The seconds of the process that takes longest, to microseconds."""
    trainer.ranks.barrier()
    started = time.monotonic()
    work()
    return trainer.ranks.all_max(int(1e6 * (time.monotonic() - started))) / 1e6


def _gather(trainer: Trainer, folder: Path, step: int) -> None:
    """All in one piece on the first process, which writes it while the others wait."""
    tensors = gather(trainer.tensors(), keep=trainer.is_main)
    if trainer.is_main:
        save_checkpoint(folder, Checkpoint(step, tensors, trainer.state()), keep=1)
    trainer.ranks.barrier()


class _Pages:
    """Records of text."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Record:
        return Record(f"page/{index}", text=Text(f"On page {index} stands a small red circle."))


def _make_trainer(config: UnifiedConfig, setting: Setting, folder: Path) -> Trainer:
    model, pages = UnifiedModel(config), _Pages()
    tokenizer = train_byte_bpe((str(pages[index].text) for index in range(len(pages))), 300)
    template = Template(tokenizer, PromptFormat(), config.vision.image_size, model.num_image_positions)
    trainer_config = TrainerConfig(
        budget=Budget(max_steps=1),
        stage=Stage("bench", dict.fromkeys(PARTS, 1.0)),
        optimizer=OptimizerConfig(lr=1e-4),
        num_positions=64,
        num_rows=setting.num_processes,
        num_workers=0,
        sharding=Sharding(setting.sharding),
        checkpoint=CheckpointConfig(keep=1),
    )
    mixture = Mixture([Source("text", pages, PlainText(), 1.0)], template, 0)
    return _Unsaved(Likelihood(model), mixture, trainer_config, folder, "cpu")
