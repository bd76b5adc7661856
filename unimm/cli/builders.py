"""From a composed configuration to objects: data sets, tokenizers, model, template."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from unimm.checkpoints.fingerprint import tower_fingerprint
from unimm.checkpoints.folder import load_model
from unimm.checkpoints.image_tokenizer_folder import CONFIG, MODEL_TYPE, load_image_tokenizer
from unimm.checkpoints.weight_files import DEMO
from unimm.cli.compose import build, check_given
from unimm.data.binding import bind
from unimm.data.records import DEFAULT_CODES, LATENTS, Dataset, DatasetContext, Record, first_records, unchecked
from unimm.data.shards.coded import CodedShards
from unimm.data.stores.codes import CodedDataset
from unimm.data.stores.digests import suppress_bad
from unimm.data.stores.features import FeaturedDataset
from unimm.data.stores.latents import LatentDataset
from unimm.data.template import PromptFormat, Template
from unimm.data.text import TextTokenizer, train_byte_bpe
from unimm.data.views import looks_at_images
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.lora import adapter_parameters
from unimm.models.ports.latents import LatentsPort
from unimm.models.unified import UnifiedConfig, UnifiedModel
from unimm.runtime.atomic_files import read_json
from unimm.sequence import Kind
from unimm.training.checkpoint import CHECKPOINTS, peek

NEW = "new"
"""What `text_tokenizer` says for one that is trained here, also where a model to start from has its own."""


TEXT_TOKENIZER = "text_tokenizer"
"""The folder of a run in which the one that was trained for it lies."""


RECORDS_FOR_TEXT = 2000
"""Records of each source that a text tokenizer is trained on."""


def build_datasets(config: DictConfig, tokenizer_hash: str | None, latents_hash: str | None = None) -> dict[str, Dataset]:
    """The data set of every source, by the source's name.

    Raises:
        ValueError: stored codes, or latents, were made with another image tokenizer than the one with this fingerprint.
    """
    check_given(config.data, "data")
    context = DatasetContext(tokenizer_hash=tokenizer_hash, latents_hash=latents_hash)
    return {str(name): bind(build(source.dataset), context) for name, source in config.data.sources.items()}


def is_coded(node: DictConfig, latents: bool = False) -> bool:
    """Whether a node builds a `CodedDataset` or `CodedShards`, or a `LatentDataset`, or a subclass of it."""
    made = get_object(node._target_) if isinstance(node.get("_target_"), str) else None
    return isinstance(made, type) and issubclass(made, LatentDataset if latents else (CodedDataset, CodedShards))


def coded_nodes(node: DictConfig, latents: bool = False) -> Iterator[DictConfig]:
    """The nodes that build data sets with stored codes, or latents, wherever they stand in the node of a data set; outer ones
    first."""
    if is_coded(node, latents):
        yield node
    for inner in _nodes_in(node).values():
        yield from coded_nodes(inner, latents)


def without_codes(node: DictConfig) -> DictConfig:
    """The node of the same data set without stored codes and latents, which need not be there yet."""
    if is_coded(node) or is_coded(node, latents=True):
        return without_codes(node.dataset)
    plain = copy.deepcopy(node)
    OmegaConf.set_readonly(plain, False)
    for key, inner in _nodes_in(plain).items():
        plain[key] = without_codes(inner)
    return plain


def _nodes_in(node: DictConfig) -> dict[str, DictConfig]:
    """The nodes that stand directly in another one."""
    return {str(key): node[key] for key in node if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig)}


def looking_sources(config: DictConfig) -> list[str]:
    """The names of the sources whose images go through the vision tower.

    Raises:
        ValueError: there is none.
    """
    names = [str(name) for name, source in config.data.sources.items() if looks_at_images(build(source.view))]
    if not names:
        raise ValueError(f"None of the sources {', '.join(config.data.sources)} looks at images: nothing is to be stored.")
    return names


def check_looks(prompt_format: PromptFormat) -> None:
    """Raises ValueError where a model sees codes alone, and thus no features; or tiles, of which none are stored."""
    if prompt_format.sees == "codes":
        raise ValueError("This model sees images as codes, not by its vision tower: it has no use for stored features.")
    if prompt_format.tiles is not None:
        raise ValueError(
            "This model sees large pictures in tiles, and features are stored of pictures as one square: leave features out."
        )


def with_features(
    config: DictConfig, datasets: dict[str, Dataset], model: UnifiedModel, prompt_format: PromptFormat
) -> dict[str, Dataset]:
    """The data sets, with stored features instead of images where the configuration names a folder of them.

    Raises:
        ValueError: features are stored, and the vision tower is trained, or starts from nothing; or they are not its own, or of
            other images.
    """
    tower = model.pixels.tower

    @cache
    def reading_tower() -> tuple[str, int]:
        if config.init_from is None:
            raise ValueError("Stored features are those of a model that can see: add init_from=FOLDER, or leave features out.")
        if "vision" in config.stage.lr_scales or adapter_parameters(tower):
            raise ValueError(
                f"Stored features are those of a frozen vision tower, and it learns in the stage '{config.stage.name}': leave "
                f"features out, or choose a stage without vision, such as align or pretrain."
            )
        check_looks(prompt_format)
        return tower_fingerprint(tower), tower.config.image_size

    if config.features is not None:
        folders = {name: Path(config.features) / name for name in looking_sources(config)}
        identity = reading_tower()
        datasets = datasets | {name: FeaturedDataset(datasets[name], folder, *identity) for name, folder in folders.items()}
    return {name: bind(dataset, DatasetContext(tower=reading_tower)) for name, dataset in datasets.items()}


def build_text_tokenizer(config: DictConfig, datasets: Iterable[Dataset]) -> TextTokenizer:
    """The text tokenizer that the configuration names, or one trained on the data's own text: once for a run, which keeps it
    (`TEXT_TOKENIZER`), so that it can go on when its texts have changed."""
    kept = Path(config.out) / TEXT_TOKENIZER
    if config.text_tokenizer in (None, NEW):
        if kept.is_dir() and peek(Path(config.out) / CHECKPOINTS) is not None:
            return TextTokenizer.load(kept)
        return train_byte_bpe(_texts(datasets), config.text_vocabulary)
    return TextTokenizer.load(config.text_tokenizer)


def build_model(config: DictConfig, tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer | None) -> UnifiedModel:
    """A fresh unified model, with the vocabularies of its two tokenizers.

    image_tokenizer: of its codes; None: it draws none.

    Raises:
        ValueError: the configuration gives a size that the tokenizers contradict.
    """
    sizes = fill_sizes(build(config.model), image_tokenizer and image_tokenizer.config, len(tokenizer))
    return UnifiedModel(replace(sizes, trunk={**sizes.trunk, **trunk_ids(tokenizer)}))


def trunk_ids(tokenizer: TextTokenizer) -> dict[str, int]:
    """The special ids that a trunk's config names."""
    special = tokenizer.special
    return {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}


def fill_sizes(sizes: UnifiedConfig, image_tokenizer: ImageTokenizerConfig | None, vocabulary: int) -> UnifiedConfig:
    """A model's sizes with what its configuration leaves to the image tokenizer and to the text tokenizer of `vocabulary` ids.

    Raises:
        ValueError: the configuration gives a size that the image tokenizer contradicts, or the model has codes, and there is no
            image tokenizer of codes.
    """
    trunk = {**sizes.trunk, "vocab_size": sizes.trunk.get("vocab_size") or vocabulary}
    if sizes.codes is None:
        return replace(sizes, trunk=trunk)
    if image_tokenizer is None or not image_tokenizer.quantizer.codebook_size:
        raise ValueError(
            "This model draws codes: name an image tokenizer that has them, image_tokenizer=FOLDER, or set model.codes=null."
        )
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
    return replace(sizes, codes=codes, trunk=trunk)


def draws_by_flow_alone(config: DictConfig) -> bool:
    """Whether the configured model has latents and no codes, and thus needs an image tokenizer of latents alone."""
    model: DictConfig | None = config.get("model")
    return model is not None and "codes" in model and model.codes is None and LATENTS in (model.get("ports") or {})


def check_image_tokenizer(config: DictConfig) -> None:
    """Raises ValueError where neither an image tokenizer is named nor a model to start from, which has one."""
    if config.image_tokenizer is None and config.init_from is None and not draws_by_flow_alone(config):
        raise ValueError(
            "The key 'image_tokenizer' has no value yet: add image_tokenizer=..., or init_from=... of a model that has one."
        )


def check_codes(config: DictConfig) -> None:
    """Raises ValueError where a source reads stored codes, and no folder of them is named; other data needs none."""
    if not OmegaConf.is_missing(config, "codes"):
        return
    sources = OmegaConf.to_container(config.data.sources, resolve=False)
    assert isinstance(sources, dict)
    coded = [str(name) for name, source in sources.items() if "${codes}" in str(source)]
    if coded:
        those, them = ("source", "it") if len(coded) == 1 else ("sources", "them")
        raise ValueError(
            f"The {those} {', '.join(coded)} of this data read stored codes: add codes=FOLDER, which `unimm encode` writes "
            f"with the same data=..., or leave {them} out: {' '.join(repr(f'~data.sources.{name}') for name in coded)}."
        )


def open_image_tokenizer(config: DictConfig) -> ImageTokenizer:
    """The trained image tokenizer that the configuration names, frozen: of `unimm train-tokenizer`, or out of a model (a folder
    or hub id); else that of the model to start from, `init_from`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    check_image_tokenizer(config)
    return read_image_tokenizer(str(config.init_from if config.image_tokenizer is None else config.image_tokenizer))


def open_image_tokenizers(config: DictConfig, own: Mapping[str, ImageTokenizer] | None) -> dict[str, ImageTokenizer]:
    """By name: those that the configuration names, one of codes, and one of latents where the model draws by a flow; else
    those of the model to start from, `own`.

    Raises:
        ValueError: one is missing, or cannot be read.
    """
    if config.image_tokenizer is None and own is not None:
        found = dict(own)
    else:
        found = {} if draws_by_flow_alone(config) else {DEFAULT_CODES: open_image_tokenizer(config)}
    latents = _open_latents_tokenizer(config, (own or {}).get(LATENTS))
    return found if latents is None else {**found, LATENTS: latents}


def _open_latents_tokenizer(config: DictConfig, start: ImageTokenizer | None) -> ImageTokenizer | None:
    """The image tokenizer whose latents a model draws by a flow: the one that the configuration names, else that of the model
    to start from, `start`; None where the model draws by none.

    Raises:
        ValueError: it cannot be read, there is none, or it has codes.
    """
    if config.latents_tokenizer is None:
        if start is None and LATENTS in (config.model.get("ports") or {}):
            raise ValueError(
                "This model draws by a flow: add latents_tokenizer=FOLDER of an image tokenizer with latents, which "
                "`unimm train-tokenizer +experiment=flow/tokenizer` makes."
            )
        return start
    return read_latents_tokenizer(str(config.latents_tokenizer))


def read_latents_tokenizer(named: str) -> ImageTokenizer:
    """As `read_image_tokenizer`, one with latents. ValueError: there is none, it cannot be read, or it has codes."""
    found = read_image_tokenizer(named, LATENTS)
    if not found.is_continuous:
        raise ValueError(f"The image tokenizer {named} has codes, no latents: name another one.")
    return found


def read_image_tokenizer(named: str, name: str = "") -> ImageTokenizer:
    """A trained image tokenizer, frozen, float32: of a folder that `unimm train-tokenizer` wrote, or out of a model (a folder,
    a hub id, or demo), there the one of this name where it has it.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = DEMO if named == "demo" else Path(named)
    content = read_json(path / CONFIG)
    if path.exists() and (content is None or content.get("model_type") == MODEL_TYPE):
        return load_image_tokenizer(path)
    loaded = load_model(named, dtype=torch.float32)
    return loaded.further.image_tokenizers.get(name, loaded.image_tokenizer)


def build_prompt_format(node: DictConfig | None, own: PromptFormat) -> PromptFormat:
    """How prompts are written: as a configuration says, whole (with its `_target_`) or what it changes of a model's own.

    Raises:
        ValueError: it changes what is no setting.
    """
    if node is None:
        return own
    if "_target_" in node:
        return build(node)
    changes = OmegaConf.to_container(node, resolve=True)
    assert isinstance(changes, dict)
    names = [field.name for field in fields(PromptFormat)]
    if unknown := [str(name) for name in changes if name not in names]:
        raise ValueError(f"prompt_format has {', '.join(names)}, and no {unknown[0]}.")
    return replace(own, **{str(name): value for name, value in changes.items()})


def build_template(config: DictConfig, tokenizer: TextTokenizer, model: UnifiedModel, own: PromptFormat) -> Template:
    """How prompts for this model are written: as the configuration says, else its own way."""
    prompt_format = build_prompt_format(config.prompt_format, own)
    image = model.config.vision.image_size, model.num_image_positions
    port = model.predicted_ports.get(Kind.LATENTS)
    patch = port.config.patch_size if isinstance(port, LatentsPort) else None
    return Template(tokenizer, prompt_format, *image, max_positions=model.config.max_positions, latent_patch=patch)


def _texts(datasets: Iterable[Dataset]) -> Iterable[str]:
    """Everything that is written in the first records of the data sets."""
    for dataset in datasets:
        for records, index in first_records(dataset, RECORDS_FOR_TEXT):
            record = Record("")
            with suppress_bad():
                record = unchecked(records, index)
            yield from (text.text for text in (*record.captions, *record.prompts))
            for phrase in vars(record).get("phrases", ()):  # not those that a world makes of its scenes
                yield phrase.text
            for question in record.questions:
                yield f" {question.answer}"
                yield question.text
            if record.text is not None:
                yield record.text.text
            yield from (part for part in record.document if isinstance(part, str))
