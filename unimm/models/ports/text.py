"""Text: the trunk's token embedding and language head. n elements, D trunk width, V vocabulary."""

from torch import Tensor, nn

from unimm.models.ports.base import VocabularyPort
from unimm.sequence import Kind


class TextPort(VocabularyPort):
    """Text tokens in and out: the trunk's token embedding and language head. tied: both are one matrix."""

    kind = Kind.TEXT

    def __init__(self, vocabulary_size: int, width: int, tied: bool = False) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.head = nn.Linear(width, vocabulary_size, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def embed(self, content: Tensor) -> Tensor:
        return self.embedding(content)

    def parts(self) -> dict[str, nn.Module]:
        return {"text_embedding": self.embedding, "text_head": self.head}

    def path(self) -> list[nn.Module]:
        return [self.embedding]
