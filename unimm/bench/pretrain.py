"""How much of a device a joint pretraining uses: a model of true size with random weights, its stage II, and nothing else.

The mixture is Janus', 2 : 3 : 5 samples of conversations about pictures, of plain text and of drawings, made of the built-in
shapes: pictures are drawn by the loader while training goes on and looked at by the frozen vision tower, codes of drawings are
random, texts are captions of many scenes one after another. What is counted, and what MFU is, says `unimm.training.flops`.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimm.bench.random_codes import CodedAtRandom
from unimm.bench.step_profile import StepProfile
from unimm.bench.subprocess_trials import peak_bytes
from unimm.data.mixture import Mixture, Source
from unimm.data.records import Record, Text
from unimm.data.template import PromptFormat, Template
from unimm.data.text import TextTokenizer, train_byte_bpe
from unimm.data.views import Conversation, Drawing, PlainText
from unimm.data.worlds.shapes import ShapesWorld
from unimm.models.unified import UnifiedConfig, UnifiedModel
from unimm.training.logbook import read_numbers
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import Budget, OptimizerConfig, Schedule
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer, TrainerConfig

LEARNS = ("projector", "trunk", "text_embedding", "text_head", "code_embedding", "code_head")
"""All but the vision tower, as in Janus' stage II."""

RATIO = {"understanding": 2.0, "text": 3.0, "drawing": 5.0}

NUM_RECORDS = 20_000
CAPTIONS_A_PAGE = 24
VOCABULARY = 2048


@dataclass(frozen=True)
class Setting:
    """How a step goes; see `TrainerConfig` for what has its name.

    num_steps, num_warm_up: measured, and passed over before. Each worker makes four batches ahead: with a shorter warm-up,
        waiting for data is not seen.
    """

    num_positions: int = 4096
    num_rows: int = 32
    num_micro_batches: int = 4
    num_steps: int = 20
    num_warm_up: int = 20
    precision: str = "bf16"
    compile: bool = True
    attention: str = "auto"
    activation_checkpointing: str = "none"
    num_workers: int = 4
    peak_tflops: float | None = None
    seed: int = 0


def run_pretraining(config: UnifiedConfig, setting: Setting, device: torch.device, profiles: bool = False) -> dict[str, float]:
    """Train for some steps, in this process.

    Args:
        config: sizes of the model; one that leaves its vocabulary to the text tokenizer takes a small one.
        setting: how.
        device: where.
        profiles: also say where the time goes (`unimm.bench.step_profile`), which takes time of its own.

    Returns:
        What a training logs as `speed/...`, `loss/...` and `data/fill`, over the steps after the warm-up, `ms_a_step`, and
        `peak_gib` of the device, on a CPU of the process; and, with profiles, `share/...` of the time of these steps.
    """
    world = ShapesWorld(num_records=NUM_RECORDS, seed=setting.seed)
    tokenizer = train_byte_bpe(_texts(world), min(VOCABULARY, config.trunk["vocab_size"]))
    torch.manual_seed(setting.seed)
    with device:  # a thousand times as fast as on a CPU, where that is a GPU
        model = UnifiedModel(config)
    trainer_config = TrainerConfig(
        budget=Budget(max_steps=setting.num_warm_up + setting.num_steps),
        stage=Stage("bench", dict.fromkeys(LEARNS, 1.0)),
        schedule=Schedule("constant"),
        optimizer=OptimizerConfig(lr=1e-4),
        num_positions=setting.num_positions,
        num_rows=setting.num_rows,
        num_micro_batches=setting.num_micro_batches,
        precision=setting.precision,
        compile=setting.compile,
        attention=setting.attention,
        activation_checkpointing=setting.activation_checkpointing,
        report_every=setting.num_warm_up + setting.num_steps,
        save_minutes=60.0,
        num_workers=setting.num_workers,
        peak_tflops=setting.peak_tflops,
    )
    with tempfile.TemporaryDirectory() as folder:
        mixture = _mixture(world, model, tokenizer, setting.seed)
        trainer = _Measured(Likelihood(model), mixture, trainer_config, Path(folder), str(device))
        trainer.num_warm_up = setting.num_warm_up
        trainer.shares = {}
        trainer.profile = StepProfile(model, trainer.is_compiled, device) if profiles else None
        trainer.fit()
        numbers = read_numbers(Path(folder) / "metrics.jsonl")[-1]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
    names = ("speed/", "loss/", "data/")
    reported = {name: value for name, value in numbers.items() if name.startswith(names)}
    seconds = trainer.seconds - trainer.seconds_before
    shares = {f"share/{name}": share for name, share in trainer.shares.items()}
    return {**reported, **shares, "ms_a_step": 1e3 * seconds / setting.num_steps, "peak_gib": peak / 2**30}


class _Measured(Trainer):
    """A trainer that counts anew after its warm-up, and keeps nothing. What is profiled are whole steps after it, with the wait
    for their batches."""

    num_warm_up: int
    seconds_before: float
    profile: StepProfile | None = None
    shares: dict[str, float]

    def update(self, batch: Any, meter: Any, totals: list[float] | None = None) -> None:
        if self.step == self.num_warm_up:
            self.settle()
            meter.report(self.rate(), self.accelerator)
            self.seconds_before = self.seconds
        super().update(batch, meter, totals)
        if self.profile is not None and self.step == self.num_warm_up - 1:
            self.settle()
            self.profile.start()
        if self.profile is not None and self.step + 1 == self.loop_config.budget.max_steps:
            self.shares = self.profile.stop()

    def save(self) -> None:
        """These weights are not kept."""


def _texts(world: ShapesWorld) -> Iterator[str]:
    for index in range(300):
        record = world[index]
        yield from (text.text for text in record.captions)
        yield from (text for question in record.questions for text in (question.text, question.answer))


def _mixture(world: ShapesWorld, model: UnifiedModel, tokenizer: TextTokenizer, seed: int) -> Mixture:
    config, codes = model.config, model.config.codes
    assert codes is not None, "drawing is part of what is measured"
    sources = [
        Source("look", world, Conversation(10, 0.15)),
        Source("text", _Pages(world), PlainText()),
        Source("draw", CodedAtRandom(world, codes.num_codes, codes.codebook_size), Drawing(0.1)),
    ]
    template = Template(tokenizer, PromptFormat(), config.vision.image_size, model.num_image_positions)
    return Mixture(sources, template, seed, ratio=RATIO)


@dataclass(frozen=True)
class _Pages:
    """Captions of neighbours in a world as one text."""

    world: ShapesWorld

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> Record:
        captions = (self.world[(index + step) % len(self.world)].captions for step in range(CAPTIONS_A_PAGE))
        return Record(f"page/{index}", text=Text(" ".join(texts[0].text for texts in captions)))
