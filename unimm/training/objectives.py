"""Objectives: what is learned from a batch. An objective wraps the model and turns a batch into named sums and counts.

    Likelihood   the next element of everything that is learned: text and codes
    Words        which words belong to an image: teaches a vision tower to see before the Transformer reads it

The trainer knows nothing else of them: it divides each sum once by its global count and adds them up by weight.
"""

import torch
import torch.nn.functional as F
from torch import nn

from unimm.batch import Batch
from unimm.models.ports import Tally
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind


class Objective(nn.Module):
    """What every objective offers."""

    model: UnifiedModel

    def forward(self, batch: Batch) -> dict[str, Tally]:
        """The sums of a batch, by the name of what is learned."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What the sums will be divided by, known before the forward pass: float scalars by the same names."""
        raise NotImplementedError

    def parts(self) -> dict[str, nn.Module]:
        """Everything with parameters that a stage can name: the model's parts and the objective's own."""
        return self.model.parts()


class Likelihood(Objective):
    """The likelihood of every element that a batch says is learned."""

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tally]:
        return {kind.name.lower(): tally for kind, tally in self.model(batch).items()}

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {kind.name.lower(): batch.num_targets(kind) for kind in self.model.vocabulary_ports}


class Words(Objective):
    """Which tokens of the vocabulary occur in the learned text of an image's document, from its patch features alone.

    Text tokens serve as labels of a multi-label classification (SuperClass, arXiv 2411.03313), here with a sigmoid a token,
    and with a soft maximum over patches, because a word is seen somewhere, not everywhere. It costs the vision tower
    alone, several times less an image than reading it with the Transformer.
    """

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.config.vision.width, model.text.embedding.num_embeddings)

    def forward(self, batch: Batch) -> dict[str, Tally]:
        logits_NPV = self.head(self.model.pixels.features(batch.pixels)).float()
        # The mean of exponentials instead of their sum: as many patches, the same scale.
        logits_NV = logits_NPV.logsumexp(1) - torch.tensor(float(logits_NPV.shape[1])).log()
        labels_NV = _labels(batch, len(batch.pixels), logits_NV.shape[1])
        loss = F.binary_cross_entropy_with_logits(logits_NV, labels_NV, reduction="sum")
        hits_N = ((logits_NV.detach() > 0) & (labels_NV > 0)).sum(1) / labels_NV.sum(1).clamp(min=1)
        return {"words": Tally(loss, hits_N.sum(), self.counts(batch)["words"])}

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"words": torch.tensor(float(len(batch.pixels)), device=batch.pixels.device)}

    def parts(self) -> dict[str, nn.Module]:
        return {**self.model.parts(), "word_head": self.head}


def _labels(batch: Batch, num_images: int, vocabulary_size: int) -> torch.Tensor:
    """(N, V) float: 1 where a token is learned in the document that holds the image."""
    rows_B1 = torch.arange(len(batch.documents), device=batch.documents.device)[:, None]
    document_BT = rows_B1 * (batch.documents.max() + 1) + batch.documents
    is_image_BT = batch.kinds == Kind.PIXELS
    # Every image takes as many positions as the others, so every so-manieth position begins one.
    positions = int(is_image_BT.sum()) // max(num_images, 1)
    image_document_N = document_BT[is_image_BT][:: max(positions, 1)]
    is_word_BT = (batch.target_kinds == Kind.TEXT) & (batch.weights > 0)
    present_DV = torch.zeros(int(document_BT.max()) + 1, vocabulary_size, device=batch.documents.device)
    present_DV[document_BT[is_word_BT], batch.targets[is_word_BT]] = 1.0
    return present_DV[image_document_N]
