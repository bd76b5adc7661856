"""An image tokenizer as a folder (config.json, model.safetensors), and the fingerprint that ties stored codes to it.

The folder is our own: inside a Janus the same tokenizer is written under transformers' names (`unimm.checkpoints.folder`). Its
weights keep the names of the state dict, the quantizer's moving averages included, so that it can be trained on.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimm.checkpoints.config_json import to_json
from unimm.checkpoints.fingerprint import fingerprint_of
from unimm.checkpoints.further_modules import image_tokenizer_config
from unimm.models.image_tokenizer.gaussian import GaussianConfig
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.image_tokenizer.quantizers import QuantizerConfig
from unimm.runtime.atomic_files import read_json, whole_folder, write_json
from unimm.runtime.format_version import FORMAT_VERSION, check_format, stamped

MODEL_TYPE = "unimm_image_tokenizer"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
ANCESTORS = "trained_from"
"""The key of config.json with the fingerprints of the image tokenizers that this one was trained on from, the nearest first."""
FORMAT = 1
"""The newest version of these folders that is read, and the one that is written."""


def save_image_tokenizer(path: str | Path, tokenizer: ImageTokenizer, ancestors: Iterable[str] = ()) -> None:
    """Write an image tokenizer, whole or not at all; one that was there is replaced.

    ancestors: fingerprints of those that it was trained on from, with its codebook, the nearest first.

    Raises:
        ValueError: the path holds something else.
    """
    with whole_folder(Path(path), WEIGHTS, "an image tokenizer's folder") as folder:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tokenizer.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        content = {"model_type": MODEL_TYPE, "fingerprint": fingerprint(tokenizer), **to_json(tokenizer.config)}
        if before := list(ancestors):
            content[ANCESTORS] = before
        write_json(folder / CONFIG, stamped(FORMAT, content))


def load_image_tokenizer(path: str | Path, device: str | torch.device = "cpu", allow_code: bool = False) -> ImageTokenizer:
    """The image tokenizer of a folder, frozen, in evaluation mode.

    allow_code: import the package of its quantizer, where it is not ours (`unimm.runtime.plugins`).

    Raises:
        ValueError: there is no image tokenizer in the folder, or its quantizer's code is not allowed or not here.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no image tokenizer ({CONFIG}, {WEIGHTS}): train one with `unimm train-tokenizer`.")
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if content.pop("model_type", None) != MODEL_TYPE:
        raise ValueError(f"{folder} is a folder of another kind of model, not of an image tokenizer ({MODEL_TYPE}).")
    check_format(content, FORMAT, folder / CONFIG)
    for key in ("fingerprint", ANCESTORS, FORMAT_VERSION):
        content.pop(key, None)
    tokenizer = ImageTokenizer(image_tokenizer_config(content, str(folder / CONFIG), allow_code))
    try:
        tokenizer.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise ValueError(f"The image tokenizer in {folder} does not fit this version: {error}.") from error
    return tokenizer.to(device).freeze()


def read_ancestors(path: str | Path) -> list[str]:
    """The fingerprints of the image tokenizers that the one of a folder was trained on from, the nearest first; none where it
    began afresh, or where the folder is another one."""
    content = read_json(Path(path) / CONFIG) or {}
    return list(content.get(ANCESTORS) or ()) if content.get("model_type") == MODEL_TYPE else []


def fingerprint(tokenizer: ImageTokenizer) -> str:
    """sha256 over all that decides what codes or latents mean: sizes, the kind of quantizer, weights and codebook, or what
    latents are scaled by, with their dtypes.

    How the tokenizer was trained (decay, loss weights, moving averages) is left out.
    """
    sizes = asdict(replace(tokenizer.config, quantizer=QuantizerConfig()))
    del sizes["quantizer"]
    if sizes["coarsest_attends"]:  # as all did before there was a choice
        del sizes["coarsest_attends"]
    quantizer = tokenizer.config.quantizer
    if isinstance(quantizer, QuantizerConfig):
        sizes |= {name: getattr(quantizer, name) for name in ("kind", "codebook_size", "code_dim", "levels")}
    elif isinstance(quantizer, GaussianConfig):
        sizes |= {"kind": "gaussian", "code_dim": quantizer.code_dim}
    else:  # another package's: any field may matter
        sizes["quantizer"] = to_json(quantizer)
    tensors: dict[str, Tensor] = {n: p for n, p in tokenizer.named_parameters() if not n.startswith("quantize.")}
    return fingerprint_of(sizes, tensors | tokenizer.quantize.identity())
