"""Images written: code embedding, aligner and image head, as in Janus (arXiv 2410.13848). n elements, D trunk width."""

import torch
from torch import nn

from unimm.models.ports.base import VocabularyPort
from unimm.models.vision.projectors import MLP


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
