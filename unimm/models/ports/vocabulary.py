"""Ports whose elements are ids of a vocabulary, filled in one by one: text, and images written as codes.

    TextPort    the trunk's token embedding and language head
    CodesPort   embedding of VQ codes, aligner and image head, as in Janus (arXiv 2410.13848)

n elements, D trunk width, V vocabulary (text tokens or codes).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn

from unimm.batch import Batch
from unimm.models.linear_cross_entropy import linear_cross_entropy
from unimm.models.ports.base import LossSums, PredictedPort
from unimm.models.ports.pixels import MLP
from unimm.runtime.number_checks import check_whole
from unimm.sequence import BLANK, Kind, Segment

T = TypeVar("T")


class VocabularyPort(PredictedPort):
    """A port whose elements are ids of a vocabulary: what text and codes have in common. `head` ends in a linear layer."""

    reads: ClassVar[Literal["previous", "own"]] = "previous"
    vocabulary_size: int
    head: Any

    def content(self, batch: Batch, where_n: Tensor) -> Tensor:
        """ids (n,)."""
        return batch.tokens.flatten()[where_n]

    def embed(self, content: Tensor) -> Tensor:
        """ids (n,) -> embeddings (n, D)."""
        raise NotImplementedError

    def check(self, segment: Segment) -> None:
        ids, most = segment.content_ids, self.vocabulary_size
        strange = ids[((ids < 0) | (ids >= most)) & (ids != BLANK)]  # closed segments hold no blanks
        if len(strange):
            raise ValueError(f"The model has no element {strange[0]} of {self.kind.name}: they go from 0 to {most - 1}.")

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V)."""
        return self.head(hidden)

    def targets(self, batch: Batch, read_n: Tensor) -> tuple[Tensor, Tensor]:
        """The ids that follow these positions, and their weights."""
        return batch.targets.flatten()[read_n], batch.weights.flatten()[read_n]

    def loss(self, hidden_nD: Tensor, targets: Tensor, weights_n: Tensor) -> LossSums:
        """The likelihood of the targets, ids (n,).

        Raises:
            ValueError: an adapter is attached to the head; its share would be lost here.
        """
        *first, last = self.head if isinstance(self.head, nn.Sequential) else [self.head]
        for module in first:
            hidden_nD = module(hidden_nD)
        if not isinstance(last, nn.Linear):
            raise ValueError(
                f"The last layer of a head is a {type(last).__name__}, not a plain linear layer: heads take no adapter."
            )
        sums = linear_cross_entropy(hidden_nD, last.weight, last.bias, targets, weights_n)
        return LossSums(sums.loss, sums.correct, weights_n.sum())

    def sample(self, hidden: Tensor, choose: Callable[[Tensor], T]) -> T:
        """One step of sampling: hidden (n, D) -> what `choose` makes of logits (n, V)."""
        return choose(self.logits(hidden))

    def head_path(self) -> list[nn.Module]:
        """The head."""
        return [self.head]


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


@dataclass(frozen=True)
class CodesConfig:
    """What the model must know of the image tokenizer: codes an image, codebook size and the width of a code."""

    SIZES: ClassVar[tuple[str, ...]] = ("num_codes", "codebook_size", "code_dim")

    num_codes: int
    codebook_size: int
    code_dim: int = 8
    aligner_depth: int = 2

    def __post_init__(self) -> None:
        # What is not given yet comes from the image tokenizer.
        check_whole(self, 1, "aligner_depth", *(name for name in self.SIZES if getattr(self, name) is not None))

    def build(self, width: int) -> "CodesPort":
        """The port, for a trunk of this width."""
        return CodesPort(self.codebook_size, self.code_dim, width, self.aligner_depth)


class CodesPort(VocabularyPort):
    """Images written: code embedding, aligner and image head.

    The embedding is the model's own, not the image tokenizer's codebook (as in Janus).
    """

    kind = Kind.CODES

    def __init__(self, codebook_size: int, code_dim: int, width: int, aligner_depth: int = 2) -> None:
        super().__init__()
        self.vocabulary_size = codebook_size
        self.embedding = nn.Embedding(codebook_size, code_dim)
        self.aligner = MLP(code_dim, width, aligner_depth)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, codebook_size))

    def embed(self, content: Tensor) -> Tensor:
        return self.aligner(self.embedding(content))

    def parts(self) -> dict[str, nn.Module]:
        return {"code_embedding": nn.ModuleList([self.embedding, self.aligner]), "code_head": self.head}

    def path(self) -> list[nn.Module]:
        return [nn.ModuleList([self.embedding, self.aligner])]
