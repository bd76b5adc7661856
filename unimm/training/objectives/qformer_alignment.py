"""BLIP-2's first stage: the queries of a Q-Former learn to read what texts tell of, before any language model listens
(arXiv 2301.12597, section 3.2). Tower and trunk are frozen; the Q-Former and its text side learn three things at once:

    contrastive   an image and its text lie closer than all others of the step; an image is as close as its closest query
    match         whether an image and a text belong together, where both are seen at once: of each pair, of its image with a
                  wrong text and of its text with a wrong image, drawn from the micro-batch by how alike they seem
    text          the text, token by token, from what the queries have read

Shapes: n pairs of a micro-batch, N of the step, P patches, C vision width, Q queries, T text positions, D common width.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.batch import Batch
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.models.vision.qformer_text import NAME, QFormerText, QFormerTextConfig
from unimm.models.vision.resamplers import QFormer
from unimm.training.objectives.contrastive import (
    TEXT,
    Pairs,
    check_pairs,
    content_keys,
    image_keys,
    load_head,
    pairs_of,
    partner_loss,
    same_content,
)
from unimm.training.objectives.likelihood import JointObjective

MAX_SCALE = 100.0


class QFormerAlignment(JointObjective):
    """Learns a model's Q-Former, which is its projector, with a text side that is saved beside it.

    Raises ValueError where the projector is no Q-Former.
    """

    why_whole: ClassVar[str] = "its Q-Former looks at pairs of images and texts, and it runs no Transformer over rows"
    own_stage: ClassVar[str | None] = "qformer"

    def __init__(self, model: UnifiedModel, heads: QFormerTextConfig | None = None) -> None:
        super().__init__()
        qformer = model.pixels.projector
        if not isinstance(qformer, QFormer):
            raise ValueError(
                f"This objective trains a Q-Former, and the projector is a {type(qformer).__name__}: add projector=qformer, "
                f"and with init_from 'fresh_parts=[projector]'."
            )
        self.model = model
        sizes = {"vocabulary_size": model.text.vocabulary_size, "width": qformer.width, "depth": len(qformer.blocks)}
        self.text_side = QFormerText(replace(heads or QFormerTextConfig(), **sizes))

    def check(self, batch: Batch) -> None:
        """Raises ValueError where a sample is no image with its text, or a text is too long."""
        check_pairs(batch, self.text_side.config.text_positions)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """images (n, Q, D), texts (n, D) of length 1; their keys (n,); logit_scale (1,); match and text (1, 3): sums."""
        pairs, qformer = pairs_of(batch), self.model.pixels.projector
        features_nPC = self.model.pixels.batch_features(batch.images)[pairs.images]
        queries_nQW, logits_nTV = self.text_side.write(qformer, features_nPC, pairs.ids, pairs.mask)
        images_nQD = self.text_side.project_queries(queries_nQW)
        texts_nD = self.text_side.read_text(qformer, pairs.ids, pairs.mask)
        keys = {
            "image_keys": image_keys(batch.images)[pairs.images],
            "text_keys": content_keys(torch.where(pairs.mask, pairs.ids + 1, 0)),
        }
        scale = self.text_side.temperature.logit_scale
        match = self._match(features_nPC, pairs, scale.exp() * similarity(images_nQD, texts_nD), keys)
        # What leads to the trunk is not learned here, and has a gradient of zero where a stage names it.
        nothing = qformer.head(queries_nQW[:, :0]).sum()
        told = _written(logits_nTV, pairs) + nothing
        return {"images": images_nQD, "texts": texts_nD, **keys, "logit_scale": scale * 1.0, "match": match, "text": told}

    def joint_loss(self, outputs: Mapping[str, Tensor], rows: Mapping[str, slice]) -> dict[str, LossSums]:
        own = rows["images"]
        scale = outputs["logit_scale"].float().mean().exp()
        of_images_nN = scale * similarity(outputs["images"][own], outputs["texts"])
        of_texts_nN = scale * similarity(outputs["images"], outputs["texts"][own]).T
        aligned = partner_loss(of_images_nN, of_texts_nN, same_content(outputs, own), own, "softmax")
        others = {name: LossSums(*outputs[name][rows[name]].sum(0)) for name in ("match", "text")}
        return {"contrastive": aligned, **others}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        num = (batch.samples[:, 1] == TEXT).sum().float()
        places_BT = batch.document_indices()
        is_text_BT = torch.cat([batch.samples[:, 1], batch.samples.new_full((1,), -1)])[places_BT] == TEXT
        return {"contrastive": num, "match": num, "text": (is_text_BT & (batch.positions > 0)).sum().float()}

    def parts(self) -> dict[str, nn.Module]:
        return {**self.model.parts(), NAME: self.text_side}

    def heads(self) -> dict[str, nn.Module]:
        return {NAME: self.text_side}

    def load_heads(self, heads: Mapping[str, nn.Module]) -> None:
        start = heads.get(NAME)
        if isinstance(start, QFormerText):
            load_head(self.text_side, start, "Q-Former's text side")

    @torch.no_grad()
    def after_update(self) -> None:
        """The factor on similarities stays in its bounds."""
        self.text_side.temperature.logit_scale.clamp_(max=math.log(MAX_SCALE))

    def _match(self, features_nPC: Tensor, pairs: Pairs, scores_nn: Tensor, keys: dict[str, Tensor]) -> Tensor:
        """(1, 3): the sums over pairs of the mean over a right and two wrong ones, of which there are none in a pair alone."""
        num, qformer = len(scores_nn), self.model.pixels.projector
        same_nn = same_content(keys, slice(0, num)) | torch.eye(num, dtype=torch.bool, device=scores_nn.device)
        chances_nn = scores_nn.detach().float().masked_fill(same_nn, -math.inf)
        has_wrong_n = ~same_nn.all(1)
        wrong_texts_m, wrong_images_m = (
            one[has_wrong_n].softmax(1).multinomial(1)[:, 0] if bool(has_wrong_n.any()) else pairs.images[:0]
            for one in (chances_nn, chances_nn.T)
        )
        own_m = has_wrong_n.nonzero().squeeze(1)
        own_n = torch.arange(num, device=own_m.device)
        images, texts = torch.cat([own_n, own_m, wrong_images_m]), torch.cat([own_n, wrong_texts_m, own_m])
        labels = torch.cat([torch.ones_like(own_n), torch.zeros_like(own_m), torch.zeros_like(own_m)])
        logits = self.text_side.match(qformer, features_nPC[images], pairs.ids[texts], pairs.mask[texts])
        weights = torch.cat([1 / (1 + 2.0 * has_wrong_n), torch.full((2 * len(own_m),), 1 / 3, device=own_m.device)])
        losses = F.cross_entropy(logits, labels, reduction="none")
        hits = (logits.detach().argmax(1) == labels).float()
        count = logits.new_full((), num)
        return torch.stack([(losses * weights).sum(), (hits * weights).sum(), count])[None]


def similarity(images_nQD: Tensor, texts_mD: Tensor) -> Tensor:
    """(n, m): of each image with each text, that of the query that lies closest."""
    return torch.einsum("nqd,md->nmq", images_nQD.float(), texts_mD.float()).amax(2)


def _written(logits_nTV: Tensor, pairs: Pairs) -> Tensor:
    """(1, 3): loss, hits and number of all tokens but the first of each text."""
    is_target = pairs.mask[:, 1:]
    logits, targets = logits_nTV[:, :-1][is_target].float(), pairs.ids[:, 1:][is_target]
    loss = F.cross_entropy(logits, targets, reduction="sum")
    hits = (logits.detach().argmax(1) == targets).sum() if len(targets) else targets.sum()
    return torch.stack([loss, hits.to(loss), loss.new_full((), len(targets))])[None]
