"""Train the unified model: `unimm train`, or by a launcher: `accelerate launch -m unimm.train +experiment=...`,
`torchrun -m unimm.train ...`, all with the same words.
"""

import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from unimm.cli.build import (
    build,
    build_datasets,
    build_mixture,
    build_model,
    build_template,
    build_text_tokenizer,
    open_image_tokenizer,
    open_start,
    run_with_hydra,
    save_config,
    seed_everything,
    with_features,
)
from unimm.data.mixture import Mixture
from unimm.data.template import PromptFormat
from unimm.eval.runner import evaluate
from unimm.eval.suites import build_suite
from unimm.inference.drawing import DrawingProgress
from unimm.inference.engine import Engine
from unimm.inference.load import load
from unimm.models.adapter_folder import save_adapter
from unimm.models.image_tokenizer import ImageTokenizer
from unimm.models.lora import attach, merge
from unimm.models.starts import start_codes, start_vision
from unimm.models.tokenizer_folder import fingerprint
from unimm.models.unified import UnifiedModel
from unimm.training.logbook import Logbook
from unimm.training.trainer import Trainer

SAMPLE_PROMPTS = 8

logger = logging.getLogger(__name__)


def train(config: DictConfig) -> Path:
    """Run one stage to its end, write the model, and score it where a suite is named. Adapters are written by themselves, to
    `out`/adapter, and merged into the model.

    Returns:
        The model's folder, `out`/model.

    Raises:
        ValueError: the configuration names something that is not there.
    """
    out = Path(config.out)
    if config.lora is not None and config.init_from is None:
        raise ValueError("LoRA adapts a model that has learned already: add init_from=FOLDER, or leave lora out.")
    if config.suite is not None:
        build_suite(config.suite)  # a name that is none is told now, not after hours
    seed_everything(config.seed)
    image_tokenizer = open_image_tokenizer(config)
    datasets = build_datasets(config, fingerprint(image_tokenizer))
    start_from = None if config.init_from is None else open_start(config)
    tokenizer = start_from.tokenizer if start_from else build_text_tokenizer(config, datasets.values())
    model = start_from.model if start_from else build_model(config, tokenizer, image_tokenizer)
    adapt(model, config)
    template = build_template(config, tokenizer, model, start_from.prompt_format if start_from else PromptFormat())
    mixture = build_mixture(config, with_features(config, datasets, model, template.prompt_format), template)
    if start_from is None:
        start(model, image_tokenizer, mixture, config.whitened_images)
        if "vision" not in config.stage.learns:
            logger.warning(
                f"The vision tower has learned nothing yet, and the stage '{config.stage.name}' leaves it as it is: "
                f"give init_from=FOLDER of a model that can see, or choose stage=scratch."
            )
    drawing = start_from.drawing if start_from else None
    engine = Engine(model, image_tokenizer, tokenizer, template.prompt_format, drawing)
    objective = build(config.objective, model=model)

    def sample_unless_stopped(step: int, logbook: Logbook) -> None:
        sample(engine, mixture, step, logbook, lambda: trainer.stop.made)

    trainer = Trainer(objective, mixture, build(config.trainer), out, config.device, sample_unless_stopped)
    image_tokenizer.to(engine.device)
    if trainer.is_main:
        save_config(config, out)
    trainer.fit()
    trained = trainer.whole_model(lambda: adapt(UnifiedModel(model.config), config))
    if trained is not None:
        finish(Engine(trained.eval(), image_tokenizer, tokenizer, template.prompt_format, drawing), config)
    trainer.ranks.wait()
    return out / "model"


def adapt(model: UnifiedModel, config: DictConfig) -> UnifiedModel:
    """The model, with adapters where the configuration asks for them."""
    if config.lora is not None:
        attach(model, build(config.lora))
    return model


def finish(engine: Engine, config: DictConfig) -> None:
    """Write down what has learned: the model, before it the adapter that was merged into it, and after it its scores."""
    out = Path(config.out)
    if config.lora is not None:
        save_adapter(out / "adapter", engine.model, engine.image_tokenizer, str(config.init_from), config.stage.learns)
        merge(engine.model)
    engine.save(out / "model")
    if config.suite is not None:
        evaluate(load(out / "model", config.device), build_suite(config.suite), out / "scores")


def start(model: UnifiedModel, image_tokenizer: ImageTokenizer, mixture: Mixture, num_images: int) -> None:
    """Give a fresh model what data and image tokenizer know: whitened patches of `num_images` training images (0: none of
    it), and the tokenizer's codebook where the code embedding has its form.
    """
    images = list(islice(mixture.images(), num_images))
    if images:
        start_vision(model.pixels.tower, torch.from_numpy(np.stack(images)))
    codebook = image_tokenizer.quantize.codebook
    if codebook.shape == model.codes.embedding.weight.shape:
        start_codes(model.codes, codebook)


def sample(engine: Engine, mixture: Mixture, step: int, logbook: Logbook, is_stopped: Callable[[], bool]) -> None:
    """Captions of, and drawings after, a few training records: what the model can do so far, unless the run is to end."""
    datasets = [source.dataset for source in mixture.sources[:2]]
    records = [dataset[index] for dataset in datasets for index in range(min(SAMPLE_PROMPTS // 2, len(dataset)))]
    records = [record for record in records if record.image is not None and record.captions]
    if not records or is_stopped():
        return
    captions = engine.caption([record.image for record in records], max_new_tokens=64)
    prompts = [record.captions[0].text for record in records]
    lines = [f"{prompt}\n    -> {caption}" for prompt, caption in zip(prompts, captions, strict=True)]
    logbook.text(step, "captions", "\n".join(lines))

    def leave_early(progress: DrawingProgress) -> None:
        if is_stopped():
            raise _Stopped

    try:
        drawings = [images[0] for images in engine.generate_images(prompts, callback=leave_early)]
    except _Stopped:
        return
    logbook.picture(step, "drawings", _row(drawings))


class _Stopped(Exception):
    """The run is to end: its drawings need not be finished."""


def _row(images: list[Image.Image]) -> Image.Image:
    width, height = images[0].size
    row = Image.new("RGB", (width * len(images), height))
    for index, image in enumerate(images):
        row.paste(image, (index * width, 0))
    return row


def main(argv: list[str] | None = None) -> None:
    """The command: Hydra's words in, a trained model out."""
    run_with_hydra("train", train, argv)


if __name__ == "__main__":
    main()
