"""From a composed configuration to objects: the one place where Hydra's world ends.

`conf/` stands at the top of a checkout and travels inside the wheel as `unimm/conf`, so verbs find it from any folder.
"""

import os
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from accelerate import PartialState
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unimm.checks import check_whole
from unimm.cli.conf import conf_folder
from unimm.cli.errors import plain_errors
from unimm.cli.overrides import as_typed, quote, split_words
from unimm.cli.quiet import quiet_libraries
from unimm.data.digests import unchecked
from unimm.data.features import FeaturedDataset
from unimm.data.mixture import Mixture, Source, in_ratio
from unimm.data.records import Dataset
from unimm.data.template import PromptFormat, Template
from unimm.data.text import TextTokenizer, train_byte_bpe
from unimm.data.views import UNDERSTANDING
from unimm.devices import choose_device
from unimm.files import read_json
from unimm.models.fingerprint import tower_fingerprint
from unimm.models.folder import load_model
from unimm.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from unimm.models.lora import adapter_parameters
from unimm.models.tokenizer_folder import CONFIG, MODEL_TYPE, load_image_tokenizer
from unimm.models.unified import UnifiedConfig, UnifiedModel
from unimm.models.weights import DEMO
from unimm.ranks import Ranks
from unimm.training.checkpoint import CHECKPOINTS, peek

NEW = "new"
"""What `text_tokenizer` says for one that is trained here, also where a model to start from has its own."""

MAX_SEED = 2**63 - 1

TEXT_TOKENIZER = "text_tokenizer"
"""The folder of a run in which the one that was trained for it lies."""

RECORDS_FOR_TEXT = 2000
"""Records of each source that a text tokenizer is trained on."""


def compose_config(root: str, overrides: list[str]) -> DictConfig:
    """A root configuration (`train`, `train_tokenizer`, `encode`) with overrides, as the shell verbs compose it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base=None):
        return _noted(compose(root, overrides=as_typed(overrides)), overrides)


_OVERRIDES: dict[int, tuple[str, ...]] = {}


def overrides_of(config: DictConfig) -> tuple[str, ...]:
    """The overrides that a configuration was composed with: what its user has asked for, beside what the files say."""
    return _OVERRIDES.get(id(config), ())


def _noted(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Remember a configuration's overrides as long as it lives."""
    _OVERRIDES[id(config)] = tuple(overrides)
    weakref.finalize(config, _OVERRIDES.pop, id(config), None)
    return config


def run_with_hydra(root: str, job: Callable[[DictConfig], object], argv: list[str] | None = None) -> None:
    """Compose a root configuration from the words of the command line and do the job; mistakes end in one sentence.

    argv: the words; default: those that the process was called with.
    """
    quiet_libraries()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us whole, and we say them in one sentence

    def plain_job(config: DictConfig) -> None:
        with plain_errors():  # inside too: Hydra would add a line of its own
            job(_noted(config, HydraConfig.get().overrides.task))

    with plain_errors(), TemporaryDirectory(prefix="unimm-sweep-") as sweep:
        words = split_words(sys.argv[1:] if argv is None else argv)
        if words.is_multirun and not words.has_own_sweep:
            words.overrides.append(f"hydra.sweep.dir={quote(sweep)}")  # Hydra's record of it; each run has its config.yaml
        sys.argv[1:] = words.for_hydra()
        hydra.main(version_base=None, config_path=str(conf_folder()), config_name=root)(plain_job)()
    leave_group()


def print_paths(paths: Iterable[Path]) -> None:
    """What was written, a line each, once for all processes."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(*paths, sep="\n")


def build(config: Any, **arguments: Any) -> Any:
    """Instantiate a node; below it everything is plain lists, dicts and frozen dataclasses."""
    return instantiate(config, _convert_="all", **arguments)


def seed_everything(seed: int) -> None:
    """Seed what initialises weights; samples and noise are keyed by (seed, sample) and need no state.

    Raises:
        ValueError: the seed is none.
    """
    check_whole({"seed": seed}, 0)
    if seed > MAX_SEED:
        raise ValueError(f"seed must be below 2^63, not {seed}.")
    torch.manual_seed(seed)


CODED = "unimm.data.codes.CodedDataset"


def build_datasets(config: DictConfig, tokenizer_hash: str) -> dict[str, Dataset]:
    """The data set of every source, by the source's name.

    Raises:
        ValueError: stored codes were made with another image tokenizer than the one with this fingerprint.
    """
    check_given(config.data, "data")
    sources = config.data.sources.items()
    hashes = {name: {"tokenizer_hash": tokenizer_hash} if source.dataset._target_ == CODED else {} for name, source in sources}
    return {str(name): build(source.dataset, **hashes[name]) for name, source in sources}


def looking_sources(config: DictConfig) -> list[str]:
    """The names of the sources that look at images.

    Raises:
        ValueError: there is none.
    """
    names = [str(name) for name, source in config.data.sources.items() if build(source.view).task == UNDERSTANDING]
    if not names:
        raise ValueError(f"None of the sources {', '.join(config.data.sources)} looks at images: nothing is to be stored.")
    return names


def check_looks(prompt_format: PromptFormat) -> None:
    """Raises ValueError where a model sees codes alone, and thus no features."""
    if prompt_format.sees == "codes":
        raise ValueError("This model sees images as codes, not by its vision tower: it has no use for stored features.")


def with_features(
    config: DictConfig, datasets: dict[str, Dataset], model: UnifiedModel, prompt_format: PromptFormat
) -> dict[str, Dataset]:
    """The data sets, with stored features instead of images where the configuration names a folder of them.

    Raises:
        ValueError: the vision tower learns, or starts from nothing; or the features are not its own, or of other images.
    """
    if config.features is None:
        return datasets
    if config.init_from is None:
        raise ValueError("Stored features are those of a model that can see: add init_from=FOLDER, or leave features out.")
    tower = model.pixels.tower
    if "vision" in config.stage.learns or adapter_parameters(tower):
        raise ValueError(
            f"Stored features are those of a frozen vision tower, and it learns in the stage '{config.stage.name}': leave "
            f"features out, or choose a stage without vision, such as align or pretrain."
        )
    check_looks(prompt_format)
    words = {"tower_hash": tower_fingerprint(tower), "image_size": tower.config.image_size}
    folders = {name: Path(config.features) / name for name in looking_sources(config)}
    return datasets | {name: FeaturedDataset(datasets[name], folder, **words) for name, folder in folders.items()}


def check_given(config: DictConfig, name: str) -> None:
    """Ask for what only the user knows, such as the path of a data set, by the name that stands in the file: not by one of the
    places below it that take the value over.

    Raises:
        ValueError: a key has no value.
    """
    for key in config:
        if OmegaConf.is_missing(config, key):
            raise ValueError(f"The key '{name}.{key}' has no value yet: add {name}.{key}=...")


def build_text_tokenizer(config: DictConfig, datasets: Iterable[Dataset]) -> TextTokenizer:
    """The text tokenizer that the configuration names, or one trained on the data's own text: once for a run, which keeps it
    (`TEXT_TOKENIZER`), so that it can go on when its texts have changed."""
    kept = Path(config.out) / TEXT_TOKENIZER
    if config.text_tokenizer in (None, NEW):
        if kept.is_dir() and peek(Path(config.out) / CHECKPOINTS) is not None:
            return TextTokenizer.load(kept)
        return train_byte_bpe(_texts(datasets), config.text_vocabulary)
    return TextTokenizer.load(config.text_tokenizer)


def build_model(config: DictConfig, tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer) -> UnifiedModel:
    """A fresh unified model, with the vocabularies of its two tokenizers.

    Raises:
        ValueError: the configuration gives a size that the tokenizers contradict.
    """
    sizes = fill_sizes(build(config.model), image_tokenizer.config, len(tokenizer))
    return UnifiedModel(replace(sizes, trunk={**sizes.trunk, **trunk_ids(tokenizer)}))


def trunk_ids(tokenizer: TextTokenizer) -> dict[str, int]:
    """The special ids that a trunk's config names."""
    special = tokenizer.special
    return {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}


def fill_sizes(sizes: UnifiedConfig, image_tokenizer: ImageTokenizerConfig, vocabulary: int) -> UnifiedConfig:
    """A model's sizes with what its configuration leaves to the image tokenizer and to the text tokenizer of `vocabulary` ids.

    Raises:
        ValueError: the configuration gives a size that the image tokenizer contradicts.
    """
    own = {
        "num_codes": image_tokenizer.grid_size**2,
        "codebook_size": image_tokenizer.quantizer.codebook_size,
        "code_dim": image_tokenizer.code_dim,
    }
    for name, value in own.items():
        given = getattr(sizes.codes, name)
        if given not in (None, value) and name != "code_dim":
            raise ValueError(f"model.codes.{name} is {given}, but the image tokenizer has {value}: leave it out.")
    codes = replace(sizes.codes, **{k: v for k, v in own.items() if getattr(sizes.codes, k) is None})
    return replace(sizes, codes=codes, trunk={**sizes.trunk, "vocab_size": sizes.trunk.get("vocab_size") or vocabulary})


def build_mixture(config: DictConfig, datasets: dict[str, Dataset], template: Template) -> Mixture:
    """The sources, seen through their views and mixed by weight, and their tasks by ratio where one is given."""
    sources = [
        Source(str(name), datasets[str(name)], build(source.view), source.weight)
        for name, source in config.data.sources.items()
    ]
    if config.ratio is not None:
        sources = in_ratio(sources, build(config.ratio))
    return Mixture(sources, template, config.seed, config.data.weigh_by)


def open_image_tokenizer(config: DictConfig) -> ImageTokenizer:
    """The trained image tokenizer that the configuration names, frozen: of `unimm train-tokenizer`, or out of a model (a folder
    or hub id).

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    named = str(config.image_tokenizer)
    path = DEMO if named == "demo" else Path(named)
    content = read_json(path / CONFIG)
    if path.exists() and (content is None or content.get("model_type") == MODEL_TYPE):
        return load_image_tokenizer(path)
    return load_model(named, dtype=torch.float32).image_tokenizer


def build_template(config: DictConfig, tokenizer: TextTokenizer, model: UnifiedModel, own: PromptFormat) -> Template:
    """How prompts for this model are written: as the configuration says, else its own way."""
    prompt_format: PromptFormat = own if config.prompt_format is None else build(config.prompt_format)
    vision = model.config.vision
    longest = model.config.max_positions
    return Template(tokenizer, prompt_format, vision.image_size, vision.num_patches, max_positions=longest)


def join_group(device: str | None) -> tuple[torch.device, Ranks]:
    """The device to work on, and the processes of the launcher that started this one; without one it is alone.

    Raises:
        ValueError: the device is not here.
    """
    chosen = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return chosen, Ranks()
    state = PartialState(cpu=chosen.type == "cpu")
    own = chosen if chosen.type == "cpu" or state.device is None else state.device
    return own, Ranks(state.process_index, state.num_processes)


def leave_group() -> None:
    """Leave the other processes of a launcher at the end, in order: one that is simply gone can take its neighbour down."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def settings_of(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain dicts, lists, numbers and strings."""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def save_config(config: DictConfig, folder: Path, changes: Iterable[str] = ()) -> None:
    """The composed configuration beside the run, so that it can be read and repeated; changes: what stands above it, a line
    each, of settings that were others before."""
    folder.mkdir(parents=True, exist_ok=True)
    history = "".join(f"# {change}\n" for change in changes)
    (folder / "config.yaml").write_text(history + OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")


def _texts(datasets: Iterable[Dataset]) -> Iterable[str]:
    """Everything that is written in the first records of the data sets."""
    for dataset in datasets:
        for index in range(min(len(dataset), RECORDS_FOR_TEXT)):
            record = unchecked(dataset, index)
            yield from (text.text for text in (*record.captions, *record.prompts))
            for question in record.questions:
                yield f" {question.answer}"
                yield question.text
            if record.text is not None:
                yield record.text.text
