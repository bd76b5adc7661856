"""`unimm train`: one stage of the unified model, from a composed configuration to a model's folder."""

import copy
import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from unimm.checkpoints.adapter_folder import save_adapter
from unimm.checkpoints.bundle import ModelBundle
from unimm.cli.builders import NEW, TEXT_TOKENIZER
from unimm.cli.compose import build, run_with_hydra, seed_everything, settings_of
from unimm.cli.learner import Learner, check_start, open_learner, with_sizes
from unimm.cli.results import print_training_results
from unimm.cli.resume_settings import Resuming
from unimm.cli.rollouts import check_rollouts, make_trainer
from unimm.data.image import crop, decode_image, pixels_to_array
from unimm.data.mixture import Mixture
from unimm.data.records import Dataset, Record, first_records
from unimm.data.stores.digests import suppress_bad
from unimm.eval.report.pictures import Tile, draw_grid
from unimm.eval.runner import evaluate
from unimm.eval.suites import build_suite
from unimm.eval.validation import LOSS, Validation, ValidationConfig
from unimm.inference.decode.scheduler import Stopped
from unimm.inference.engine import Engine, load
from unimm.models.initialization import init_codes_from_codebook, init_vision_from_patches
from unimm.models.lora import adapted_layers, merge
from unimm.models.unified import UnifiedModel
from unimm.runtime.atomic_files import whole_folder
from unimm.runtime.devices import choose_device, evaluation_dtype
from unimm.runtime.number_checks import check_probability, check_whole
from unimm.training.logbook import Logbook
from unimm.training.objectives.likelihood import Objective
from unimm.training.trackers import TrackingConfig
from unimm.training.trainer import TrainerConfig

ONLY_OF_NEW_RUNS = ("lora", "objective", "rollouts")
"""Groups of settings that no run may change on its way."""

SAMPLES_A_ROW = 8

logger = logging.getLogger(__name__)


def train(config: DictConfig) -> Path:
    """Run one stage to its end, write the model, and score it where a suite is named. Adapters are written to `out`/adapter,
    and merged into the model. With an EMA it is the average that is written; with validation, the best model so
    far lies in `out`/best.

    Returns:
        The model's folder, `out`/model.

    Raises:
        ValueError: the configuration names something that is not there.
    """
    out = Path(config.out)
    trainer_config, validation_config, tracking = build_settings(config)
    own_sizes = config.init_from is None or config.init_parts is not None or config.fresh_parts is not None
    run = Resuming(config, "trainer", (*ONLY_OF_NEW_RUNS, *(("model",) if own_sizes else ())))
    seed_everything(config.seed)
    learner = open_learner(config)
    run.check(learner.fingerprints)
    run.config = with_sizes(config, learner.bundle.model)
    model, mixture = learner.bundle.model, learner.mixture
    initialize(learner, config)
    objective: Objective = build(config.objective, model=model)
    objective.load_heads(learner.bundle.heads)

    def is_stopped() -> bool:
        return trainer.stop.made

    validation = Validation(validation_config, out / "best", save_merged, is_stopped)

    def sample_records(model: UnifiedModel, step: int, logbook: Logbook) -> None:
        sample(
            Engine(learner.bundle_of(model, trainer.heads), is_stopped=is_stopped), mixture, step, logbook, config.num_samples
        )

    def validate(model: UnifiedModel, step: int, losses: dict[str, float]) -> dict[str, float] | None:
        if step == 0 and validation_config.keep and (learner.fresh or config.text_tokenizer is not None):
            before = load(config.init_from, config.device, "float32", is_stopped=is_stopped)  # what it knew, as it was
            return validation(before, step, losses)
        return validation(Engine(learner.bundle_of(model, trainer.heads), is_stopped=is_stopped), step, losses)

    callbacks = {"sample": sample_records, "validate": validate, "held_out": learner.held_out}
    trainer = make_trainer(config, learner, objective, trainer_config, out, **callbacks)
    trainer.say([] if trainer.step else learner.notes)
    run.follow(trainer)
    if trainer.is_main and trainer.step:  # else what lies there is of an earlier run
        validation.resume()
    elif trainer.is_main and (config.text_tokenizer == NEW or (config.text_tokenizer or config.init_from) is None):
        with whole_folder(out / TEXT_TOKENIZER, "tokenizer.json", "a text tokenizer's folder") as folder:
            mixture.template.tokenizer.save(folder)
    trainer.track(tracking, settings_of(run.config))
    trainer.fit()
    with trainer.averaged():
        trainer.run_on_rank0(lambda model: finish(learner.bundle_of(model.eval(), trainer.heads), config), torch.device("cpu"))
        trainer.ranks.barrier()
    return out / "model"


def build_settings(config: DictConfig) -> tuple[TrainerConfig, ValidationConfig, TrackingConfig]:
    """The settings of trainer, validation and trackers; what is wrong in the configuration fails here, before anything is read.

    Raises:
        ValueError: a setting is out of range, unknown, or contradicts another.
    """
    check_whole(config, 0, "whitened_images")
    check_whole(config, 1, "text_vocabulary", "num_samples")
    check_probability(config, "max_bad")
    check_start(config)
    check_rollouts(config)
    if config.suite is not None:
        build_suite(config.suite)
    trainer: TrainerConfig = build(config.trainer)
    validation: ValidationConfig = build(config.validation)
    check_held_out(config, trainer, validation)
    if validation.keep:
        check_keep(config, trainer)
        trainer = replace(trainer, validate_at_start=True)
    tracking: TrackingConfig = build(config.tracking)
    tracking.check()
    return trainer, validation, tracking


def check_held_out(config: DictConfig, trainer: TrainerConfig, validation: ValidationConfig) -> None:
    """Raises ValueError where records would be held out for nothing, or their loss is to choose and there are none."""
    check_whole(config, 0, "held_out")
    if config.held_out and not trainer.validate_every:
        raise ValueError("No validation uses the records that are held out: add trainer.validate_every=STEPS, or held_out=0.")
    if validation.monitor == LOSS and not config.held_out:
        raise ValueError(f"validation.monitor={LOSS} is the loss on records that are held out: add held_out=RECORDS.")


def check_keep(config: DictConfig, trainer: TrainerConfig) -> None:
    """Raises ValueError where scores are to be kept and there is no model that has any, or no validation that compares."""
    if config.init_from is None:
        raise ValueError("validation.keep names what a model knows already: add init_from=FOLDER, or leave it out.")
    if not trainer.validate_every:
        raise ValueError("No validation compares the scores of validation.keep: add trainer.validate_every=STEPS.")


def save_merged(engine: Engine, folder: Path, write_more: Callable[[Path], object]) -> None:
    """Write the model of an engine as it is now. Adapters are merged into a copy of one that is being trained, which stays as
    it is."""
    bundle = engine.bundle
    if adapted_layers(bundle.model):
        is_trained = any(parameter.requires_grad for parameter in bundle.model.parameters())
        model = copy.deepcopy(bundle.model) if is_trained else bundle.model  # what was gathered from shards is a copy already
        merge(model)
        bundle = replace(bundle, model=model)
    bundle.save(folder, write_more=write_more)


def finish(bundle: ModelBundle, config: DictConfig) -> None:
    """Write the trained model; before it the adapter that was merged into it, and after it its scores."""
    out = Path(config.out)
    if config.lora is not None:
        base, trained, drawing = str(config.init_from), config.stage.lr_scales, asdict(bundle.drawing)
        save_adapter(out / "adapter", bundle.model, bundle.image_tokenizer, base, trained, drawing)
        merge(bundle.model)
    bundle.save(out / "model")
    if config.suite is not None:
        dtype = evaluation_dtype(config.validation.precision, choose_device(config.device))
        engine = load(out / "model", config.device, dtype)
        evaluate(engine, build_suite(config.suite), out / "scores", existing="replace")


def initialize(learner: Learner, config: DictConfig) -> None:
    """Initialise the fresh parts of a model from its data and image tokenizer: the patch embedding from whitened patches of
    `whitened_images` training images (0: not), the code embedding from the tokenizer's codebook where it has its form. A fresh
    vision tower that the stage freezes is warned of.
    """
    model, fresh = learner.bundle.model, learner.fresh
    if "vision" in fresh and "vision" not in config.stage.lr_scales:
        logger.warning(
            f"The vision tower is untrained, and the stage '{config.stage.name}' freezes it: "
            f"give init_from=FOLDER of a model that can see, or choose stage=scratch."
        )
    images = list(islice(learner.mixture.images(), config.whitened_images)) if "vision" in fresh else []
    if images:
        init_vision_from_patches(model.pixels.tower, torch.from_numpy(np.stack(images)))
    codebook = learner.bundle.image_tokenizer.quantize.codebook
    has_codes = model.config.codes is not None and fresh >= {"code_embedding", "code_head"}
    if has_codes and codebook.shape == model.codes.embedding.weight.shape:
        init_codes_from_codebook(model.codes, codebook)


def sample(engine: Engine, mixture: Mixture, step: int, logbook: Logbook, num_samples: int = 8) -> None:
    """Write captions of the first training records to the logbook, and drawings from their captions below their originals where
    the model draws, unless the run is stopped."""
    records = _first_captioned([source.dataset for source in mixture.sources[:2]], num_samples, bool(mixture.max_bad))
    if not records:
        return
    prompts = [record.captions[0].text for record in records]
    with suppress(Stopped):
        captions = engine.caption([record.image for record in records], max_new_tokens=64)
        lines = [f"{prompt}\n    -> {caption}" for prompt, caption in zip(prompts, captions, strict=True)]
        logbook.text(step, "captions", "\n".join(lines))
        if engine.bundle.drawing_ways:
            drawn = [np.asarray(images[0]) for images in engine.generate_images(prompts)]
            logbook.picture(step, "drawings", _below_originals(records, drawn))


def _first_captioned(datasets: list[Dataset], count: int, may_be_bad: bool) -> list[Record]:
    """The first records, of each data set in turn and none twice, that have an image which can be read and a caption; at most
    `count`."""
    found: dict[tuple[str, str], Record] = {}
    for places in zip_longest(*(first_records(dataset, count) for dataset in datasets)):
        for records, index in filter(None, places):
            with suppress_bad() if may_be_bad else nullcontext():
                record = records[index]
                if record.image is not None and record.captions:
                    if may_be_bad:
                        decode_image(record.image)
                    found.setdefault((record.key, record.captions[0].text), record)
    return list(found.values())[:count]


def _below_originals(records: list[Record], drawn: list[np.ndarray]) -> Image.Image:
    """Drawings, (H, W, 3) uint8, with their prompts below and the images that were described above."""
    tiles = []
    for record, image in zip(records, drawn, strict=True):
        assert record.image is not None
        original = pixels_to_array(crop(record.image, len(image))[None])[0]
        tiles.append(Tile(np.concatenate([original, image]), record.captions[0].text))
    return draw_grid(tiles, SAMPLES_A_ROW)


def main(argv: list[str] | None = None) -> None:
    """The command: Hydra's arguments in, a trained model and its results out; with --check what that will take."""
    words = sys.argv[1:] if argv is None else argv
    if "--check" in words:
        from unimm.cli.train_check import main as check

        return check(words)

    def job(config: DictConfig) -> None:
        train(config)
        print_training_results(config)

    run_with_hydra("train", job, words)
