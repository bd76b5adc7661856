"""From a path to an engine: the weights, the text tokenizer and the prompt format of a model folder."""

from pathlib import Path
from typing import Any

import torch

from unimm.data.template import PromptFormat
from unimm.data.text import TextTokenizer
from unimm.devices import choose_device, choose_dtype
from unimm.inference.engine import Engine
from unimm.models.folder import LoadedModel, load_model

JANUS_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
"""What Janus' checkpoints were trained to hear before a conversation (deepseek-ai/Janus, conversation.py)."""


def load(path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Engine:
    """A model, ready to use.

    Args:
        path: a model folder, or a hub id such as "deepseek-community/Janus-Pro-1B".
        device: "cuda", "cuda:1", "mps", "cpu"; default: the best that is here.
        dtype: "float32", "bfloat16" or "float16"; default: a sensible one for the model's size and the device.

    Raises:
        ValueError: there is no such model, it cannot be read, or the device is not here: one sentence says what to do.
    """
    if str(path) == "demo":
        raise ValueError("No demo model ships yet: `unimm quickstart` makes one, then load 'runs/quickstart/model'.")
    loaded = _load_model(path, choose_device(device), dtype)
    tokenizer = TextTokenizer.load(loaded.folder)
    return Engine(loaded.model, loaded.image_tokenizer, tokenizer, _prompt_format(loaded, tokenizer))


def _load_model(path: str | Path, device: torch.device, dtype: str | torch.dtype | None) -> LoadedModel:
    if dtype is not None or device.type != "cpu":
        return load_model(path, device, choose_dtype(dtype, device))
    # On a CPU the size decides; weights are mapped, not read, so that a second look costs next to nothing.
    loaded = load_model(path, device)
    parameters = list(loaded.model.parameters())
    chosen = choose_dtype(None, device, sum(parameter.numel() for parameter in parameters))
    if all(parameter.dtype == chosen for parameter in parameters):
        return loaded
    return load_model(path, device, chosen)


def _prompt_format(loaded: LoadedModel, tokenizer: TextTokenizer) -> PromptFormat:
    """What the folder says, else the format of the Janus checkpoint that the tokenizer belongs to."""
    kept: dict[str, Any] | None = loaded.extra.get("prompt_format")
    if kept is not None:
        try:
            return PromptFormat(**kept)
        except TypeError as error:
            raise ValueError(f"The prompt format in {loaded.folder / 'config.json'} is unknown: {error}.") from error
    if tokenizer.special.user is not None:
        return PromptFormat(system_prompt=JANUS_SYSTEM_PROMPT)
    return PromptFormat("User", "Assistant", JANUS_SYSTEM_PROMPT)
