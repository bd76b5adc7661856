"""The two towers of a model folder of ours: its contrastive heads, which look through the unified model's own vision tower."""

from typing import Any

import torch
from torch import Tensor

from unimm.checkpoints.bundle import ModelBundle
from unimm.data.image import look
from unimm.data.records import ImageLike
from unimm.inference.embedding import Prepared, Towers, towers_fingerprint
from unimm.models.contrastive import pad_texts


class HeadTowers(Towers):
    """The contrastive heads of a bundle in use, on its device.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        if bundle.contrastive is None:
            raise ValueError(
                "This model has no contrastive heads, which embed images and texts: name one that has "
                "(recipes/contrastive.md trains one), or a CLIP or SigLIP."
            )
        self._heads, self._tokenizer, self._device = bundle.contrastive, bundle.tokenizer, bundle.device
        self._tower = bundle.model.pixels.tower
        self._size = bundle.model.config.vision.image_size
        self.dim = self._heads.dim
        bias = self._heads.logit_bias
        self.logit_scale = float(self._heads.logit_scale.detach().float().exp())
        self.logit_bias = None if bias is None else float(bias.detach().float())

    @property
    def fingerprint(self) -> str:
        weights = [*self._tower.named_parameters("tower"), *self._heads.named_parameters("heads")]
        sizes: dict[str, Any] = {"images": self._size, "words": sorted(self._tokenizer.tokenizer.get_vocab().items())}
        return towers_fingerprint(weights, sizes)

    def prepare(self, image: ImageLike) -> Prepared:
        return {"pixels": torch.from_numpy(look(image, self._size))}

    @torch.inference_mode()
    def embed_prepared(self, images: list[Prepared]) -> Tensor:
        return self._heads.embed_images(torch.stack([one["pixels"] for one in images]).to(self._device)).cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        most = self._heads.config.text_positions
        ids, mask = pad_texts([self._tokenizer.sentence(text, most) for text in texts], self._device)
        return self._heads.embed_texts(ids, mask).cpu()
