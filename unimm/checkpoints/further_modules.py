"""Modules of a model folder beside the unified model and its image tokenizer: further image tokenizers, and heads.

Their weights lie in a file of their own and their configs under the key `unimm` of config.json, so that a Janus with heads is
still a Janus to `transformers`, which reads neither. Names of weights: `image_tokenizers.NAME.*` and `heads.NAME.*`.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unimm.checkpoints.config_json import from_json, to_json
from unimm.checkpoints.weight_files import SafetensorFiles
from unimm.models.contrastive import NAME as CONTRASTIVE
from unimm.models.contrastive import Temperature
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig
from unimm.models.vision.qformer_text import NAME as QFORMER_TEXT
from unimm.runtime.plugins import TARGET

WEIGHTS = "further_modules.safetensors"

READS = {CONTRASTIVE: "vision", QFORMER_TEXT: "projector"}
"""The part of the unified model that each head reads: once it has been trained without the head, they fit no longer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FurtherModules:
    """By name. A head has a `config`: a dataclass whose `build()` makes such a head."""

    image_tokenizers: Mapping[str, ImageTokenizer] = field(default_factory=dict)
    heads: Mapping[str, nn.Module] = field(default_factory=dict)

    def all(self) -> dict[str, nn.Module]:
        """Every module, by the prefix of its weights."""
        tokenizers = {f"image_tokenizers.{name}": one for name, one in self.image_tokenizers.items()}
        return {**tokenizers, **{f"heads.{name}": head for name, head in self.heads.items()}}


def write_further_modules(folder: Path, further: FurtherModules) -> dict[str, Any]:
    """Write the weights into a folder; gives what config.json is to hold of them, empty where there are none.

    Raises:
        ValueError: a head cannot be written, since it lacks a config.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in further.all().items():
        tensors |= {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    if not further.all():
        return {}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    tokenizers = {name: to_json(one.config) for name, one in further.image_tokenizers.items()}
    return {"image_tokenizers": tokenizers, "heads": {name: _head_json(name, head) for name, head in further.heads.items()}}


def read_further_modules(
    folder: Path, written: Mapping[str, Any], device: torch.device, dtype: torch.dtype | None, allow_code: bool
) -> FurtherModules:
    """The further modules of a folder, in evaluation mode. written: what config.json holds of them.

    Raises:
        ValueError: code of another package is needed and not allowed or not here, or weights and configs do not fit.
    """
    tokenizers = {
        name: ImageTokenizer(image_tokenizer_config(values, f"{folder / 'config.json'}, image_tokenizers.{name}", allow_code))
        for name, values in (written.get("image_tokenizers") or {}).items()
    }
    heads = {
        name: _build_head(values, f"{folder / 'config.json'}, heads.{name}", allow_code)
        for name, values in (written.get("heads") or {}).items()
    }
    further = FurtherModules(tokenizers, heads)
    if not further.all():
        return further
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} lacks {WEIGHTS}, which its config.json names: copy or download the folder again.")
    files = SafetensorFiles(folder, torch.device("cpu"), [folder / WEIGHTS])
    states = {prefix: module.state_dict() for prefix, module in further.all().items()}
    files.check({f"{prefix}.{name}": tuple(t.shape) for prefix, state in states.items() for name, t in state.items()})
    for prefix, module in further.all().items():
        module.load_state_dict({name: files.read(f"{prefix}.{name}") for name in states[prefix]})
        change_module_dtype(module.to(device).eval(), dtype)
    for tokenizer in tokenizers.values():
        tokenizer.freeze()
    return further


def change_module_dtype(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Have a module's weights in a dtype, in place; None: as they are. Buffers stay as they are, and an image tokenizer's
    quantizer, and a temperature: a factor of 100 would be 98.9 in bfloat16."""
    whole = [module.quantize] if isinstance(module, ImageTokenizer) else []
    whole += [one for one in module.modules() if isinstance(one, Temperature)]
    kept = {id(parameter) for one in whole for parameter in one.parameters()}
    for parameter in module.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)


def without_heads_of(further: FurtherModules, changed: Collection[str], adapter: str | Path) -> FurtherModules:
    """The further modules without the heads that read a part that an adapter has changed, which a warning says.

    changed: names of parts.
    """
    lost = [name for name in further.heads if READS.get(name) in changed]
    for name in lost:
        logger.warning(f"The heads '{name}' are left out: {adapter} changes the {READS[name]} that they were trained with.")
    return replace(further, heads={name: head for name, head in further.heads.items() if name not in lost})


def image_tokenizer_config(values: Mapping[str, Any], where: str, allow_code: bool = False) -> ImageTokenizerConfig:
    """An image tokenizer's config of JSON values; its quantizer may be of another package.

    Raises:
        ValueError: a key is unknown or missing, or code is not allowed or not here.
    """
    quantizer = from_json(QuantizerConfig, values.get("quantizer") or {}, f"{where}.quantizer", allow_code)
    return from_json(ImageTokenizerConfig, {**values, "quantizer": quantizer}, where, allow_code)


def _head_json(name: str, head: nn.Module) -> dict[str, Any]:
    config = getattr(head, "config", None)
    if not is_dataclass(config) or isinstance(config, type) or not hasattr(config, "build"):
        raise ValueError(f"The head '{name}' has no config that could build it again: give it one, a dataclass with build().")
    return to_json(config, is_named=True)


def _build_head(values: Mapping[str, Any], where: str, allow_code: bool) -> nn.Module:
    config = from_json(None, values, where, allow_code)
    if not hasattr(config, "build"):
        raise ValueError(f"{where} names {values.get(TARGET)}, which has no build(): it is not the config of a head.")
    return config.build()
