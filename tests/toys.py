"""What tests of data and training share: 12 toy pictures, all tasks on them as a mixture, and a tiny model to learn them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_model, tiny_text_tokenizer

from unimm.data.mixture import Mixture, Source
from unimm.data.plan import Plan, Steps
from unimm.data.records import Question, Record, Text
from unimm.data.template import PromptFormat, Template
from unimm.data.views import Conversation, Drawing, PlainText
from unimm.models.unified import UnifiedModel
from unimm.training.objectives.likelihood import Likelihood, Objective
from unimm.training.optimizers import Budget, Schedule
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer, TrainerConfig

COLOURS = {"red": (250, 30, 30), "green": (30, 250, 30), "blue": (30, 30, 250)}
PLACES = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")
EVERYTHING = Stage(
    "everything",
    dict.fromkeys(("vision", "projector", "trunk", "text_embedding", "text_head", "code_embedding", "code_head"), 1.0),
)


class Squares:
    """16-px pictures of one coloured square in one of four corners; their codes say which."""

    def __len__(self) -> int:
        return len(COLOURS) * len(PLACES)

    def __getitem__(self, index: int) -> Record:
        colour, place = list(COLOURS)[index // 4], index % 4
        image = np.zeros((16, 16, 3), dtype=np.uint8)
        image[8 * (place // 2) :, 8 * (place % 2) :][:8, :8] = COLOURS[colour]
        codes = np.zeros(4, dtype=np.int64)
        codes[place] = 1 + index // 4
        return Record(
            key=f"squares/{index}",
            image=image,
            captions=(Text(f"A {colour} square {PLACES[place]}."), Text(f"一个正方形 {index}", "zh")),
            prompts=(Text(f"{colour} square"),),
            codes=codes,
            questions=(Question("What colour is it?", colour), Question("Where is it?", PLACES[place])),
            text=Text(f"There is one {colour} square."),
        )


def make_template() -> Template:
    """The prompt format for the tiny model."""
    return Template(tiny_text_tokenizer(), PromptFormat(), image_size=16, num_positions=4)


def make_mixture(drop: float = 0.1, seed: int = 0) -> Mixture:
    """Talk, drawings and plain text, in uneven shares."""
    sources = [
        Source("talk", Squares(), Conversation(num_turns=2), 5.0),
        Source("draw", Squares(), Drawing(drop), 2.0),
        Source("text", Squares(), PlainText(), 1.0),
    ]
    return Mixture(sources, make_template(), seed)


def make_steps(mixture: Mixture, num_rows: int = 9, **words: int) -> Steps:
    """The steps of one rank, in rows as `make_config` has them."""
    return Steps(Plan(mixture, 64, num_rows), **words)


def make_model() -> UnifiedModel:
    """The tiny model, with the vocabulary of the tiny tokenizer."""
    return tiny_model(len(tiny_text_tokenizer()))


def make_config(max_steps: int, **changes: Any) -> TrainerConfig:
    """A short run of AdamW in fp32 that reports every step and makes its batches itself."""
    config = TrainerConfig(
        budget=Budget(max_steps=max_steps),
        stage=EVERYTHING,
        schedule=Schedule("constant"),
        num_positions=64,
        num_rows=9,
        report_every=1,
        save_minutes=60.0,
        num_workers=0,
    )
    return replace(config, **changes)


def make_trainer(
    folder: Path,
    config: TrainerConfig,
    mixture: Mixture | None = None,
    objective: Callable[[UnifiedModel], Objective] = Likelihood,
    **words: Any,
) -> Trainer:
    """A trainer of a fresh tiny model, the same one every time."""
    torch.manual_seed(0)
    return Trainer(objective(make_model()), mixture or make_mixture(), config, folder, **{"device": "cpu", **words})
