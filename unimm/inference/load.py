"""From a path to an engine: a model folder's weights, its text tokenizer, and its conventions."""

from pathlib import Path
from typing import Any

import torch

from unimm.checkpoints.folder import LoadedModel, change_dtype, load_model
from unimm.checkpoints.prompt_conventions import check_image_preparation, read_drawing_defaults, read_prompt_format
from unimm.data.text import TextTokenizer
from unimm.inference.engine import Engine
from unimm.runtime.devices import choose_device, choose_dtype, keep_memory


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    adapter: str | Path | None = None,
    **engine: Any,
) -> Engine:
    """A model, ready to use. On a CPU the process keeps freed memory from then on (`unimm.runtime.devices.keep_memory`).

    Args:
        path: a model folder, a hub id such as "deepseek-community/Janus-Pro-1B", or "demo", the model that comes with unimm.
        device: "cuda", "cuda:1", "mps", "cpu"; default: the best that is here.
        dtype: "float32", "bfloat16" or "float16"; default: a sensible one for the model's size and the device.
        adapter: a folder or hub id of LoRA matrices that were made for this model, to merge into its weights in memory.
        engine: `limits`, `weights` ("int8", "int4", "fp8") and `deterministic` of `Engine`.

    Raises:
        ValueError: there is no such model or adapter, it cannot be read, the adapter is another model's, or the device is not
            here: one sentence says what to do.
    """
    where = choose_device(device)
    if where.type == "cpu":
        keep_memory()
    return open_engine(_load_model(path, where, dtype, adapter), **engine)


def open_engine(loaded: LoadedModel, **engine: Any) -> Engine:
    """The engine of a model that was read, with what its folder holds beside the weights; `engine` as in `load`.

    Raises:
        ValueError: the text tokenizer is missing or does not fit, or a convention of the folder cannot be followed.
    """
    folder = loaded.folder
    tokenizer = TextTokenizer.load(folder)
    rows = loaded.model.text.embedding.num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} ids, the model {rows}: they are not of one model.")
    check_image_preparation(folder)
    prompt_format = read_prompt_format(folder, loaded.config, tokenizer)
    drawing = read_drawing_defaults(folder)
    return Engine(loaded.model, loaded.image_tokenizer, tokenizer, prompt_format, drawing, **engine)


def _load_model(
    path: str | Path, device: torch.device, dtype: str | torch.dtype | None, adapter: str | Path | None
) -> LoadedModel:
    if dtype is not None or device.type != "cpu":
        return load_model(path, device, choose_dtype(dtype, device), adapter=adapter)
    loaded = load_model(path, device, adapter=adapter)
    size = sum(parameter.numel() for parameter in loaded.model.parameters())  # on a CPU it decides
    change_dtype(loaded.model, loaded.image_tokenizer, choose_dtype(None, device, size))
    return loaded
