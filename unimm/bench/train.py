"""How fast a model learns to see, here and in `transformers`' Trainer: the same Janus, conversations, optimizer and stage.

What is compared is understanding alone, for `transformers` cannot train drawing. Each trial is a process of its own, in turns.
Conversations about the built-in worlds come from one stream: the Trainer gets them ready-made in memory, as token ids and
pixels, and pads them in its own best way, batches of about the same length; here texts are made where rows are planned, many
steps at once, mostly before the first one and then not measured, and pictures while training goes on, as always. Only real
tokens count, those that are no padding, over the steps after the warm-up, with everything else that a step takes.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimm.batch import Batch, collate
from unimm.bench.subprocess_trials import peak_bytes
from unimm.checkpoints.bundle import ModelBundle
from unimm.data.mixture import Mixture, Source
from unimm.data.plan import Planned, Steps
from unimm.data.views import Conversation
from unimm.data.worlds.digits import DigitsWorld
from unimm.data.worlds.shapes import ShapesWorld
from unimm.inference.engine import Engine
from unimm.models.attention import BACKENDS
from unimm.training.logbook import read_numbers
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import Budget, OptimizerConfig, Schedule
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer, TrainerConfig

STAGE = ("projector", "trunk", "text_embedding", "text_head")
"""What is trained: as in Janus' stage II, but for the parts that only drawings train."""

THEIR_STAGE = ("model.aligner", "model.language_model", "lm_head")


@dataclass(frozen=True)
class Trial:
    """One measurement.

    who: "unimm", "unimm, unpacked" with a row a conversation, or "unimm, BACKEND" with another attention backend
        (`unimm.models.attention.BACKENDS`); "transformers", or "transformers, compiled".
    num_samples: conversations a step; packed, as many rows of `num_positions` as they take on the average.
    num_steps, num_warm_up: measured, and passed over before.
    compile: of unimm's trials.
    """

    who: str
    folder: str
    device: str
    precision: str
    num_samples: int = 32
    num_positions: int = 3072
    num_steps: int = 30
    num_warm_up: int = 10
    compile: bool = True
    seed: int = 0


def run_trial(trial: Trial) -> dict[str, float]:
    """Measure once, in this process.

    Returns:
        `tokens_a_second` and `images_a_second` (real ones), `ms_a_step`, `fill` (the share of positions that are no padding),
        `loss` over all steps, in nats (here the mean of all learned tokens, there that of the steps' means), and `peak_gib` of
        the device, on a CPU of the process.
    """
    engine = Engine(ModelBundle.load(trial.folder, dtype=torch.float32))
    run = _run_ours if trial.who.startswith("unimm") else _run_theirs
    with tempfile.TemporaryDirectory() as folder:
        measured = run(trial, engine, conversations(engine, trial.seed), Path(folder))
    device = torch.device(trial.device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
    return {**measured, "peak_gib": peak / 2**30}


def conversations(engine: Engine, seed: int) -> Mixture:
    """What is learned: captions and answers of the two built-in worlds, in both languages."""
    sources = [
        Source("shapes", ShapesWorld(num_records=100_000, seed=seed), Conversation(10, 0.15), 0.75),
        Source("digits", DigitsWorld(num_records=20_000, seed=seed), Conversation(8, 0.2), 0.25),
    ]
    return Mixture(sources, engine.template, seed)


@dataclass
class Clock:
    """Counts what comes after the warm-up."""

    num_warm_up: int
    steps: int = 0
    tokens: int = 0
    positions: int = 0
    images: int = 0
    started: float = 0.0
    ended: float = 0.0

    def count(self, tokens: int, positions: int, images: int) -> None:
        """A step is over that read so much."""
        self.steps += 1
        now = time.perf_counter()
        if self.steps <= self.num_warm_up:
            self.started = now
            return
        self.tokens += tokens
        self.positions += positions
        self.images += images
        self.ended = now

    def measured(self, loss: float) -> dict[str, float]:
        """The figures of a trial."""
        seconds = self.ended - self.started
        return {
            "tokens_a_second": self.tokens / seconds,
            "images_a_second": self.images / seconds,
            "ms_a_step": 1e3 * seconds / (self.steps - self.num_warm_up),
            "fill": self.tokens / self.positions,
            "loss": loss,
        }


class _Unpacked(Steps):
    """A row a conversation, as long as the longest of the batch."""

    def _collate(self, rows: list[list[Planned]]) -> Batch:
        return collate([[sequence] for row in rows for one in row for sequence in one.sequences])


class _Timed(Trainer):
    """A trainer that reports its steps to the clock."""

    clock: Clock
    is_packed: bool

    def data(self) -> Steps:
        steps = super().data()
        return steps if self.is_packed else _Unpacked(steps.plan)

    def update(self, batch: Any, meter: Any, totals: list[float] | None = None) -> None:
        super().update(batch, meter, totals)
        read = batch.batches
        numbers = [sum(each) for each in zip(*((b.num_elements, b.tokens.numel(), b.num_images) for b in read), strict=True)]
        self.clock.count(*numbers)


def _run_ours(trial: Trial, engine: Engine, mixture: Mixture, folder: Path) -> dict[str, float]:
    lengths = [mixture.sequence(sample).length for sample in mixture.samples(0, 500)]
    num_steps = trial.num_warm_up + trial.num_steps
    num_tokens = round(trial.num_samples * sum(lengths) / len(lengths))
    num_positions = min(trial.num_positions, max(num_tokens, *lengths))  # a step of few conversations is a shorter row
    config = TrainerConfig(
        budget=Budget(max_steps=num_steps),
        stage=Stage("bench", dict.fromkeys(STAGE, 1.0)),
        schedule=Schedule("constant"),
        optimizer=OptimizerConfig(lr=1e-4),
        num_positions=num_positions,
        num_rows=max(1, round(num_tokens / num_positions)),
        precision=trial.precision,
        compile=trial.compile,
        attention=backend if (backend := trial.who.removeprefix("unimm, ")) in BACKENDS else "auto",
        report_every=num_steps,
        save_minutes=60.0,
        num_workers=0 if trial.device == "cpu" else 4,
    )
    for parameter in engine.model.train().parameters():
        parameter.data = parameter.data.clone()
    trainer = _Timed(Likelihood(engine.model), mixture, config, folder, trial.device)
    trainer.clock, trainer.is_packed = Clock(trial.num_warm_up), trial.who != "unimm, unpacked"
    trainer.fit()
    return trainer.clock.measured(read_numbers(folder / "metrics.jsonl")[-1]["loss/text"])


def _run_theirs(trial: Trial, engine: Engine, mixture: Mixture, folder: Path) -> dict[str, float]:
    import transformers
    from transformers import JanusForConditionalGeneration, TrainerCallback, TrainingArguments

    num_steps = trial.num_warm_up + trial.num_steps
    model: Any = JanusForConditionalGeneration.from_pretrained(trial.folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(THEIR_STAGE))
    placeholder = model.config.image_token_id
    items = [
        _as_janus_reads(mixture.sequence(sample), placeholder) for sample in mixture.samples(0, num_steps * trial.num_samples)
    ]
    clock = Clock(trial.num_warm_up)
    read: list[tuple[int, int, int]] = []

    def pad(chosen: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(item["input_ids"]) for item in chosen)
        read.append((sum(len(item["input_ids"]) for item in chosen), longest * len(chosen), len(chosen)))
        padded = {
            name: torch.tensor([[*item[name], *[filler] * (longest - len(item[name]))] for item in chosen])
            for name, filler in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
        }
        return {**padded, "pixel_values": torch.stack([item["pixel_values"] for item in chosen])}

    class Reporter(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.count(*read.pop(0))

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=trial.num_samples,
        max_steps=num_steps,
        use_cpu=trial.device == "cpu",
        bf16=trial.precision == "bf16",
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        torch_compile=trial.who.endswith("compiled"),
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=trial.seed,
        **_by_length(TrainingArguments),
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=_Items(items), data_collator=pad, callbacks=[Reporter()]
    )
    return clock.measured(trainer.train().training_loss)


def _by_length(arguments: Any) -> dict[str, Any]:
    """The option that makes batches of about the same length; its name has changed."""
    names = arguments.__dataclass_fields__
    return {"train_sampling_strategy": "group_by_length"} if "train_sampling_strategy" in names else {"group_by_length": True}


class _Items(torch.utils.data.Dataset):
    """Conversations in memory."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def _as_janus_reads(sequence: Any, placeholder: int) -> dict[str, Any]:
    """A conversation as `transformers`' Janus takes it: what it learns, it shifts itself."""
    ids, labels, pixels = [], [], None
    for segment in sequence.segments:
        own = [placeholder] * segment.length if segment.image else list(segment.ids)
        pixels = segment.pixels if segment.image else pixels
        ids += own
        labels += own if segment.learn else [-100] * len(own)
    assert pixels is not None
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "pixel_values": torch.from_numpy(pixels)}


def main() -> None:
    """One trial: JSON in, JSON out."""
    measured = run_trial(Trial(**json.loads(sys.argv[1])))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
