"""Image generation: embedding of VQ codes, aligner and image head, as in Janus (arXiv 2410.13848). n elements, D width."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from unimm.models.ports.base import VocabularyPort
from unimm.models.vision.projectors import MLP
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Kind


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
