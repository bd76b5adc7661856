"""What harnesses ask: settings as `transformers` names them, many conversations at once, drawings as files.

Nothing here knows a harness. What a harness asks for and the engine does not do is an error, not another number: beam search,
video, sound.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from unimm.data.image import decode_image
from unimm.inference.engine import Engine
from unimm.inference.messages import Message
from unimm.inference.windows_of_images import lay_over
from unimm.runtime.number_checks import whole_number

MAX_NEW_TOKENS = 512
"""Where a task names no limit; the model's room may be less."""


@dataclass(frozen=True)
class Generation:
    """How a text is written. until: strings that end it, none of which it contains."""

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    until: tuple[str, ...] = ()

    @classmethod
    def read(cls, asked: Mapping[str, Any], max_new_tokens: int | None = None) -> "Generation":
        """From a harness' keywords for `transformers`' generate; `max_new_tokens` stands in place of theirs.

        Raises:
            ValueError: beams are asked for, or a value is no number.
        """
        if int(asked.get("num_beams") or 1) > 1:
            raise ValueError(f"The task asks for {asked['num_beams']} beams, and unimm writes one text: set num_beams to 1.")
        until = asked.get("until") or ()
        samples = bool(asked.get("do_sample", float(asked.get("temperature") or 0) > 0))
        limit = max_new_tokens or asked.get("max_new_tokens") or asked.get("max_gen_toks") or asked.get("max_tokens")
        return cls(
            max_new_tokens=whole_number("max_new_tokens", limit or MAX_NEW_TOKENS, 1),
            temperature=float(asked.get("temperature") or 1.0) if samples else 0.0,
            top_p=float(asked.get("top_p") or 1.0) if samples else 1.0,
            top_k=int(asked.get("top_k") or 0) if samples else 0,
            until=(until,) if isinstance(until, str) else tuple(one for one in until if one),
        )


def read_parts(messages: Any, system_prompt: str | None = None) -> list[Message]:
    """A harness' messages, {"role", "content": [{"type", "text" or "url"}]}, as the engine takes them.

    system_prompt: said instead of the model's own, where the messages have none; "" says nothing.

    Raises:
        ValueError: a part is neither text nor an image.
    """
    read: list[Message] = []
    for message in messages:
        parts = message["content"]
        content = [{"type": "text", "text": parts}] if isinstance(parts, str) else [_part(part) for part in parts]
        content = [part for part in content if part["type"] != "text" or part["text"].strip()] or content
        read.append({"role": message["role"], "content": content})
    if system_prompt is not None and (not read or read[0]["role"] != "system"):
        read.insert(0, {"role": "system", "content": system_prompt})
    return read


def images_and_text(messages: list[Message]) -> tuple[list[Any], str]:
    """All images of messages, and all text of the user's, line by line: what a drawing is made of."""
    parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return [part["image"] for part in parts if part["type"] == "image"], "\n".join(texts).strip()


def answer_all(
    engine: Engine, conversations: list[list[Message]], settings: list[Generation], batch_size: int = 64, seed: int = 0
) -> list[str]:
    """The next turn of every conversation, in their order; those of one setting are written together."""
    texts: dict[int, str] = {}
    for setting, batch in batches_of(settings, batch_size):
        texts |= zip(batch, _write(engine, [conversations[index] for index in batch], setting, seed), strict=True)
    return [texts[index] for index in range(len(conversations))]


def batches_of(settings: list[Generation], size: int) -> Iterator[tuple[Generation, list[int]]]:
    """The places of requests that are alike in their settings, `size` at a time."""
    groups: dict[Generation, list[int]] = {}
    for index, setting in enumerate(settings):
        groups.setdefault(setting, []).append(index)
    for setting, indices in groups.items():
        for start in range(0, len(indices), size):
            yield setting, indices[start : start + size]


def draw_all(engine: Engine, prompts: list[str], names: list[str], folder: Path, seed: int = 0, **settings: Any) -> list[str]:
    """One drawing of every prompt as FOLDER/NAME.png, and for each the answer that harnesses read: {"text", "images": [path]}.

    names: of the items; the noise of a drawing goes by (seed, name), so any number of processes draws the same.
    settings: of `Engine.generate_images`.
    """
    drawn = engine.generate_images(prompts, num_images=1, seed=_seeds(names, seed), **settings)
    return [_kept(image, name, folder) for name, (image,) in zip(names, drawn, strict=True)]


def edit_all(
    engine: Engine, images: list[Any], prompts: list[str], names: list[str], folder: Path, seed: int = 0, **settings: Any
) -> list[str]:
    """As `draw_all`, of images that the prompts say how to change: each comes back in its own size, changed in the square at
    its centre. settings: of `Engine.edit_images`.

    Raises:
        ValueError: the model was not taught to edit, or an image cannot be read.
    """
    sources = [decode_image(image) for image in images]
    edited = engine.edit_images(sources, prompts, num_images=1, seed=_seeds(names, seed), **settings)
    made = [lay_over(source, image) for source, (image,) in zip(sources, edited, strict=True)]
    return [_kept(image, name, folder) for name, image in zip(names, made, strict=True)]


def _seeds(names: list[str], seed: int) -> list[int]:
    return [(zlib.crc32(name.encode()) + seed) % 2**31 for name in names]


def _kept(image: Image.Image, name: str, folder: Path) -> str:
    """The answer that names an image, which is written."""
    from unimm.runtime.provenance import write_image

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.png"
    write_image(image, path)
    return json.dumps({"text": "", "images": [str(path)]}, ensure_ascii=False)


def _write(engine: Engine, conversations: list[list[Message]], setting: Generation, seed: int) -> list[str]:
    options: dict[str, Any] = {"temperature": setting.temperature, "stop": list(setting.until) or None, "fit": True}
    if setting.temperature:
        options |= {"top_p": setting.top_p, "top_k": setting.top_k, "seed": seed}
    return [completion.text for completion in engine.complete(conversations, setting.max_new_tokens, **options)]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        return {"type": "image", "image": part.get("url", part.get("image"))}
    raise ValueError(
        f"A task shows {kind or 'a part without a type'}, and the model reads text and images: choose another task."
    )
