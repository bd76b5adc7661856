"""An image tokenizer as a folder (config.json, model.safetensors), and the fingerprint that ties stored codes to it.

The folder is our own: inside a Janus the same tokenizer is written under transformers' names (`unimm.checkpoints.folder`). Its
weights keep the names of the state dict, the quantizer's moving averages included, so that it can also learn on.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimm.checkpoints.fingerprint import fingerprint_of
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig
from unimm.runtime.atomic_files import whole_folder, write_json

MODEL_TYPE = "unimm_image_tokenizer"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_image_tokenizer(path: str | Path, tokenizer: ImageTokenizer) -> None:
    """Write an image tokenizer, whole or not at all; one that was there is replaced.

    Raises:
        ValueError: the path holds something else.
    """
    with whole_folder(Path(path), WEIGHTS, "an image tokenizer's folder") as folder:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tokenizer.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        content = {"model_type": MODEL_TYPE, "fingerprint": fingerprint(tokenizer), **asdict(tokenizer.config)}
        write_json(folder / CONFIG, content)


def load_image_tokenizer(path: str | Path, device: str | torch.device = "cpu") -> ImageTokenizer:
    """The image tokenizer of a folder, frozen, in evaluation mode.

    Raises:
        ValueError: there is no image tokenizer in the folder.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no image tokenizer ({CONFIG}, {WEIGHTS}): train one with `unimm train-tokenizer`.")
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if content.pop("model_type", None) != MODEL_TYPE:
        raise ValueError(f"{folder} is a folder of another kind of model, not of an image tokenizer ({MODEL_TYPE}).")
    content.pop("fingerprint", None)
    try:
        quantizer = QuantizerConfig(**content.pop("quantizer"))
        tokenizer = ImageTokenizer(ImageTokenizerConfig(**content, quantizer=quantizer))
        tokenizer.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"The image tokenizer in {folder} does not fit this version: {error}.") from error
    return tokenizer.to(device).freeze()


def fingerprint(tokenizer: ImageTokenizer) -> str:
    """sha256 over all that decides what codes mean: sizes, the kind of quantizer, weights and codebook, with their dtypes.

    How the tokenizer was trained (decay, loss weights, moving averages) is left out.
    """
    config = asdict(tokenizer.config)
    quantizer = config.pop("quantizer")
    sizes = {**config, **{name: quantizer[name] for name in ("kind", "codebook_size", "code_dim", "levels")}}
    tensors: dict[str, Tensor] = {n: p for n, p in tokenizer.named_parameters() if not n.startswith("quantize.")}
    tensors["codebook"] = tokenizer.quantize.codebook
    return fingerprint_of(sizes, tensors)
