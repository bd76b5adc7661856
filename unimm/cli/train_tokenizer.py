"""Train an image tokenizer: `unimm train-tokenizer`, or by a launcher: `accelerate launch -m unimm.cli.train_tokenizer ...`.

It begins afresh, or from the weights of a trained one (`init_from`). Then the codebook stays as it is, where it is a plain one:
encoder and decoder learn to say other images with the same words, and a model that knows these codes can go on with them
(`unimm.cli.learner`). For that the folder remembers which tokenizers it came from. One with latents may begin with encoder and
decoder of one with codes: what it learned of images serves both.

Of latents, mean and standard deviation are measured in the end, on the images to validate on.
"""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf

from unimm.checkpoints.image_tokenizer_folder import fingerprint, read_ancestors, save_image_tokenizer
from unimm.cli.builders import read_image_tokenizer
from unimm.cli.compose import build, check_given, given_sizes, run_with_hydra, seed_everything, settings_of
from unimm.cli.learner import as_settings
from unimm.cli.results import print_tokenizer_results
from unimm.cli.resume_settings import Resuming
from unimm.data.bad_records import BadRecord, count_kinds, reason_of
from unimm.data.image import crop
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.records import Dataset, key_at
from unimm.models.image_tokenizer.gaussian import GaussianConfig
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import CosineQuantizer
from unimm.runtime.devices import choose_device
from unimm.runtime.number_checks import check_probability, check_whole
from unimm.training.image_tokenizer.trainer import TokenizerTrainer
from unimm.training.trackers import TrackingConfig

logger = logging.getLogger(__name__)

MOST = 0.5
"""The share of weights that has to be taken over for a start from another network to be one."""

AFRESH = "none"
"""In place of a fingerprint: the run began from no other tokenizer, so it cannot go on as if it had."""


@dataclass(frozen=True)
class Start:
    """The image tokenizer to train, and where it comes from.

    ancestors: fingerprints of those that it was trained on from, the nearest first. codebook: that of the nearest, (K, D).
    notes: lines for a person, of a new run. networks_of: fingerprint of one with codes whose networks alone it begins with.
    """

    tokenizer: ImageTokenizer
    ancestors: list[str] = field(default_factory=list)
    codebook: torch.Tensor | None = None
    notes: list[str] = field(default_factory=list)
    networks_of: str = ""

    @property
    def fingerprints(self) -> dict[str, str]:
        """As `unimm.cli.resume_settings` compares them."""
        return {"init_from": self.networks_of or (self.ancestors[0] if self.ancestors else AFRESH)}

    def ancestors_of(self, trained: ImageTokenizer) -> list[str]:
        """Those whose codebook a trained tokenizer still has, so that its codes go on meaning what they did."""
        is_kept = self.codebook is not None and torch.equal(trained.quantize.codebook.detach().cpu(), self.codebook)
        return self.ancestors if is_kept else []

    def with_sizes(self, config: DictConfig) -> DictConfig:
        """The configuration to keep of a run: with the sizes that the tokenizer has."""
        if not self.ancestors:
            return config
        kept = copy.deepcopy(config)
        OmegaConf.set_readonly(kept, False)
        OmegaConf.update(kept, "tokenizer", as_settings(self.tokenizer.config), merge=False, force_add=True)
        return kept


def open_start(config: DictConfig, sync: bool = False) -> Start:
    """The image tokenizer to train: a fresh one, or that of `init_from` in its own sizes.

    sync: statistics of its codebook span all processes.

    Raises:
        ValueError: there is none in `init_from`; or settings are given that it does not follow.
    """
    if config.init_from is None:
        tokenizer = ImageTokenizer(build(config.tokenizer), sync_codebook=sync)
        if config.spread_codes:
            tokenizer.quantize.spread()
        return Start(tokenizer)
    named = str(config.init_from)
    source = read_image_tokenizer(named)
    if not source.is_continuous and isinstance(OmegaConf.select(config, "tokenizer.quantizer"), DictConfig):
        wanted: ImageTokenizerConfig = build(config.tokenizer)
        if isinstance(wanted.quantizer, GaussianConfig):
            return _with_networks(ImageTokenizer(wanted), source, named)
    _check_sizes(config, source)
    tokenizer = ImageTokenizer(source.config, sync_codebook=sync)
    tokenizer.load_state_dict(source.state_dict())
    grid, size = tokenizer.grid_size, tokenizer.image_size
    note = f"Begins with the image tokenizer of {named}: {size} px as {grid} x {grid} codes of {tokenizer.codebook_size:,}; "
    if isinstance(tokenizer.quantize, CosineQuantizer):
        tokenizer.quantize.freeze()
        note += "its codebook stays, encoder and decoder are trained."
    else:
        note += "all of it is trained."
    if source.is_continuous:
        note = f"Begins with the image tokenizer of {named}: {size} px as {grid} x {grid} latents; all of it is trained."
        return Start(tokenizer, [fingerprint(source), *read_ancestors(named)], None, [note])
    codebook_KD = source.quantize.codebook.detach().cpu().clone()
    return Start(tokenizer, [fingerprint(source), *read_ancestors(named)], codebook_KD, [note])


def _with_networks(tokenizer: ImageTokenizer, source: ImageTokenizer, named: str) -> Start:
    """One with latents that begins with encoder and decoder of one with codes, as far as their sizes agree.

    Raises:
        ValueError: most of their weights have other sizes.
    """
    own, theirs = dict(tokenizer.named_parameters()), dict(source.named_parameters())
    taken = [name for name, one in theirs.items() if name in own and own[name].shape == one.shape]
    share = sum(own[name].numel() for name in taken) / sum(one.numel() for one in own.values())
    if share < MOST:
        raise ValueError(
            f"init_from={named} has other sizes: only {100 * share:.0f} % of the weights would be taken over. Give the "
            f"tokenizer its base_channels, channel_multipliers, num_res_blocks and latent_channels, or leave init_from out."
        )
    with torch.no_grad():
        for name in taken:
            own[name].copy_(theirs[name])
    note = f"Begins with encoder and decoder of {named}: {100 * share:.0f} % of the weights; what makes latents is new."
    return Start(tokenizer, [], None, [note], networks_of=fingerprint(source))


def _check_sizes(config: DictConfig, source: ImageTokenizer) -> None:
    """Raises ValueError where settings are given that the tokenizer to start from does not have."""
    if config.spread_codes:
        raise ValueError("spread_codes places a codebook anew, and that of init_from stays as it is: leave one of them out.")
    given, has = given_sizes(config), as_settings(source.config)
    for key in given:
        name = key.removeprefix("tokenizer.")
        wanted = config.tokenizer if key == "tokenizer" else OmegaConf.select(config, key)
        wanted = OmegaConf.to_container(wanted) if OmegaConf.is_config(wanted) else wanted
        own = has if key == "tokenizer" else OmegaConf.select(OmegaConf.create(has), name)
        if wanted != (OmegaConf.to_container(own) if OmegaConf.is_config(own) else own):
            raise ValueError(
                f"{key}={wanted} is not used, since {config.init_from} has sizes of its own ({name}={own}): leave it out."
            )


def train_tokenizer(config: DictConfig) -> Path:
    """Train to the end of the budget and write the averaged tokenizer.

    Returns:
        The tokenizer's folder, `out`/model.
    """
    check_given(config.images, "images")
    check_whole(config, 1, "num_validation")
    check_probability(config, "max_bad")
    out = Path(config.out)
    tracking: TrackingConfig = build(config.tracking)
    tracking.check()
    run = Resuming(config, "tokenizer_trainer", ("tokenizer",) if config.init_from is None else ())
    # The process group must be there before the quantizer is built; accelerate makes none for a CPU unless it is named.
    state = PartialState(cpu=choose_device(config.device).type == "cpu")
    seed_everything(config.seed)
    start = open_start(config, sync=state.num_processes > 1)
    tokenizer = start.tokenizer
    run.check(start.fingerprints)
    run.config = start.with_sizes(config)
    sources = [ImageSource(build(one.dataset), one.weight, str(name)) for name, one in config.images.sources.items()]
    batches = ImageBatches(
        sources, config.images.batch_size, tokenizer.image_size, config.seed, max_bad=config.get("max_bad") or 0.0
    )
    pixels_NCHW = validation_pixels(
        build(config.images.validation), config.num_validation, tokenizer.image_size, batches.max_bad
    )
    trainer = TokenizerTrainer(
        tokenizer, batches, build(config.tokenizer_trainer), out, config.device, validation_NCHW=pixels_NCHW
    )
    trainer.say([] if trainer.step else start.notes)
    run.follow(trainer)
    trainer.track(tracking, settings_of(run.config))
    averaged = trainer.fit()
    if trainer.is_main:
        if averaged.is_continuous:
            averaged.measure_latents(torch.from_numpy(pixels_NCHW))
        save_image_tokenizer(out / "model", averaged, start.ancestors_of(averaged))
    trainer.ranks.barrier()
    return out / "model"


def validation_pixels(dataset: Dataset, num_images: int, size: int, max_bad: float) -> np.ndarray:
    """The first images of a data set that can be used, (N, 3, size, size) float32 in [-1, 1]; the others are named.

    Raises:
        ValueError: more than a share of `max_bad` of its images cannot be used.
    """
    found: list[np.ndarray] = []
    bad: list[BadRecord] = []
    for index in range(len(dataset)):
        try:
            record = dataset[index]
            if record.image is None:
                raise ValueError(f"Record {record.key} has no image to measure on.")
            found.append(crop(record.image, size))
        except (ValueError, OSError) as error:
            if not max_bad:
                raise
            bad.append(BadRecord(key_at(dataset, index) or f"record {index}", reason_of(error)))
        if len(found) == num_images:
            break
    told = f"{len(bad):,} of {len(dataset):,} images to validate on cannot be used, beginning with {bad[0].key}" if bad else ""
    if len(bad) > max_bad * len(dataset):
        raise ValueError(f"{told} ({count_kinds(bad)}), and max_bad={max_bad:g} of them may be: mend them or take them out.")
    if not found:
        raise ValueError(f"{told or 'There is no image to validate on'}: name images that can be read.")
    if bad:
        logger.warning(f"{told} ({count_kinds(bad)}): others stand in for them.")
    return np.stack(found)


def main(argv: list[str] | None = None) -> None:
    """The command: Hydra's arguments in, a trained image tokenizer and its results out."""

    def job(config: DictConfig) -> None:
        train_tokenizer(config)
        print_tokenizer_results(config)

    run_with_hydra("train_tokenizer", job, argv)


if __name__ == "__main__":
    main()
