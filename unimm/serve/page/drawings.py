"""What Draw and Compare share: a drawing's settings, its file with where it comes from, and the model's own judgement."""

import asyncio
from dataclasses import dataclass
from typing import Any

from PIL import Image

from unimm.inference.engine import Engine
from unimm.serve.page.cards import Card, data_uri
from unimm.serve.page.context import Page

PREVIEWS = 8
"""Of one drawing, where it is slow enough to need them."""


@dataclass(frozen=True)
class Drawing:
    """What was asked for; images of it differ by their index."""

    prompt: str
    seed: int
    guidance: float
    temperature: float

    @property
    def settings(self) -> dict[str, Any]:
        """For the engine."""
        return {"guidance_scale": self.guidance, "temperature": self.temperature}

    def card(self, page: Page, image: Image.Image, index: int, chance: float | None) -> Card:
        """A finished image of it; slow enough for a thread."""
        words = page.words
        caption = words("drawn_with", seed=self.seed, guidance=f"{self.guidance:g}", temperature=f"{self.temperature:g}")
        name = f"unimm-{self.seed}-{index + 1}.png"
        actions = {"ask": words("ask_about"), "inside": words("look_inside")}
        return Card(data_uri(image), words("drawing_of", prompt=self.prompt), name, (caption,), chance, actions)


def preview_every(engine: Engine) -> int:
    """Codes between two previews."""
    return max(1, engine.image_tokenizer.num_codes // PREVIEWS)


async def judge(engine: Engine, images: list[Image.Image], prompt: str) -> list[float] | list[None]:
    """How probable the model finds of each image that it shows the prompt; None where that is too long to be asked about."""
    try:
        return await asyncio.to_thread(engine.alignment, images, prompt)
    except ValueError:
        return [None] * len(images)
