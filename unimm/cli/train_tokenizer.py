"""Train an image tokenizer: `unimm train-tokenizer`, or by a launcher: `accelerate launch -m unimm.cli.train_tokenizer ...`."""

from pathlib import Path

import numpy as np
from accelerate import PartialState
from omegaconf import DictConfig

from unimm.checkpoints.image_tokenizer_folder import save_image_tokenizer
from unimm.cli.compose import build, check_given, run_with_hydra, seed_everything, settings_of
from unimm.cli.results import print_tokenizer_results
from unimm.cli.resume_settings import Resuming
from unimm.data.image import crop
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.runtime.devices import choose_device
from unimm.runtime.number_checks import check_whole
from unimm.training.image_tokenizer.trainer import TokenizerTrainer
from unimm.training.trackers import TrackingConfig


def train_tokenizer(config: DictConfig) -> Path:
    """Train to the end of the budget and write the averaged tokenizer.

    Returns:
        The tokenizer's folder, `out`/model.
    """
    check_given(config.images, "images")
    check_whole(config, 1, "num_validation")
    out = Path(config.out)
    tracking: TrackingConfig = build(config.tracking)
    tracking.check()
    run = Resuming(config, "tokenizer_trainer", ("tokenizer",))
    # The process group must be there before the quantizer is built; accelerate makes none for a CPU unless it is named.
    state = PartialState(cpu=choose_device(config.device).type == "cpu")
    seed_everything(config.seed)
    tokenizer = ImageTokenizer(build(config.tokenizer), sync_codebook=state.num_processes > 1)
    if config.spread_codes:
        tokenizer.quantize.spread()
    sources = [ImageSource(build(source.dataset), source.weight) for source in config.images.sources.values()]
    batches = ImageBatches(sources, config.images.batch_size, tokenizer.image_size, config.seed)
    validation = build(config.images.validation)
    images = (validation[index].image for index in range(min(config.num_validation, len(validation))))
    pixels_NCHW = np.stack([crop(image, tokenizer.image_size) for image in images])
    trainer = TokenizerTrainer(
        tokenizer, batches, build(config.tokenizer_trainer), out, config.device, validation_NCHW=pixels_NCHW
    )
    run.follow(trainer)
    trainer.track(tracking, settings_of(config))
    averaged = trainer.fit()
    if trainer.is_main:
        save_image_tokenizer(out / "model", averaged)
    trainer.ranks.barrier()
    return out / "model"


def main(argv: list[str] | None = None) -> None:
    """The command: Hydra's arguments in, a trained image tokenizer and its results out."""

    def job(config: DictConfig) -> None:
        train_tokenizer(config)
        print_tokenizer_results(config)

    run_with_hydra("train_tokenizer", job, argv)


if __name__ == "__main__":
    main()
