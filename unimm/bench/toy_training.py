"""Small real trainings of the shapes world, made to be killed: seconds long, with all parts of real ones, witnessed by step.

What a process learned from is written beside the run, a line a step, as a digest of the batch: run/order-RANK.txt.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import vector_quantize_pytorch  # noqa: F401  so is this
from accelerate import PartialState
from transformers.models.llama import configuration_llama  # noqa: F401  loaded once for all lives, forks of one process

from unimm.bench.random_codes import CodedAtRandom
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.mixture import Mixture, Source
from unimm.data.template import PromptFormat, Template
from unimm.data.text import train_byte_bpe
from unimm.data.views import Conversation, Drawing
from unimm.data.worlds.shapes import ShapesWorld
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig
from unimm.models.unified import CodesConfig, UnifiedConfig, UnifiedModel
from unimm.models.vision.tower import VisionConfig
from unimm.training.image_tokenizer.discriminator import AdversaryConfig
from unimm.training.image_tokenizer.trainer import TokenizerTrainer, TokenizerTrainerConfig
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import Budget, OptimizerConfig, Schedule
from unimm.training.sharding import Sharding
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer, TrainerConfig

SAVE_EVERY = 3
PARTS = ("vision", "projector", "trunk", "text_embedding", "text_head", "code_embedding", "code_head")
SEED = 0
SHARDINGS = ("ddp", "fsdp", "context")
"""Whole in each process; in shards; in shards, with rows that all processes share (context parallelism)."""


@dataclass(frozen=True)
class ToyTraining:
    """One training: of a "unified" model or of an image "tokenizer" (with its averaged weights and an adversary). sharding: how
    several processes hold a unified one: one of `SHARDINGS`."""

    model: str
    num_steps: int
    num_workers: int = 0
    num_processes: int = 1
    sharding: str = "ddp"


def live(training: ToyTraining, folder: Path, rank: int, port: int) -> None:
    """One life of one process of a training: from its newest checkpoint to the end, or to a kill."""
    multiprocessing.set_start_method("fork", force=True)  # workers come as in a process of its own, not from a server
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    silence = os.open(folder / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    set_launched(rank, training.num_processes, port)
    torch.manual_seed(SEED)
    trainer = _make_unified(training, folder) if training.model == "unified" else _make_tokenizer(training, folder)
    _witness(trainer, folder / f"order-{rank}.txt")
    trainer.fit()


def set_launched(rank: int, num_processes: int, port: int) -> None:
    """Make this one of several processes, as torchrun sets them."""
    if num_processes > 1:
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _make_unified(training: ToyTraining, folder: Path) -> Trainer:
    world = CodedAtRandom(ShapesWorld(num_records=64), num_codes=4, codebook_size=32)
    texts = (caption.text for index in range(20) for caption in world[index].captions)
    text_tokenizer = train_byte_bpe(texts, 300)
    trunk = {
        "model_type": "llama",
        "vocab_size": len(text_tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "attention_dropout": 0.1,  # chance has to go on as it would have
    }
    vision = VisionConfig(image_size=16, patch_size=8, width=32, num_layers=1, num_heads=2)
    model = UnifiedModel(UnifiedConfig(trunk=trunk, vision=vision, codes=CodesConfig(num_codes=4, codebook_size=32)))
    template = Template(text_tokenizer, PromptFormat(), image_size=16, num_positions=4)
    sources = [Source("talk", world, Conversation(num_turns=1), 1.0), Source("draw", world, Drawing(0.1), 1.0)]
    config = TrainerConfig(
        budget=Budget(max_steps=training.num_steps),
        schedule=Schedule("cosine", warmup_steps=5),
        stage=Stage("toy", dict.fromkeys(PARTS, 1.0)),
        optimizer=OptimizerConfig(muon_lr=0.02, weight_decay=0.1),
        num_positions=128,
        num_rows=4,
        ema_decay=0.9,
        report_every=1,
        save_every=SAVE_EVERY,
        save_minutes=60.0,
        num_workers=training.num_workers,
        sharding=_sharding(training),
    )
    return Trainer(Likelihood(model), Mixture(sources, template, SEED), config, folder, "cpu")


def _sharding(training: ToyTraining) -> Sharding:
    if training.sharding == "context":
        return Sharding("fsdp", context_parallel_degree=training.num_processes)
    return Sharding(training.sharding)


def _make_tokenizer(training: ToyTraining, folder: Path) -> TokenizerTrainer:
    PartialState(cpu=True)  # the process group comes before the codebook
    quantizer = QuantizerConfig(codebook_size=32, code_dim=4)
    sizes = ImageTokenizerConfig(16, 32, (1, 1), 1, 32, quantizer=quantizer)
    config = TokenizerTrainerConfig(
        budget=Budget(max_steps=training.num_steps),
        schedule=Schedule("cosine", warmup_steps=5),
        adversary=AdversaryConfig(start_step=10, channels=8, num_layers=1),
        muon_lr=0.02,
        ema_decay=0.9,
        report_every=1,
        save_every=SAVE_EVERY,
        save_minutes=60.0,
        num_workers=training.num_workers,
        seed=SEED,
    )
    tokenizer = ImageTokenizer(sizes, sync_codebook=training.num_processes > 1)
    batches = ImageBatches([ImageSource(ShapesWorld(num_records=64))], 4, sizes.image_size, SEED)
    return TokenizerTrainer(tokenizer, batches, config, folder, "cpu")


def _witness(trainer: Any, path: Path) -> None:
    """Write what each step learns from, before it is learned."""
    learn = trainer.update

    def update(batch: Any, *words: Any) -> None:
        digest = hashlib.sha256()
        for tensor in _tensors(batch):
            digest.update(tensor.contiguous().numpy().tobytes())
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{trainer.step + 1} {digest.hexdigest()}\n")
        learn(batch, *words)

    trainer.update = update


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(content):
        yield content
    elif isinstance(content, list | tuple):
        for item in content:
            yield from _tensors(item)
    elif is_dataclass(content):
        for field in fields(content):
            yield from _tensors(getattr(content, field.name))
