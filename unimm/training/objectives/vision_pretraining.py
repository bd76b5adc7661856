"""Vision pretraining: which words and codes belong to an image; a vision tower learns to see before the Transformer reads.

Shapes: B rows, T positions, N images, P patches, C vision width, V vocabulary, K codebook.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from unimm.batch import Batch
from unimm.models.ports.base import LossSums
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind
from unimm.training.objectives.likelihood import Objective


class VisionPretraining(Objective):
    """What a vision tower can learn of an image by itself, from its patch features (N, P, C) alone, in three sums:

    words: which tokens of the vocabulary occur in the learned text of the image's document. Text tokens serve as labels of
        a multi-label classification (SuperClass, arXiv 2411.03313), here with a sigmoid a token, and with a soft maximum
        over patches, because a word is seen somewhere, not everywhere.
    patches: which code the image tokenizer writes where each patch is (BEiT's targets, arXiv 2106.08254, without masks):
        what is where, and in detail, which words alone teach late. Of images whose document holds their codes.
    places: the row and the column of each patch itself, which neither of the others asks for: without them a tower forgets
        where things are, and no Transformer behind it can tell left from right (recipes/LOG.md).

    It costs the vision tower alone, several times less an image than reading it with the Transformer.
    """

    why_whole: ClassVar[str] = "its vision tower looks at images, and it runs no Transformer over rows"

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model
        width = model.config.vision.width
        self.word_head = nn.Linear(width, model.text.embedding.num_embeddings)
        codes = model.config.codes
        self.patch_head = None if codes is None else nn.Linear(width, codes.codebook_size)
        self.num_rows = model.config.vision.image_size // model.config.vision.patch_size
        self.place_head = nn.Linear(width, 2 * self.num_rows)

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        features_NPC = self.model.pixels.batch_features(batch.images)
        documents_N = image_documents(batch)
        patches = {} if self.patch_head is None else {"patches": self._patches(features_NPC, batch, documents_N)}
        return {"words": self._words(features_NPC, batch, documents_N), **patches, "places": self._places(features_NPC)}

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        num_images = torch.tensor(float(batch.num_images), device=batch.tokens.device)
        num_patches = self.model.config.vision.num_patches
        counts = {"words": num_images, "places": num_images * num_patches}
        if self.patch_head is not None:
            codes_nP = patch_labels(batch, image_documents(batch), num_patches)[1]
            counts["patches"] = torch.tensor(float(codes_nP.numel()), device=batch.tokens.device)
        return counts

    def parts(self) -> dict[str, nn.Module]:
        heads = {"word_head": self.word_head, "patch_head": self.patch_head, "place_head": self.place_head}
        return {**self.model.parts(), **{name: head for name, head in heads.items() if head is not None}}

    def _words(self, features_NPC: torch.Tensor, batch: Batch, documents_N: torch.Tensor) -> LossSums:
        logits_NPV = self.word_head(features_NPC).float()
        # The mean of exponentials instead of their sum: as many patches, the same scale.
        logits_NV = logits_NPV.logsumexp(1) - math.log(logits_NPV.shape[1])
        labels_NV = word_labels(batch, documents_N, logits_NV.shape[1])
        loss = F.binary_cross_entropy_with_logits(logits_NV, labels_NV, reduction="sum")
        hits_N = ((logits_NV.detach() > 0) & (labels_NV > 0)).sum(1) / labels_NV.sum(1).clamp(min=1)
        return LossSums(loss, hits_N.sum(), loss.new_full((), len(labels_NV)))

    def _patches(self, features_NPC: torch.Tensor, batch: Batch, documents_N: torch.Tensor) -> LossSums:
        images_n, codes_nP = patch_labels(batch, documents_N, features_NPC.shape[1])
        assert self.patch_head is not None
        logits_mK = self.patch_head(features_NPC[images_n]).flatten(0, 1).float()
        targets_m = codes_nP.flatten()
        loss = F.cross_entropy(logits_mK, targets_m, reduction="sum")
        correct = (logits_mK.detach().argmax(-1) == targets_m).sum()
        return LossSums(loss, correct, loss.new_full((), len(targets_m)))

    def _places(self, features_NPC: torch.Tensor) -> LossSums:
        logits_NPG = self.place_head(features_NPC).float()
        patches_P = torch.arange(features_NPC.shape[1], device=features_NPC.device)
        rows_m, columns_m = (
            index_P.expand(len(features_NPC), -1).flatten()
            for index_P in (patches_P // self.num_rows, patches_P % self.num_rows)
        )
        of_rows_mG, of_columns_mG = (part.flatten(0, 1) for part in logits_NPG.split(self.num_rows, dim=-1))
        loss = F.cross_entropy(of_rows_mG, rows_m, reduction="sum") + F.cross_entropy(of_columns_mG, columns_m, reduction="sum")
        correct = (of_rows_mG.detach().argmax(-1) == rows_m) & (of_columns_mG.detach().argmax(-1) == columns_m)
        return LossSums(loss, correct.sum(), loss.new_full((), len(rows_m)))


def document_numbers(batch: Batch) -> torch.Tensor:
    """(B, T) long: a number for every document of a batch, ascending in reading order."""
    rows_B1 = torch.arange(len(batch.documents), device=batch.documents.device)[:, None]
    return rows_B1 * (batch.documents.max() + 1) + batch.documents


def image_documents(batch: Batch) -> torch.Tensor:
    """(N,) long: the number of the document that holds each image."""
    rows_I, starts_I, _ = batch.image_spans.unbind(1)
    return document_numbers(batch)[rows_I, starts_I]


def word_labels(batch: Batch, documents_N: torch.Tensor, vocabulary_size: int) -> torch.Tensor:
    """(N, V) float: 1 where a token is learned in the document that holds the image."""
    document_BT = document_numbers(batch)
    is_word_BT = (batch.target_kinds == Kind.TEXT) & (batch.weights > 0)
    present_DV = torch.zeros(int(document_BT.max()) + 1, vocabulary_size, device=batch.documents.device)
    present_DV[document_BT[is_word_BT], batch.targets[is_word_BT]] = 1.0
    return present_DV[documents_N]


def patch_labels(batch: Batch, documents_N: torch.Tensor, num_patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images have codes in their document, (n,) long, and these codes, (n, P) long, patch by patch in raster order.

    Raises:
        ValueError: such a document has several images, or not one code for every patch of its one.
    """
    document_BT = document_numbers(batch)
    is_code_BT = (batch.target_kinds == Kind.CODES) & (batch.weights > 0) & torch.isin(document_BT, documents_N)
    documents_n, lengths_n = document_BT[is_code_BT].unique_consecutive(return_counts=True)
    images_n = torch.searchsorted(documents_N, documents_n)
    is_alone_n = (documents_n[:, None] == documents_N).sum(1) == 1
    if not bool((is_alone_n & (lengths_n == num_patches)).all()):
        raise ValueError(
            f"An image's codes can only be learned from its patches where there is one for each of its {num_patches} patches: "
            f"give the image tokenizer and the vision tower the same grid, or leave the codes out."
        )
    return images_n, batch.targets[is_code_BT].view(-1, num_patches)
