"""Text tokens in and out: the trunk's token embedding and language head. n elements, D trunk width, V vocabulary."""

import torch
from torch import nn

from unimm.models.ports.base import VocabularyPort


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
