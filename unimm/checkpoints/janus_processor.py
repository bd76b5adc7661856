"""The small files around a Janus' weights, so that `AutoProcessor`, `generate` and `pipeline("any-to-any")` work on the folder.

The tokenizer's own files are not here: the caller writes them beside these.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unimm.checkpoints.janus_config import SpecialIds
from unimm.runtime.atomic_files import write_json

IMAGE_PLACEHOLDER = "<image_placeholder>"  # JanusProcessor replaces it by the image's positions
DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
"""Janus' own; the only one that JanusProcessor can put before a chat."""


DRAWING = {"guidance_scale": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""How Janus draws (deepseek-ai/Janus, generation_inference.py): from all codes, as they are."""


def write_processor(folder: Path, image_size: int, num_positions: int, prompt_format: dict[str, str]) -> None:
    """preprocessor_config.json, processor_config.json and chat_template.jinja.

    image_size: H = W in pixels of an image looked at. num_positions: that it takes in a sequence.
    prompt_format: user, assistant (the roles), system_prompt; what is missing is Janus-Pro's.
    """
    preprocessor = {
        "image_processor_type": "JanusImageProcessor",
        "processor_class": "JanusProcessor",
        "size": {"height": image_size, "width": image_size},
        "min_size": min(14, image_size),  # of the shorter side; Janus' 14 would overshoot the tiniest models
        "do_resize": True,
        "resample": 3,  # bicubic
        "do_pad": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    processor = {
        "processor_class": "JanusProcessor",
        "num_image_tokens": num_positions,
        "use_default_system_prompt": prompt_format.get("system_prompt", "") == DEFAULT_SYSTEM_PROMPT,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / "processor_config.json", processor)
    template = chat_template(prompt_format.get("user", "<|User|>"), prompt_format.get("assistant", "<|Assistant|>"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def generation_config(special: SpecialIds, drawing: Mapping[str, float]) -> dict[str, Any]:
    """generation_config.json: how the model draws; what `drawing` leaves open is as in Janus.

    `top_k` is written because `transformers` would take 50 of the 16,384 codes for a missing one; `guidance_scale` acts on
    drawings only.
    """
    return {
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "do_sample": True,
        **DRAWING,
        **drawing,
        "generation_kwargs": {"boi_token_id": special.begin_of_image},
    }


def chat_template(user: str, assistant: str) -> str:
    """Jinja for `apply_chat_template`, with the text that our own template writes: `user: ...\\n\\nassistant:`.

    The begin-of-sentence token is the tokenizer's to add.
    """
    values = {"USER": user, "ASSISTANT": assistant, "IMAGE": IMAGE_PLACEHOLDER}
    return re.sub("|".join(values), lambda match: repr(values[match[0]]), _CHAT_TEMPLATE)


_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = message['role'] | lower -%}
{%- set content = message['content'] -%}
{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}
{%- if role == 'user' -%}{{- USER + ': ' -}}{%- elif role == 'assistant' -%}{{- ASSISTANT + ': ' -}}{%- endif -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{{- '' if loop.first else '\\n' -}}{{- IMAGE -}}{{- '' if loop.last else '\\n' -}}
{%- else -%}
{%- set text = part['text'] -%}
{%- if loop.first -%}{%- set text = text.lstrip() -%}{%- endif -%}
{%- if loop.last -%}{%- set text = text.rstrip() -%}{%- endif -%}
{{- ' ' if not loop.first and loop.previtem['type'] != 'image' else '' -}}{{- text -}}
{%- endif -%}
{%- endfor -%}
{%- if role == 'assistant' -%}{{- eos_token -}}{%- else -%}{{- '\\n\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ASSISTANT + ':' -}}{%- endif -%}
"""


def model_card(num_parameters: int, reasons: list[str], notes: str = "") -> str:
    """README.md of a model folder.

    reasons: why it is no Janus for `transformers` (`why_not_janus`); empty when it is one.
    notes: Markdown of the person who trained it: recipe, data, scores, licence.
    """
    usage = "unimm" if reasons else "transformers"
    opens = (
        f"It opens with `unimm.load(path)`; `transformers` cannot open it: {'; '.join(reasons)}."
        if reasons
        else "It opens with `unimm.load(path)`, and in `transformers` as `JanusForConditionalGeneration`, without remote code."
    )
    return f"""\
---
pipeline_tag: any-to-any
library_name: {usage}
tags: [unimm, janus, text-to-image, image-to-text]
---

# A unified multimodal model

One autoregressive Transformer that looks at images, answers, and draws: {num_parameters / 1e6:,.1f} million parameters,
the image tokenizer included. Written by [unimm]. {opens}

```python
import unimm
engine = unimm.load("path of this folder")
engine.caption("photo.jpg")
engine.generate_images("a red circle")[0].save("drawing.png")
```
{"" if reasons else _IN_TRANSFORMERS}
{notes.strip() or _NO_NOTES}

Weights that derive from DeepSeek's Janus carry the
DeepSeek Model License and its use restrictions.

[unimm]: https://pypi.org/project/unimm
"""


_NO_NOTES = """\
## Licence

Whoever trained this model says how it may be used: write that here."""

_IN_TRANSFORMERS = """
```python
from inspect import signature

from PIL import Image
from transformers import AutoProcessor, DynamicCache, JanusForConditionalGeneration

processor = AutoProcessor.from_pretrained("path of this folder")
model = JanusForConditionalGeneration.from_pretrained("path of this folder")
messages = [{"role": "user", "content": [{"type": "text", "text": "a red circle"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=[prompt], generation_mode="image", return_tensors="pt")
# A cache that grows: the static one fails with trunks other than Llama, and in some versions with all.
cache = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"  # its name up to 5.23
codes = model.generate(**inputs, generation_mode="image", **{cache: DynamicCache()})
pixels = model.decode_image_tokens(codes).detach()[0].float()
Image.fromarray(((pixels + 1) * 127.5).clamp(0, 255).byte().numpy()).save("drawing.png")
```
"""
"""How to draw with `transformers`: in 5.23 its pipeline cannot."""
