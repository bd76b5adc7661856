"""Ports: how each kind of element enters the stream of embeddings, and how the next one leaves it.

A port embeds its own content; if its kind can be predicted it also reads hidden states: a loss for training and one step
of sampling for inference. The unified model is a Transformer plus one port a kind; a new modality is a kind, a port and a view.

Shapes: n elements, N images as pixels, I all images, P patches, D trunk width, V vocabulary (text tokens or codes).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from unimm.models.linear_cross_entropy import linear_cross_entropy

T = TypeVar("T")


class LossSums(NamedTuple):
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

    def loss(self, hidden_nD: torch.Tensor, targets_n: torch.Tensor, weights_n: torch.Tensor) -> LossSums:
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
        return LossSums(sums.loss, sums.correct, weights_n.sum())

    def sample(self, hidden: torch.Tensor, choose: Callable[[torch.Tensor], T]) -> T:
        """One step of sampling: hidden (n, D) -> what `choose` makes of logits (n, V)."""
        return choose(self.logits(hidden))
