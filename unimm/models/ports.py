"""Ports: how each kind of element enters the stream of embeddings, and how the next one leaves it.

A port embeds its own content; if its kind can be predicted it also reads hidden states: a loss for training and one step
of sampling for inference. The unified model is a Transformer plus one port a kind; a new modality is a kind, a port and a view.

Shapes: n elements, N images as pixels, I all images, P patches, D trunk width, V vocabulary (text tokens or codes).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from unimm.batch import Batch
from unimm.models.cross_entropy import linear_cross_entropy
from unimm.models.vision import MLP, VisionTower

T = TypeVar("T")


class Tally(NamedTuple):
    """Sums over targets, to be divided once by the global count: float scalars.

    loss: weighted sum of negative log-likelihoods in nats. correct: weighted number of targets ranked first.
    count: sum of weights.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    count: torch.Tensor  # pyright: ignore[reportIncompatibleMethodOverride]


class VocabularyPort(nn.Module):
    """A port whose elements are ids of a vocabulary: what text and codes have in common."""

    vocabulary_size: int

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (n,) -> embeddings (n, D)."""
        raise NotImplementedError

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., D) -> logits (..., V)."""
        raise NotImplementedError

    def before_logits(self, hidden_nD: torch.Tensor) -> tuple[torch.Tensor, nn.Linear]:
        """What the head's last layer reads, and that layer: its logits are made in chunks."""
        raise NotImplementedError

    def loss(self, hidden_nD: torch.Tensor, targets_n: torch.Tensor, weights_n: torch.Tensor) -> Tally:
        """Likelihood of the targets; sums, so that a port without targets gives zeros and zero gradients.

        Raises:
            ValueError: an adapter is attached to the head; its share would be lost here.
        """
        hidden_nD, last = self.before_logits(hidden_nD)
        if not isinstance(last, nn.Linear):
            raise ValueError(
                f"The last layer of a head is a {type(last).__name__}, not a plain linear layer: heads take no adapter."
            )
        sums = linear_cross_entropy(hidden_nD, last.weight, last.bias, targets_n, weights_n)
        return Tally(sums.loss, sums.correct, weights_n.sum())

    def sample(self, hidden: torch.Tensor, choose: Callable[[torch.Tensor], T]) -> T:
        """One step of sampling: hidden (n, D) -> what `choose` makes of logits (n, V)."""
        return choose(self.logits(hidden))


class TextPort(VocabularyPort):
    """Text tokens in and out: the trunk's token embedding and language head."""

    def __init__(self, vocabulary_size: int, width: int, tied: bool = False) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.head = nn.Linear(width, vocabulary_size, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embedding(ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden)

    def before_logits(self, hidden_nD: torch.Tensor) -> tuple[torch.Tensor, nn.Linear]:
        return hidden_nD, self.head


class PixelsPort(nn.Module):
    """Images looked at: vision tower and projector. Nothing is ever predicted here."""

    def __init__(self, tower: VisionTower, projector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector

    def embed(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """pixels (N, 3, H, W) in [-1, 1] -> embeddings (N * P, D), image after image."""
        return self.projector(self.features(pixels_NCHW)).flatten(0, 1)

    def embed_batch(self, batch: Batch) -> torch.Tensor:
        """The images of a batch -> embeddings (I * P, D), image after image, in reading order."""
        return self.projector(self.batch_features(batch)).flatten(0, 1)

    def batch_features(self, batch: Batch) -> torch.Tensor:
        """The images of a batch -> patch features (I, P, C), in reading order: looked at now, or stored before.

        Raises:
            ValueError: features are stored that this tower cannot have made.
        """
        looked_NPC = self.features(batch.pixels)
        if not len(batch.features):
            return looked_NPC
        if batch.features.shape[1:] != looked_NPC.shape[1:]:
            raise ValueError(
                f"Stored features are {tuple(batch.features.shape[1:])} an image, this vision tower makes "
                f"{tuple(looked_NPC.shape[1:])}: store its own with `unimm encode-features`."
            )
        features_IPC = looked_NPC.new_empty(batch.num_images, *looked_NPC.shape[1:])
        features_IPC = features_IPC.index_put((~batch.is_seen,), looked_NPC)
        return features_IPC.index_put((batch.is_seen,), batch.features.to(looked_NPC.dtype))

    def features(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """pixels (N, 3, H, W) in [-1, 1] -> patch features (N, P, C), also of no images at all.

        Raises:
            ValueError: the images do not have the size that the tower was made for.
        """
        size = self.tower.config.image_size
        if len(pixels_NCHW) == 0:
            pixels_NCHW = pixels_NCHW.new_zeros(0, 3, size, size)
        if pixels_NCHW.shape[1:] != (3, size, size):
            raise ValueError(f"The vision tower looks at (3, {size}, {size}), not at {tuple(pixels_NCHW.shape[1:])}.")
        dtype = next(self.tower.parameters()).dtype
        return self.tower(pixels_NCHW.to(dtype))


class CodesPort(VocabularyPort):
    """Images written: code embedding, aligner and image head.

    The embedding is the model's own, not the image tokenizer's codebook (as in Janus).
    """

    def __init__(self, codebook_size: int, code_dim: int, width: int, aligner_depth: int = 2) -> None:
        super().__init__()
        self.vocabulary_size = codebook_size
        self.embedding = nn.Embedding(codebook_size, code_dim)
        self.aligner = MLP(code_dim, width, aligner_depth)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, codebook_size))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.aligner(self.embedding(ids))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden)

    def before_logits(self, hidden_nD: torch.Tensor) -> tuple[torch.Tensor, nn.Linear]:
        return self.head[:-1](hidden_nD), self.head[-1]  # pyright: ignore[reportReturnType]
