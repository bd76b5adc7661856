"""Train an image tokenizer: `unimm train-tokenizer`, or by a launcher: `accelerate launch -m unimm.cli.train_tokenizer ...`."""

import os
import sys
from pathlib import Path

import hydra
import numpy as np
from accelerate import PartialState
from omegaconf import DictConfig

from unimm.cli.build import build, conf_folder, leave_group, save_config, seed_everything
from unimm.cli.errors import plain_errors
from unimm.data.image import crop
from unimm.data.images import ImageBatches, ImageSource
from unimm.devices import choose_device
from unimm.models.image_tokenizer import ImageTokenizer
from unimm.models.tokenizer_folder import save_image_tokenizer
from unimm.training.tokenizer_trainer import TokenizerTrainer


def train_tokenizer(config: DictConfig) -> Path:
    """Train to the end of the budget and write the averaged tokenizer.

    Returns:
        The tokenizer's folder, `out`/model.
    """
    out = Path(config.out)
    # The process group must be there before the quantizer is built; unless told that it is a CPU, accelerate makes none there.
    state = PartialState(cpu=choose_device(config.device).type == "cpu")
    seed_everything(config.seed)
    tokenizer = ImageTokenizer(build(config.tokenizer), sync_codebook=state.num_processes > 1)
    sources = [ImageSource(build(source.dataset), source.weight) for source in config.images.sources.values()]
    batches = ImageBatches(sources, config.images.batch_size, tokenizer.image_size, config.seed)
    validation = build(config.images.validation)
    images = (validation[index].image for index in range(min(config.num_validation, len(validation))))
    pixels_NCHW = np.stack([crop(image, tokenizer.image_size) for image in images])
    trainer = TokenizerTrainer(
        tokenizer, batches, build(config.tokenizer_trainer), out, config.device, validation_NCHW=pixels_NCHW
    )
    if trainer.is_main:
        save_config(config, out)
    averaged = trainer.fit()
    if trainer.is_main:
        save_image_tokenizer(out / "model", averaged)
    trainer.accelerator.wait_for_everyone()
    return out / "model"


def main(argv: list[str] | None = None) -> None:
    """The command: Hydra's words in, a trained image tokenizer out."""
    if argv is not None:
        sys.argv = [sys.argv[0], *argv]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us whole, and we say them in one sentence

    def job(config: DictConfig) -> None:
        with plain_errors():  # inside too: Hydra would add a line of its own
            train_tokenizer(config)

    with plain_errors():
        hydra.main(version_base=None, config_path=str(conf_folder()), config_name="train_tokenizer")(job)()
    leave_group()


if __name__ == "__main__":
    main()
