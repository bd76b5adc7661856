"""A kind of its own: a bag of numbers, such as the colours of a picture, that is filled in all at once by regression."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stripes.data import COLOURS
from unimm.batch import Elements
from unimm.data import Record, Template
from unimm.models import LossSums, PredictedPort
from unimm.sequence import Kind, Segment, Sequence

NUMBERS = Kind("NUMBERS")


@dataclass(frozen=True)
class NumbersConfig:
    """size: numbers of an element."""

    size: int = 3

    def build(self, width: int) -> "NumbersPort":
        """The port."""
        return NumbersPort(self.size, width)


class NumbersPort(PredictedPort):
    """Given numbers are read by a linear layer. Positions of those to learn all hold one vector, and what belongs there is
    predicted from the hidden state by another linear layer, with a squared error."""

    kind = NUMBERS

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.element_shape = (size,)
        self.reader, self.unknown, self.head = nn.Linear(size, width), nn.Embedding(1, width), nn.Linear(width, size)

    def embed(self, content: Elements) -> Tensor:
        read_nD = self.reader(content.values.to(self.reader.weight.dtype))
        return torch.where((content.weights == 0)[:, None], read_nD, self.unknown.weight.to(read_nD.dtype))

    def parts(self) -> dict[str, nn.Module]:
        return {"numbers_in": nn.ModuleList([self.reader, self.unknown]), "numbers_out": self.head}

    def path(self) -> list[nn.Module]:
        return [self.parts()["numbers_in"]]

    def head_path(self) -> list[nn.Module]:
        return [self.head]

    def loss(self, hidden_nD: Tensor, targets: Tensor, weights_n: Tensor) -> LossSums:
        errors_n = (self.head(hidden_nD).float() - targets).square().sum(-1)
        return LossSums((weights_n * errors_n).sum(), errors_n.new_zeros(()), weights_n.sum())

    def filler(self, blank: Segment, key: tuple[int, int]) -> "OnePass":
        assert blank.limit is not None
        return OnePass(self, blank.limit)


class OnePass:
    """Fills in a blank of n elements in a single pass."""

    def __init__(self, port: NumbersPort, num_elements: int) -> None:
        self.port, self.num_elements = port, num_elements
        self.content: Any = None

    @property
    def is_done(self) -> bool:
        return self.content is not None

    def inputs(self) -> Tensor:
        return self.port.unknown.weight.expand(self.num_elements, -1)

    def advance(self, hidden_GnD: Tensor, weights_G: Tensor) -> None:
        predicted_GnS = self.port.head(hidden_GnD).float()
        self.content = (weights_G[:, None, None] * predicted_GnS).sum(0).cpu().numpy()


@dataclass(frozen=True)
class Palette:
    """PIXELS, then the colours of both halves, to learn: two elements of three numbers from 0 to 1."""

    task: ClassVar[str] = "palette"

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        asked = palette_prompt(record, template)
        colours = np.array([COLOURS[name] for name in record.facts]) / 255
        return Sequence((*asked.segments[:-1], Segment.array(NUMBERS, colours, learn=True)))


def palette_prompt(record: Record, template: Template) -> Sequence:
    """PIXELS, then a blank for two colours."""
    special = template.tokenizer.special
    assert record.image is not None
    given = (Segment.text([special.bos]), template.pixels(record.image), Segment.text([special.end_of_image]))
    return Sequence((*given, Segment.blank(NUMBERS, 2)))
