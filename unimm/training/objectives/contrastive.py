"""Contrastive alignment: an image and its text lie closer to each other than to all others of the step.

    images E (N, D), texts F (N, D), of length 1; s = exp(logit_scale); z = s E F' + b

    softmax    cross-entropy of each row and of each column of z with its own partner, their mean (InfoNCE as in CLIP,
               arXiv 2103.00020)
    sigmoid    of each pair by itself: -log sigmoid(+z) of partners, -log sigmoid(-z) of all others (SigLIP, arXiv 2303.15343)

Scale and bias are learned. The others are all of the step, of all micro-batches and processes (`JointObjective`). Two images
with one text, or two texts of one image, are no negatives of each other: such pairs are left out.

Shapes: N pairs of the step, n pairs of a micro-batch, T text positions, D width of the common space.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.batch import Batch, Images, normalise_pixels
from unimm.models.contrastive import NAME, ContrastiveConfig, ContrastiveHeads
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind
from unimm.training.objectives.likelihood import JointObjective

LOSSES = ("softmax", "sigmoid")
IMAGE, TEXT = 0, 1
"""Places of a sample: `unimm.data.ImageText`."""

MODELS = ("vocabulary_size", "vision_width", "vision_heads", "width", "depth")
"""Sizes of heads that are the unified model's."""

_FACTOR = 0x9E3779B1
"""2^32 divided by the golden ratio: spreads neighbouring numbers."""


class Pairs(NamedTuple):
    """The pairs of a batch, sample by sample.

    images: (n,) long, of each pair its place among the batch's images. ids: (n, T) long. mask: (n, T) bool.
    """

    images: Tensor
    ids: Tensor
    mask: Tensor


class Contrastive(JointObjective):
    """Learns a text tower, projections and a temperature, and the vision tower where the stage says so. The trunk is not run.

    Args:
        model: whose vision tower looks.
        heads: sizes of text tower and projections; what they leave out is the model's.
        loss: one of `LOSSES`.
        max_scale: the factor on similarities goes no higher (CLIP's 100).

    Raises ValueError for another loss.
    """

    why_whole: ClassVar[str] = "its towers look at pairs of images and texts, and it runs no Transformer over rows"
    own_stage: ClassVar[str | None] = "contrastive"

    def __init__(
        self,
        model: UnifiedModel,
        heads: ContrastiveConfig | None = None,
        loss: str = "softmax",
        max_scale: float = 100.0,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"Unknown contrastive loss '{loss}': use one of {', '.join(LOSSES)}.")
        self.model, self.loss, self.max_scale = model, loss, max_scale
        vision = model.config.vision
        own = {"vocabulary_size": model.text.vocabulary_size, "vision_width": vision.width, "vision_heads": vision.num_heads}
        self.contrastive = ContrastiveHeads(replace(heads or ContrastiveConfig(), **own))

    def check(self, batch: Batch) -> None:
        """Raises ValueError where a sample is no image with its text, or a text is too long."""
        check_pairs(batch, self.contrastive.config.text_positions)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """images, texts (n, D) of length 1; image_keys, text_keys (n,) long, equal where the content is; logit_scale and
        logit_bias (1,)."""
        pairs = pairs_of(batch)
        features_NPC = self.model.pixels.batch_features(batch.images)[pairs.images]
        bias = self.contrastive.logit_bias
        return {
            "images": self.contrastive.embed_features(features_NPC),
            "texts": self.contrastive.embed_texts(pairs.ids, pairs.mask),
            "image_keys": image_keys(batch.images)[pairs.images],
            "text_keys": content_keys(torch.where(pairs.mask, pairs.ids + 1, 0)),
            "logit_scale": self.contrastive.logit_scale * 1.0,  # gathered, never changed in place
            **({} if bias is None else {"logit_bias": bias * 1.0}),
        }

    def joint_loss(self, outputs: Mapping[str, Tensor], rows: Mapping[str, slice]) -> dict[str, LossSums]:
        images_ND, texts_ND, own = outputs["images"].float(), outputs["texts"].float(), rows["images"]
        scale = outputs["logit_scale"].float().mean().exp()
        bias = outputs["logit_bias"].float().mean() if "logit_bias" in outputs else 0.0
        # Each image of these rows with all texts, and each text of these rows with all images.
        of_images_nN = scale * images_ND[own] @ texts_ND.T + bias
        of_texts_nN = scale * texts_ND[own] @ images_ND.T + bias
        left_out_nN = same_content(outputs, own)
        return {NAME: partner_loss(of_images_nN, of_texts_nN, left_out_nN, own, self.loss)}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {NAME: (batch.samples[:, 1] == TEXT).sum().float()}

    def parts(self) -> dict[str, nn.Module]:
        return {**self.model.parts(), **self.contrastive.parts()}

    def hidden_parts(self) -> tuple[str, ...]:
        return (*self.model.hidden_parts(), "text_tower")

    def layers(self) -> list[nn.Module]:
        return [*self.model.layers(), *self.contrastive.text_tower.blocks]

    def heads(self) -> dict[str, nn.Module]:
        return {NAME: self.contrastive}

    def load_heads(self, heads: Mapping[str, nn.Module]) -> None:
        start = heads.get(NAME)
        if isinstance(start, ContrastiveHeads):
            load_head(self.contrastive, start, "contrastive heads")

    def set_attention(self, backend: str) -> None:
        super().set_attention(backend)
        self.contrastive.set_attention(backend)

    @torch.no_grad()
    def after_update(self) -> None:
        """The factor on similarities stays in its bounds."""
        self.contrastive.logit_scale.clamp_(max=math.log(self.max_scale))


def load_head(own: Any, start: Any, what: str) -> None:
    """Start from a head that a bundle holds. Shapes alone do not tell: with other heads or another mask the same weights are
    another network.

    own, start: of one class, with a `config`.

    Raises:
        ValueError: its config is another one, but for the temperature at first, which is learned.
    """
    here, there = asdict(own.config), asdict(start.config)
    others = [name for name in here if here[name] != there[name] and name not in ("logit_scale", "logit_bias")]
    if (here.get("logit_bias") is None) != (there.get("logit_bias") is None):
        others.append("logit_bias")
    if others:
        said = ", ".join(f"{name} is {there[name]} there and {here[name]} here" for name in others)
        said = f"The {what} of the model to start from are not these: {said}"
        if lasting := [name for name in others if name in MODELS]:
            raise ValueError(
                f"{said}; {lasting[0]} is the unified model's own: start from that model as a whole, or take over other parts "
                f"alone (init_parts=[vision])."
            )
        words = " ".join(f"objective.heads.{name}={json.dumps(there[name])}".replace('"', "") for name in others)
        raise ValueError(f"{said}: add {words}, or take over other parts alone (init_parts=[vision]).")
    own.load_state_dict(start.state_dict())


def check_pairs(batch: Batch, text_positions: int) -> None:
    """Raises ValueError where a sample of a batch in main memory is no image with its text, or a text is too long for a tower
    of so many positions."""
    num = len(batch.samples) // 2
    rows_I, starts_I, _ = batch.image_spans.unbind(1)
    shown_I = batch.samples[batch.document_indices()[rows_I, starts_I], 0]
    is_paired = torch.equal(batch.samples[:, 1].bincount(minlength=2), torch.tensor([num, num]))
    if not is_paired or not len(shown_I) == len(shown_I.unique()) == len(batch.samples[:, 0].unique()) == num:
        raise ValueError(
            "This objective learns from pairs of one image and one text: use the view unimm.data.ImageText for every source, "
            "such as data=worlds/pairs or data=pairs."
        )
    longest = int((batch.positions * (batch.kinds == Kind.TEXT)).max()) + 1 if num else 0
    if longest > text_positions:
        raise ValueError(
            f"A text takes {longest} positions, and the text tower was made for {text_positions}: cut it (max_positions of the "
            f"view), or make the tower longer (objective.heads.text_positions)."
        )


def same_content(outputs: Mapping[str, Tensor], own: slice) -> Tensor:
    """(n, N) bool: for some pairs which of all others have the same image or the same text."""
    keys = [outputs["image_keys"], outputs["text_keys"]]
    same_nN = (keys[0][own, None] == keys[0]) | (keys[1][own, None] == keys[1])
    places_N = torch.arange(same_nN.shape[1], device=same_nN.device)
    return same_nN & (places_N[own, None] != places_N)


def partner_loss(of_images_nN: Tensor, of_texts_nN: Tensor, left_out_nN: Tensor, own: slice, loss: str) -> LossSums:
    """How well some images and texts find their partners, which stand in the rows `own` of all.

    of_images_nN, of_texts_nN: logits of these images with all texts, and of these texts with all images. left_out_nN: which
        are no negatives.
    loss: one of `LOSSES`.
    """
    num = of_images_nN.shape[1]
    if num == 0:
        nothing = (of_images_nN.sum() + of_texts_nN.sum()) * 0.0
        return LossSums(nothing, nothing.detach(), nothing.detach())
    places_n = torch.arange(num, device=of_images_nN.device)[own]
    both = [one.masked_fill(left_out_nN, -math.inf) for one in (of_images_nN, of_texts_nN)]
    correct = torch.stack([(one.detach().argmax(1) == places_n).sum() for one in both]).sum() / 2
    if loss == "softmax":
        total = torch.stack([F.cross_entropy(one, places_n, reduction="sum") for one in both]).mean()
    else:
        signs_nN = 2.0 * F.one_hot(places_n, num) - 1
        total = -F.logsigmoid(signs_nN * of_images_nN).masked_fill(left_out_nN, 0.0).sum()
    return LossSums(total, correct, total.new_full((), len(places_n)))


def pairs_of(batch: Batch) -> Pairs:
    """The images and texts of a batch of pairs."""
    documents_BT = batch.document_indices()
    rows_I, starts_I, _ = batch.image_spans.unbind(1)
    order_n = batch.samples[documents_BT[rows_I, starts_I], 0].argsort()
    texts_n = (batch.samples[:, 1] == TEXT).nonzero().squeeze(1)
    texts_n = texts_n[batch.samples[texts_n, 0].argsort()]
    row_of_D = documents_BT.new_full((len(batch.samples) + 1,), -1)  # the last one is padding's
    row_of_D[texts_n] = torch.arange(len(texts_n), device=texts_n.device)
    row_BT = row_of_D[documents_BT]
    is_text_BT = row_BT >= 0
    where = row_BT[is_text_BT], batch.positions[is_text_BT]
    length = int(where[1].max()) + 1 if len(texts_n) else 1
    ids_nT = batch.tokens.new_zeros(len(texts_n), length).index_put(where, batch.tokens[is_text_BT])
    mask_nT = torch.zeros_like(ids_nT, dtype=torch.bool).index_put(where, torch.tensor(True, device=ids_nT.device))
    return Pairs(order_n, ids_nT, mask_nT)


def image_keys(images: Images) -> Tensor:
    """(I,) long: numbers of all images of a batch in reading order, equal where pixels or stored features are."""
    keys_I = images.is_seen.new_zeros(len(images), dtype=torch.long)
    keys_I[~images.is_seen] = content_keys(normalise_pixels(images.pixels))
    keys_I[images.is_seen] = content_keys(images.features)
    return keys_I


def content_keys(content: Tensor) -> Tensor:
    """(n,) long: a number for each row (n, ...) of ids or floats; rows that differ have different ones, but for a chance of
    about 2^-60. Zeros behind a row change nothing."""
    flat = content.flatten(1)
    numbers = flat.float().contiguous().view(torch.int32) if flat.is_floating_point() else flat
    places = torch.arange(1, numbers.shape[1] + 1, device=content.device)
    weights = (places * _FACTOR) ^ (places * places * 0x85EBCA6B + 0x27D4EB2F)
    weights = weights * (weights >> 15 | 1)
    return torch.stack([(row.long() * weights).sum() for row in numbers]) if len(numbers) else places[:0]
