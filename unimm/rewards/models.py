"""Rewards that a model gives: how well a drawing fits its prompt.

vqa_score     the probability of "yes" to the question whether it shows the prompt (VQAScore, arXiv 2404.01291), of the model
              that is trained, or of another
clip_score    the cosine of image and prompt of a CLIP (arXiv 2104.08718), from 0 to 1, by transformers
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch

from unimm.eval.image_networks import open_clip
from unimm.eval.image_scores import to_tensor
from unimm.inference.engine import Engine, load
from unimm.rewards.response import Response, need_drawn
from unimm.runtime.devices import choose_device


class VqaScore:
    """engine: gives the engine that is asked, when it is first needed; it may be the one that draws."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._open = engine

    @cached_property
    def _engine(self) -> Engine:
        return self._open()

    def __call__(self, responses: list[Response]) -> list[float | None]:
        drawn = [need_drawn(one, "vqa_score") for one in responses]
        return list(self._engine.alignment(drawn, [one.prompt for one in responses]))


class ClipScore:
    """folder: of a CLIP, or its hub id."""

    def __init__(self, folder: str, device: str | None = None) -> None:
        self.folder, self.device = folder, choose_device(device)

    @cached_property
    def _clip(self) -> tuple[Any, Any]:
        model, processor = open_clip(self.folder)()
        return model.to(self.device), processor

    @torch.inference_mode()
    def __call__(self, responses: list[Response]) -> list[float | None]:
        model, processor = self._clip
        images = list(to_tensor(np.stack([need_drawn(one, "clip_score") for one in responses])))
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        texts = processor(text=[one.prompt for one in responses], return_tensors="pt", padding=True, truncation=True)
        seen = model.get_image_features(pixels.to(self.device)).float()
        said = model.get_text_features(texts["input_ids"].to(self.device), texts["attention_mask"].to(self.device)).float()
        return torch.cosine_similarity(seen, said).clamp(min=0).tolist()


def open_engine(folder: str, device: str | None = None) -> Callable[[], Engine]:
    """What loads another model as a judge, when it is first asked, on this device."""
    return lambda: load(folder, device)
