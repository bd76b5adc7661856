"""Which prompt template, drawing settings and image preparation a checkpoint declares, in its files beside the weights.

    model type       prompts                                      drawings                 images
    unimm, janus     config.json, key `unimm` (if we wrote it)    generation_config.json   preprocessor_config.json
    janus            chat template, processor_config.json         generation_config.json   preprocessor_config.json
    multi_modality   processor_config.json (`sft_format`)         -                        preprocessor_config.json

The image processor may also stand inside processor_config.json. What is not written is as in Janus. What is written and cannot
be followed is refused: a wrong prompt or scale of pixels would only show as a worse model.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unimm.checkpoints import deepseek_config, janus_config
from unimm.checkpoints.janus_processor import DEFAULT_SYSTEM_PROMPT, DRAWING
from unimm.data.template import PromptFormat
from unimm.data.text import TextTokenizer
from unimm.runtime.atomic_files import read_json

OLD_ROLES = {"user": "User", "assistant": "Assistant"}
"""Janus-1.3B writes its roles as plain text; Janus-Pro has a token for each."""

SFT_FORMATS = {"deepseek": {}, "deepseek_old": OLD_ROLES}
"""DeepSeek's names of prompt formats that a Janus was trained with (conversation.py)."""


@dataclass(frozen=True)
class DrawingDefaults:
    """How a model draws where a caller does not say. The defaults are Janus'."""

    guidance_scale: float = DRAWING["guidance_scale"]
    temperature: float = DRAWING["temperature"]
    top_k: int = int(DRAWING["top_k"])
    top_p: float = DRAWING["top_p"]


def read_prompt_format(folder: Path, config: Mapping[str, Any], tokenizer: TextTokenizer) -> PromptFormat:
    """How the prompts of a model folder are written. config: its config.json.

    Raises:
        ValueError: it is written in a form that unimm does not have.
    """
    kept = (config.get("unimm") or {}).get("prompt_format")
    if kept is not None:
        try:
            return PromptFormat(**kept)
        except TypeError as error:
            raise ValueError(f"The prompt format in {folder / 'config.json'} is unknown: {error}.") from error
    processor = read_json(folder / "processor_config.json") or {}
    roles = {} if tokenizer.special.user is not None else OLD_ROLES
    if config.get("model_type") == deepseek_config.MODEL_TYPE:
        name = processor.get("sft_format", "deepseek")
        if name not in SFT_FORMATS:
            known = " and ".join(SFT_FORMATS)
            raise ValueError(f"{folder / 'processor_config.json'}: unknown sft_format '{name}', unimm writes {known}.")
        # "deepseek" once meant the old roles; the tokenizer shows which.
        return PromptFormat(**{**roles, **SFT_FORMATS[name]}, system_prompt=DEFAULT_SYSTEM_PROMPT)
    if config.get("model_type") == janus_config.MODEL_TYPE:
        system_prompt = DEFAULT_SYSTEM_PROMPT if processor.get("use_default_system_prompt") else ""
        template = _chat_template(folder)
        roles = roles if template is None else _roles_of(template, folder, tokenizer)
        return PromptFormat(**roles, system_prompt=system_prompt)
    return PromptFormat(**roles)


def read_drawing_defaults(folder: Path) -> DrawingDefaults:
    """Sampling settings of drawings in a model folder (generation_config.json); Janus' where it has none.

    Raises:
        ValueError: a value is no number.
    """
    written = read_json(folder / "generation_config.json") or {}
    drawing = DrawingDefaults()
    for name, value in asdict(drawing).items():
        given = written.get(name)
        if given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise ValueError(f"{folder / 'generation_config.json'}: {name} is {given!r}, it must be a number.")
        drawing = replace(drawing, **{name: type(value)(given)})
    return drawing


def check_image_preparation(folder: Path) -> None:
    """ValueError: the folder's image processor prepares images otherwise than every Janus does, to [-1, 1]."""
    # transformers 5 writes one file for the whole processor.
    written = (read_json(folder / "processor_config.json") or {}).get("image_processor")
    written = written or read_json(folder / "preprocessor_config.json") or {}
    half = [0.5, 0.5, 0.5]
    expected = {"image_mean": half, "image_std": half, "do_normalize": True, "do_rescale": True, "do_resize": True}
    for name, value in expected.items():
        if written.get(name, value) != value:
            raise ValueError(
                f"The image processor in {folder}: {name} is {json.dumps(written[name])}, but unimm prepares images "
                f"with {json.dumps(value)}, as every released Janus: correct the file if it is wrong."
            )


def _chat_template(folder: Path) -> str | None:
    """The processor's chat template, where the folder has one; not a tokenizer's own, which may have no images."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return (read_json(folder / "chat_template.json") or {}).get("chat_template")


def _roles_of(template: str, folder: Path, tokenizer: TextTokenizer) -> dict[str, str]:
    """The roles of a chat template, read from a turn that it renders. ValueError: it has not Janus' form."""
    turn = {"role": "user", "content": [{"type": "text", "text": "QUESTION"}]}
    try:
        written = tokenizer.tokenizer.apply_chat_template(
            [turn], chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program of its own: jinja2's errors, and whatever it raises itself
        raise ValueError(f"The chat template in {folder} cannot write a user's turn: {error}.") from error
    found = re.fullmatch(r"(.+): QUESTION\n\n(.+):", str(written))
    if found is None:
        raise ValueError(
            f"The chat template in {folder} writes {written!r}, not 'USER: QUESTION\\n\\nASSISTANT:' as a Janus does: "
            f"name the roles under `unimm.prompt_format` (user, assistant, system_prompt) in config.json."
        )
    return {"user": found[1], "assistant": found[2]}
