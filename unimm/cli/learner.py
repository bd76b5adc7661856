"""The model to train and its data: a fresh model, a trained one (`init_from`), or some of its parts in a fresh one.

Sizes of a model come from `model` in the configuration where it is fresh or takes `init_parts` of another; else from the model
of `init_from`, but for `fresh_parts`: these are reinitialised, in the sizes that the command line gives them. So are the parts
that read and write codes where `image_tokenizer` is another than the model was trained with: its codes mean something else.
"""

import copy
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.checkpoints.drawing_defaults import DrawingDefaults
from unimm.checkpoints.fingerprint import model_fingerprint, vocabulary_fingerprint
from unimm.checkpoints.further_modules import READS
from unimm.checkpoints.image_tokenizer_folder import fingerprint, read_ancestors
from unimm.checkpoints.init_from import change_vocabulary, lengthen, take_parts
from unimm.cli.builders import (
    build_datasets,
    build_model,
    build_template,
    build_text_tokenizer,
    check_codes,
    check_image_tokenizer,
    fill_sizes,
    open_image_tokenizers,
    trunk_ids,
    with_features,
)
from unimm.cli.compose import build, check_given, given_sizes
from unimm.cli.mixture import build_mixture, check_sources
from unimm.data.holdout import hold_out
from unimm.data.mixture import Mixture
from unimm.data.records import LATENTS, Dataset
from unimm.data.template import PromptFormat
from unimm.data.text import TextTokenizer
from unimm.models.contrastive import NAME as CONTRASTIVE
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.lora import attach
from unimm.models.unified import UnifiedConfig, UnifiedModel
from unimm.models.vision.qformer_text import NAME as QFORMER_TEXT
from unimm.runtime.lazy_exports import public_name
from unimm.runtime.number_checks import check_number, check_whole

TRAINED_BY = {CONTRASTIVE: ".Contrastive", QFORMER_TEXT: ".QFormerAlignment"}
"""The objectives that train a head together with the part that it reads."""

CODE_PARTS = {"code_embedding", "code_head"}
PARTS_OF = {
    "trunk": {"trunk", "text_embedding", "text_head"},
    "vision": {"vision"},
    "projector": {"projector"},
    "codes": CODE_PARTS,
}
"""The parts that each group of a model's sizes is of."""

LENGTH = "model.trunk.max_position_embeddings"
"""The one size that a model to start from may be given: no weight depends on it."""


@dataclass(frozen=True)
class Learner:
    """The model to train, its data, and what is held out of it.

    bundle: the model with the tokenizers and conventions that it is saved with.
    fresh: the names of the model's parts that are newly initialised. notes: lines that a person should read of a new run.
    fingerprints: of what all of it was made from, as `unimm.cli.resume_settings` compares them.
    """

    bundle: ModelBundle
    mixture: Mixture
    held_out: Mixture | None
    fresh: set[str]
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def bundle_of(self, model: UnifiedModel, heads: Mapping[str, nn.Module] | None = None) -> ModelBundle:
        """The bundle with another model of the same form, such as one gathered from shards; the rest moves to its device.

        heads: of the objective, beside those that the bundle has.
        """
        bundle = replace(self.bundle, model=model, heads={**self.bundle.heads, **(heads or {})})
        return bundle.to(bundle.device)


def check_start(config: DictConfig) -> None:
    """Raises ValueError where settings of a start contradict each other, or one is out of range, before a model is read."""
    for name in ("init_parts", "fresh_parts"):
        if config[name] is not None and config.init_from is None:
            raise ValueError(f"{name} are those of a trained model: add init_from=FOLDER, or leave them out.")
    if config.init_parts is not None and config.fresh_parts is not None:
        raise ValueError("init_parts names what is taken over, fresh_parts what is not: give one of them.")
    if config.lora is not None:
        if config.init_from is None:
            raise ValueError("LoRA adapts a trained model: add init_from=FOLDER, or leave lora out.")
        if config.text_tokenizer is not None:
            raise ValueError("An adapter uses its model's text tokenizer: leave text_tokenizer out, or lora.")
        if config.fresh_parts is not None:
            raise ValueError("An adapter holds no reinitialised parts: leave fresh_parts out, or lora.")
    drawing_defaults(config, DrawingDefaults())
    check_image_tokenizer(config)
    check_given(config.data, "data")
    check_sources(config)
    check_codes(config)


def open_learner(config: DictConfig, with_weights: bool = True) -> Learner:
    """The model, with adapters where they are configured, and its data.

    with_weights: False: a fresh model has no memory for its weights, as a plan needs none.

    Raises:
        ValueError: the configuration names something that is not there, or contradicts itself.
    """
    check_start(config)
    start = None if config.init_from is None else open_start(config, with_weights)
    image_tokenizers = open_image_tokenizers(config, start and start.image_tokenizers)
    image_tokenizer = image_tokenizers.get(DEFAULT)
    names = {DEFAULT: "image_tokenizer", LATENTS: "latents_tokenizer"}
    fingerprints = {name: fingerprint(image_tokenizers[key]) for key, name in names.items() if key in image_tokenizers}
    datasets = build_datasets(config, fingerprints.get("image_tokenizer"), fingerprints.get("latents_tokenizer"))
    codes_of = fingerprints.get("image_tokenizer", "")
    fresh, notes = _parts_to_initialise(config, start, codes_of) if start else (set[str](), [])
    if start is not None:
        start = with_text_tokenizer(start, config, datasets.values())
        fingerprints["init_from"] = model_fingerprint(start.model.named_parameters())
    tokenizer = start.tokenizer if start else build_text_tokenizer(config, datasets.values())
    fingerprints["text_tokenizer"] = vocabulary_fingerprint(tokenizer.tokenizer.get_vocab())
    with nullcontext() if with_weights else torch.device("meta"):
        if start is None or config.init_parts is not None:
            model = build_model(config, tokenizer, image_tokenizer)
        elif fresh or _added_ports(config, start.model):
            model = UnifiedModel(_with_fresh_sizes(config, start.model, fresh, image_tokenizer, tokenizer))
        else:
            model = start.model
        fresh |= set(model.parts()) - set(start.model.parts() if start else ())
        if start and with_weights and model is not start.model:
            take_parts(model, start.model, set(model.parts()) - fresh)
        model = adapt(model, config)
    template = build_template(config, tokenizer, model, start.prompt_format if start else PromptFormat())
    datasets = with_features(config, datasets, model, template.prompt_format)
    learned, held = hold_out(datasets, config.held_out) if config.held_out else (datasets, None)
    mixture = build_mixture(config, learned, template)
    held_out = None if held is None else build_mixture(config, held, template)
    bundle = ModelBundle(model, image_tokenizers, template.tokenizer, template.prompt_format)
    if start is not None:
        bundle = replace(bundle, drawing=start.drawing, heads=_heads_that_fit(config, start, fresh, notes))
    bundle = replace(bundle, drawing=drawing_defaults(config, bundle.drawing))
    return Learner(bundle, mixture, held_out, fresh, fingerprints, notes)


def _heads_that_fit(config: DictConfig, start: ModelBundle, fresh: set[str], notes: list[str]) -> dict[str, nn.Module]:
    """The heads of a model to start from, without those that will read another part or other ids than they were trained with,
    and without any where parts alone are taken over; a note says so."""
    if config.init_parts is not None:
        notes += [f"{_called(name)} of {config.init_from} are left out: init_parts takes parts alone." for name in start.heads]
        return {}
    targets = [] if config.lora is None else [str(target).split(".")[0] for target in config.lora.get("targets") or ()]
    heads = dict(start.heads)
    for name in heads.keys() & TRAINED_BY.keys():
        part, is_own = READS[name], str(config.objective._target_).endswith(TRAINED_BY[name])
        is_trained_apart = not is_own and (part in config.stage.lr_scales or part in targets)
        if part in fresh or is_trained_apart or config.text_tokenizer is not None:
            del heads[name]
            notes.append(
                f"{_called(name)} of {config.init_from} are left out: the {part} part or the text tokenizer will not be theirs."
            )
    return heads


def _called(head: str) -> str:
    return "The contrastive heads" if head == CONTRASTIVE else f"The heads '{head}'"


def drawing_defaults(config: DictConfig, own: DrawingDefaults) -> DrawingDefaults:
    """How a model draws where a caller does not say: as the configuration says, else as it does itself.

    Raises:
        ValueError: a value is out of range.
    """
    given = {str(name): value for name, value in config.drawing.items() if value is not None}
    check_whole({f"drawing.{name}": value for name, value in given.items() if name == "top_k"}, 0)
    check_number({f"drawing.{name}": value for name, value in given.items() if name == "temperature"})
    check_number({f"drawing.{name}": value for name, value in given.items() if name == "guidance_scale"}, above=0)
    if not 0 < (top_p := given.get("top_p", 1.0)) <= 1:
        raise ValueError(f"drawing.top_p is a probability above 0, not {top_p!r}.")
    return replace(own, **given)


def open_start(config: DictConfig, with_weights: bool = True) -> ModelBundle:
    """The model that `init_from` names, in float32, to be trained on; for longer sequences, where the configuration says so.

    Raises:
        ValueError: it cannot be read.
    """
    bundle = ModelBundle.load(config.init_from, dtype=torch.float32)
    for parameter in bundle.model.train().parameters() if with_weights else ():
        parameter.data = parameter.data.clone()  # loaded weights are mapped from their file: these are written to
    longest = config.model.trunk.max_position_embeddings
    if LENGTH in given_sizes(config) and longest > bundle.model.config.max_positions:
        lengthen(bundle.model, longest)
    return bundle


def with_text_tokenizer(bundle: ModelBundle, config: DictConfig, datasets: Iterable[Dataset]) -> ModelBundle:
    """A model to start from with the text tokenizer that the configuration names, if it names one."""
    if config.text_tokenizer is None:
        return bundle
    tokenizer = build_text_tokenizer(config, datasets)
    change_vocabulary(bundle.model, bundle.tokenizer.spell(tokenizer), trunk_ids(tokenizer))
    return replace(bundle, tokenizer=tokenizer)


def adapt(model: UnifiedModel, config: DictConfig) -> UnifiedModel:
    """The model, with adapters where they are configured."""
    if config.lora is not None:
        attach(model, build(config.lora))
    return model


def with_sizes(config: DictConfig, model: UnifiedModel) -> DictConfig:
    """The configuration to keep of a run: where a model to start from has sizes of its own, these instead of `model`."""
    if config.init_from is None or config.init_parts is not None:
        return config
    kept = copy.deepcopy(config)
    OmegaConf.set_readonly(kept, False)
    OmegaConf.update(kept, "model", as_settings(model.config), merge=False, force_add=True)
    return kept


def _parts_to_initialise(config: DictConfig, start: ModelBundle, codes_of: str) -> tuple[set[str], list[str]]:
    """The names of the parts of a model to start from that are initialised again, and notes where that are more than the
    configuration names, or where ports are added.

    codes_of: the fingerprint of the image tokenizer that made the codes.

    Raises:
        ValueError: there is no such part; or sizes are given of parts that have theirs.
    """
    names = set(start.model.parts())
    named: list[str] = list((config.fresh_parts if config.init_parts is None else config.init_parts) or ())
    if unknown := [name for name in named if name not in names]:
        raise ValueError(f"There is no part '{unknown[0]}' in a model: choose among {', '.join(start.model.parts())}.")
    fresh: set[str] = set(named) if config.init_parts is None else names - set(named)
    notes: list[str] = []
    own_codes = fingerprint(start.image_tokenizer) if start.model.config.codes is not None else codes_of
    if names >= CODE_PARTS and own_codes != codes_of and not fresh >= CODE_PARTS:
        if config.lora is not None:
            raise ValueError("An adapter uses its model's image tokenizer: leave image_tokenizer out, or lora.")
        if own_codes in read_ancestors(config.image_tokenizer):
            notes.append(
                f"image_tokenizer={config.image_tokenizer} was trained on from that of {config.init_from}, with its codebook: "
                f"code_embedding and code_head are kept, and learn what its codes mean now."
            )
        else:
            fresh |= CODE_PARTS
            notes.append(_note_on_codes(config))
    for name in _added_ports(config, start.model):
        if config.lora is not None:
            raise ValueError(f"An adapter holds no further port: leave model.ports.{name} out, or lora.")
        notes.append(f"The port '{name}' is new to {config.init_from}: it is trained where stage.lr_scales names its parts.")
    if config.init_parts is None:
        _check_sizes(config, start.model.config, fresh)
    return fresh, notes


def _added_ports(config: DictConfig, model: UnifiedModel) -> list[str]:
    """The names of the configured ports that a model to start from lacks."""
    return [str(name) for name in config.model.get("ports") or {} if name not in model.config.ports]


def _note_on_codes(config: DictConfig) -> str:
    """The note that code_embedding and code_head are reinitialised, and whether the stage trains them."""
    note = (
        f"image_tokenizer={config.image_tokenizer} is not the one that {config.init_from} was trained with, and its codes mean "
        f"something else: code_embedding and code_head are reinitialised"
    )
    if set(config.stage.lr_scales) >= CODE_PARTS:
        return f"{note}."
    return f"{note}, and the stage '{config.stage.name}' does not train them: one such as pretrain does."


def _with_fresh_sizes(
    config: DictConfig, own: UnifiedModel, fresh: set[str], image_tokenizer: ImageTokenizer | None, tokenizer: TextTokenizer
) -> UnifiedConfig:
    """The sizes of a model to start from, but those of fresh parts as the command line gives them, or the image tokenizer; with
    the configured ports that it lacks, or whose parts are fresh."""
    given: UnifiedConfig = build(config.model)
    taken = {group: getattr(given, group) for group in PARTS_OF if _is_sized(group, fresh) and _given_keys(config, group)}
    kept = {name for name in own.config.ports if not fresh & set(getattr(own, name).parts())}
    ports = {**own.config.ports, **{name: port for name, port in given.ports.items() if name not in kept}}
    sizes = replace(own.config, **taken, ports=ports)
    if "trunk" in taken:
        sizes = replace(sizes, trunk={**given.trunk, **trunk_ids(tokenizer)})
    if fresh >= CODE_PARTS and sizes.codes is not None:
        codes = dict.fromkeys(("num_codes", "codebook_size", "code_dim"))
        sizes = sizes if "codes" in taken else replace(sizes, codes=replace(sizes.codes, **codes))
    return fill_sizes(sizes, image_tokenizer and image_tokenizer.config, len(tokenizer))


def _is_sized(group: str, fresh: set[str]) -> bool:
    """Whether a group of sizes is of parts to initialise."""
    return "trunk" in fresh if group == "trunk" else bool(PARTS_OF[group] & fresh)


def _given_keys(config: DictConfig, group: str) -> list[str]:
    """Keys of a group of the model's sizes that the command line or a file gives beside the group's option."""
    return [key for key in given_sizes(config) if key == "model" or f"{key}.".startswith(f"model.{group}.")]


def _check_sizes(config: DictConfig, own: UnifiedConfig, fresh: set[str]) -> None:
    """Raises ValueError where the command line gives a size that the model to start from does not have, and keeps."""
    for group in PARTS_OF:
        keys = [] if _is_sized(group, fresh) else _given_keys(config, group)
        settings = getattr(own, group)
        if group == "trunk":
            has = {**own.trunk_config().to_dict(), **own.trunk}
        else:
            has = {} if settings is None else {"_target_": public_name(type(settings)), **asdict(settings)}
        for name, value in (config.model[group] or {}).items():
            is_given = any(key in ("model", f"model.{group}", f"model.{group}.{name}") for key in keys)
            if is_given and value is not None and has.get(name) != value:
                raise ValueError(
                    f"model.{group}.{name}={value} is not used, since {config.init_from} has sizes of its own "
                    f"({name}={has.get(name)}): leave it out, or reinitialise these parts, "
                    f"fresh_parts=[{','.join(sorted(PARTS_OF[group]))}]."
                )


def as_settings(value: Any) -> Any:
    """A tree of dataclasses as a configuration that builds it."""
    if is_dataclass(value):
        kind = type(value)
        return {"_target_": public_name(kind)} | {one.name: as_settings(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {key: as_settings(one) for key, one in value.items()}
    return [as_settings(one) for one in value] if isinstance(value, list | tuple) else value
