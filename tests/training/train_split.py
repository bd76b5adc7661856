"""Gradients of rows that processes share, for `test_context_parallel` to launch: train_split.py FOLDER DEGREE.

Each process writes, of every case of CASES, the gradient of a step in one piece, with its losses: RANK/NAME.safetensors.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from joint_toys import make_joint_trainer
from safetensors.torch import save_file
from toys import EVERYTHING, make_config, make_mixture, make_model, make_template

from unimm.batch import Batch, collate
from unimm.cli.compose import leave_group
from unimm.models.ports.latents import LatentsConfig
from unimm.models.unified import UnifiedModel
from unimm.segment import Image
from unimm.sequence import Kind, Segment, Sequence
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import OptimizerConfig
from unimm.training.sharding import Sharding, whole
from unimm.training.trainer import Trainer

LATENTS = LatentsConfig(channels=2, latent_size=4, patch_size=2, width=16, num_blocks=1)
FLOWING = replace(EVERYTHING, lr_scales={**EVERYTHING.lr_scales, "latents_in": 1.0, "latents_out": 1.0})


@dataclass(frozen=True)
class Case:
    """trunk: sizes that differ from the tiny one's. batch: of the toy mixture's "plan", or made by hand of "all kinds"."""

    strategy: str = "ddp"
    attention: str = "documents"
    trunk: dict[str, Any] = field(default_factory=dict)
    batch: str = "plan"
    num_micro_batches: int = 2
    changes: dict[str, Any] = field(default_factory=dict)


CASES = {
    "documents": Case(),
    "one head of keys": Case(trunk={"num_key_value_heads": 1, "model_type": "qwen3", "head_dim": 8}),
    "recomputed": Case(changes={"activation_checkpointing": "full"}),
    "rows": Case("fsdp", "sdpa", {"num_key_value_heads": 2}, changes={"activation_checkpointing": "selective"}),
    "all kinds": Case("fsdp", batch="all kinds", num_micro_batches=1),
    "nothing but text": Case(batch="text", num_micro_batches=1),
}
PREFERENCES = ("dpo", "simpo")
HSDP = {"hsdp": Case("hsdp")}
"""Of four processes."""


def make_trainer_of(case: Case, folder: Path, degree: int) -> Trainer:
    config = make_config(
        4,
        stage=FLOWING,
        optimizer=OptimizerConfig(max_grad_norm=None),
        num_rows=6,
        num_micro_batches=case.num_micro_batches,
        sharding=Sharding(case.strategy, 2 if case.strategy == "hsdp" else None, degree),
        **case.changes,
    )
    sizes = make_model().config
    torch.manual_seed(0)
    model = UnifiedModel(replace(sizes, trunk={**sizes.trunk, **case.trunk}, ports={"latents": LATENTS}))
    return Trainer(Likelihood(model), make_mixture(), config, folder, "cpu")


def all_kinds() -> Batch:
    """Images that are looked at, of all positions and of fewer, and that were looked at before; codes, latents and text; an
    image and the patches of latents lie across the middle of rows."""
    template, random = make_template(), np.random.default_rng(0)

    def look(features: bool, num_positions: int) -> Segment:
        source = random.standard_normal((4, 32) if features else (3, 16, 16)).astype(np.float32).clip(-1, 1)
        return Segment(Kind.PIXELS, Image(num_positions, source, features))

    def told(*first: Segment) -> Sequence:
        return Sequence((*first, Segment.text(template.tokenizer.encode("A red square."), learn=True)))

    def flowing(key: int) -> Sequence:
        elements = LATENTS.to_elements(random.standard_normal((2, 4, 4)).astype(np.float32), key)
        return Sequence((Segment.text(template.tokenizer.encode("red")), Segment.array(Kind.LATENTS, elements, learn=True)))

    rows = [
        [told(look(False, 4), look(True, 4)), flowing(1), flowing(2), template.draw("red square", np.arange(4))],
        [told(*(look(False, 1) for _ in range(5))), told(look(True, 4), look(False, 4)), flowing(3)],
    ]
    return collate(rows, 64)


def batches_of(case: Case, trainer: Trainer) -> list[Batch]:
    if case.batch == "plan":
        return trainer.data()[0].batches
    if case.batch == "text":  # one short document: the second half of the rows is padding
        tokens = make_template().tokenizer.encode("There is one red square.")
        return [collate([[Sequence((Segment.text(tokens, learn=True),))]], 64)]
    return [all_kinds()]


def gradients(trainer: Trainer, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Of a step, in one piece, with its loss, its sums, and what was read."""
    trainer.objective.set_context(trainer.context)
    trainer.wrapped.train()
    loss, outcomes = trainer.gradient.backward(batches)
    found = {name: whole(p.grad).clone() for name, p in trainer.objective.named_parameters() if p.grad is not None}
    told = {"loss": loss.double(), "read": torch.tensor([read for read, _ in outcomes], dtype=torch.float64).sum(0)}
    for name in outcomes[0][1]:
        told[f"sums/{name}"] = torch.stack([torch.stack(sums[name]) for _, sums in outcomes]).double().sum(0)
    summed = {name: trainer.accelerator.reduce(value, "sum") for name, value in told.items()}
    return found | summed  # pyright: ignore[reportReturnType]


def every(folder: Path, degree: int, num_processes: int) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Of four processes those cases whose samples groups share out, and one of hsdp."""
    planned = {name: case for name, case in CASES.items() if case.batch == "plan"}
    for name, case in (CASES if num_processes < 4 else planned | HSDP).items():
        trainer = make_trainer_of(case, folder / name, degree)
        trainer.objective.set_attention(case.attention)
        yield name, gradients(trainer, batches_of(case, trainer))
    for name in PREFERENCES:
        trainer = make_joint_trainer(folder / name, name, 2, sharding=Sharding(context_parallel_degree=degree))
        yield name, gradients(trainer, trainer.data()[0].batches)


def write_all(folder: Path, degree: int = 1, num_processes: int = 1, rank: int = 0) -> None:
    own = folder / str(rank)
    own.mkdir(parents=True)
    for name, found in every(folder / "runs", degree, num_processes):
        save_file({key: tensor.contiguous() for key, tensor in found.items()}, own / f"{name}.safetensors")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]), int(sys.argv[2]), int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]))
    leave_group()
