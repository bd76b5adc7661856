"""Parts that are pretrained: a language model of `transformers` as the trunk, a SigLIP as the vision tower, and parts of
another model of ours, whose text vocabulary may change.

What stage I of Janus and LLaVA's first stage start from; projector, code embedding and image head are new. A vocabulary that
grows by special tokens gets them as means of the others. The tower computes exact GELU, as Janus' does, whatever a SigLIP's
config names: most name its tanh approximation, which is close.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SiglipVisionConfig

from unimm.checkpoints.janus_config import clean_trunk
from unimm.checkpoints.weight_files import WeightFiles, open_weights, read_config
from unimm.checkpoints.weight_names import LANGUAGE_MODEL, SIGLIP, SIGLIP_TOWER, Names
from unimm.models.ports.vocabulary import TextPort
from unimm.models.unified import UnifiedModel
from unimm.models.vision.tower import VisionConfig

SIGLIP_TYPES = ("siglip", "siglip_vision_model")
TOWER = "pixels.tower."
EMBEDDING, HEAD = "text.embedding.weight", "text.head.weight"


def read_trunk_sizes(folder: Path) -> dict[str, Any]:
    """A language model's config as `UnifiedConfig.trunk` has it.

    Raises:
        ValueError: there is none, or its weights are quantized.
    """
    raw = read_config(folder)
    if raw.get("quantization_config"):
        raise ValueError(f"{folder} holds quantized weights, which cannot be trained: name the model that they were made from.")
    if "model_type" not in raw or "hidden_size" not in raw:
        raise ValueError(f"{folder} holds no language model: its config.json names no model_type with a hidden_size.")
    return clean_trunk(raw)


def read_tower_sizes(folder: Path) -> VisionConfig:
    """The sizes of a SigLIP's vision tower, from a whole SigLIP or from its tower alone.

    Raises:
        ValueError: the folder holds something else, or patches do not fill its images.
    """
    raw = read_config(folder)
    if raw.get("model_type") not in SIGLIP_TYPES:
        raise ValueError(f"{folder} holds a model of type {raw.get('model_type')!r}: a vision tower is a {SIGLIP_TYPES[0]}.")
    sizes = SiglipVisionConfig(**raw.get("vision_config", raw)).to_dict()  # with its defaults
    return VisionConfig(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        width=sizes["hidden_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        mlp_ratio=sizes["intermediate_size"] / sizes["hidden_size"],
    )


def load_trunk(model: UnifiedModel, folder: Path) -> None:
    """Give a model a language model's weights, in place: trunk, token embedding, head.

    Raises:
        ValueError: the weights are missing, pickled, or of other sizes.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(("trunk.", "text."))}
    if model.text.head.weight is model.text.embedding.weight:
        del expected[HEAD]
    _load(expected, open_weights(folder, torch.device("cpu")), LANGUAGE_MODEL)


def load_tower(model: UnifiedModel, folder: Path) -> None:
    """Give a model a SigLIP's vision tower, in place.

    Raises:
        ValueError: the weights are missing, pickled, or of other sizes.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(TOWER)}
    files = open_weights(folder, torch.device("cpu"))
    # A tower alone is written without the first part of its names by newer versions of transformers.
    is_bare = not any(name.startswith("vision_model.") for name in files.shapes)
    _load(expected, files, SIGLIP_TOWER if is_bare else SIGLIP)


def take_parts(model: UnifiedModel, source: UnifiedModel, names: Iterable[str]) -> None:
    """Give a model some of another model's parts, in place.

    names: of `UnifiedModel.parts`.

    Raises:
        ValueError: there is no such part, or it is of other sizes.
    """
    own, others = model.parts(), source.parts()
    for name in names:
        if name not in own:
            raise ValueError(f"There is no part '{name}' in a model: choose among {', '.join(own)}.")
        here, there = ({key: tuple(value.shape) for key, value in part[name].state_dict().items()} for part in (own, others))
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                raise ValueError(
                    f"The {name} of the model to start from differs in size: {key} is {there.get(key, 'missing')} there and "
                    f"{here.get(key, 'missing')} here; give `model` the same sizes, or reinitialise that part (fresh_parts)."
                )
        own[name].load_state_dict(others[name].state_dict())


@torch.no_grad()
def change_vocabulary(model: UnifiedModel, pieces: list[list[int]], special: dict[str, int]) -> None:
    """Give a model another text vocabulary, in place.

    Each new token starts as the mean of the old ones that wrote it (Gee et al. 2022, arXiv 2402.09977), where it is read and
    where it is predicted, and as the mean of all where there are none.

    pieces: for each new id, the old ids.
    special: the trunk's ids of the new vocabulary, such as `bos_token_id`, by the name that `transformers` has for them.
    """
    old, is_tied = model.text, model.text.head.weight is model.text.embedding.weight
    new = TextPort(len(pieces), model.width, is_tied).to(old.embedding.weight)
    for before, after in ((old.embedding.weight, new.embedding.weight), (old.head.weight, new.head.weight)):
        mean_D = before.mean(0)
        for row, ids in enumerate(pieces):
            after[row] = before[ids].mean(0) if ids else mean_D
    model.text = new
    sizes = {**special, "vocab_size": len(pieces)}
    model.config = replace(model.config, trunk={**model.config.trunk, **sizes})
    for name, value in sizes.items():
        setattr(model.trunk.config, name, value)


def lengthen(model: UnifiedModel, num_positions: int) -> None:
    """Let a model take longer sequences than it was made for, in place. No weight changes: rotary positions go on as they are,
    and what lies beyond the old length has to be trained.

    Raises:
        ValueError: its positions are not plain rotary ones, so that their number is part of how they are computed.
    """
    rope = getattr(model.trunk.config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        raise ValueError(
            f"max_position_embeddings={num_positions} cannot be had: the positions of this trunk (model_type "
            f"{model.trunk.config.model_type}) are not plain rotary ones, and depend on their number; leave it out."
        )
    model.config = replace(model.config, trunk={**model.config.trunk, "max_position_embeddings": num_positions})
    model.trunk.config.max_position_embeddings = num_positions


@torch.no_grad()
def _load(own: dict[str, Tensor], files: WeightFiles, names: Names) -> None:
    """Copy a folder's tensors into these, which go by our names."""
    for name in [name for name in files.shapes if names.unused.fullmatch(name)]:
        files.leave_out(name)
    entries = {name: names.entries(name, tuple(tensor.shape)) for name, tensor in own.items()}
    if EMBEDDING in own and HEAD not in own:
        (tied,) = names.entries(HEAD, ())
        files.shapes.pop(tied, None)
    expected = {theirs: shape for parts in entries.values() for theirs, shape in parts.items()}
    for name in (EMBEDDING, HEAD):
        for theirs in entries.get(name, {}):
            # The vocabulary may have grown; its width may not.
            rows, width = expected[theirs]
            expected[theirs] = (min(rows, files.shapes.get(theirs, (rows,))[0]), width)
    files.check(expected)
    for name, tensor in own.items():
        parts = [files.read(theirs) for theirs in entries[name]]
        read = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(tensor.dtype)
        if name in (EMBEDDING, HEAD):
            read = torch.cat([read, read.mean(0, keepdim=True).expand(len(tensor) - len(read), -1)])
        tensor.copy_(read.reshape(tensor.shape))
