"""What the tabs that draw share: settings, progress, a drawing's file with where it comes from, the model's own judgement."""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from unimm.data.records import LATENTS
from unimm.inference.engine import Engine
from unimm.inference.windows_of_images import read_size
from unimm.serve.page.cards import Card, data_uri, progress_line, show_wall
from unimm.serve.page.context import Page

MOST_OF_EACH = 8
"""Pictures, and drawings for each, at most, however many the server allows."""

LARGEST_SEED = 2**31

NUM_SETTINGS = 4
"""Of `drawing_settings`."""

PREVIEWS = 8
"""Of one drawing, where it is slow enough to need them."""


@dataclass(frozen=True)
class Drawing:
    """What was asked for; images of it differ by their index."""

    prompt: str
    seed: int
    guidance: float
    temperature: float
    size: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """For the engine."""
        own = {} if self.size is None else {"size": self.size}
        return {"guidance_scale": self.guidance, "temperature": self.temperature, **own}

    def settings_for(self, engine: Engine) -> dict[str, Any]:
        """For a drawing from a prompt: a flow has no temperature."""
        return {"guidance_scale": self.guidance} if draws_by_flow(engine) else self.settings

    def card(self, page: Page, image: Image.Image, index: int, chance: float | None) -> Card:
        """A finished image of it; slow enough for a thread."""
        words = page.words
        caption = words("drawn_with", seed=self.seed, guidance=f"{self.guidance:g}", temperature=f"{self.temperature:g}")
        name = f"unimm-{self.seed}-{index + 1}.png"
        actions = {"ask": words("ask_about"), "inside": words("look_inside")}
        if page.paints:
            actions["edit"] = words("edit_this")
        return Card(data_uri(image), words("drawing_of", prompt=self.prompt), name, (caption,), chance, actions)


def drawing_settings(page: Page) -> list[Any]:
    """Seed, whether a new one is taken every time, guidance, temperature."""
    words, drawing = page.words, page.engine.drawing
    with gr.Row():
        seed = gr.Number(
            secrets.randbelow(1000), label=words("seed"), precision=0, minimum=0, maximum=LARGEST_SEED, min_width=120
        )
        again = gr.Checkbox(True, label=words("new_seed"), min_width=120)
    by_flow = draws_by_flow(page.engine)
    own_guidance = page.engine.bundle.flow.guidance_scale if by_flow else drawing.guidance_scale
    guidance = gr.Slider(
        1,
        max(10, own_guidance),
        own_guidance,
        step=0.1,
        label=words("guidance"),
        info=words("guidance_help"),
        buttons=[],
    )
    temperature = gr.Slider(
        0,
        1.5,
        drawing.temperature,
        step=0.05,
        label=words("temperature"),
        info=words("temperature_help"),
        buttons=[],
        visible=not by_flow,
    )
    return [seed, again, guidance, temperature]


def choose_drawing(
    prompt: str, seed: float | None, new_seed: bool, guidance: float, temperature: float, size: str | None = None
) -> Drawing:
    """A prompt with the values of `drawing_settings`."""
    used = secrets.randbelow(1000) if new_seed or seed is None else int(seed)
    return Drawing(prompt.strip(), used, float(guidance), float(temperature), size)


def show_progress(page: Page, drawing: Drawing, images: list[Any], share: float, text: str = "") -> str:
    """Previews side by side, and how far they are."""
    width, height = read_size(drawing.size or page.engine.sizes[0])
    alt = page.words("drawing_of", prompt=drawing.prompt)
    grey = Image.new("RGB", (width, height), (128, 128, 128))
    cards = [Card(data_uri(image or grey, draft=True), alt) for image in images]
    return show_wall(cards, page.words) + progress_line(text or page.words("drawing", percent=round(share * 100)), share)


def draws_by_flow(engine: Engine) -> bool:
    """Whether the model draws by a flow where nobody says how."""
    return engine.bundle.drawing_ways[:1] == (LATENTS,)


def preview_every(engine: Engine) -> int:
    """Codes between two previews."""
    return max(1, engine.num_drawn_positions() // PREVIEWS)


async def judge(engine: Engine, images: list[Image.Image], prompt: str) -> list[float] | list[None]:
    """How probable the model finds of each image that it shows the prompt; None where that is too long to be asked about."""
    try:
        return await asyncio.to_thread(engine.alignment, images, prompt)
    except ValueError:
        return [None] * len(images)
