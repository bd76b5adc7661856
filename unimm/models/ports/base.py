"""Ports, one a kind (modality): the embedding of its elements and, where it can be predicted, its head, loss and decoding.

    Port            how its content is embedded; the names of its parts; its repeated layers; what it costs
    PredictedPort   and how it is predicted: a loss against hidden states of the Transformer, and one way to fill in a blank:
    VocabularyPort      ids, one by one, each from the logits at the position before it (`reads` "previous")
    (others)            all at once in several passes, such as a flow or a regression: a `Filler` (`reads` "own")

The unified model is a Transformer and its ports; nothing outside this package names what a kind consists of. A new kind is a
`Kind("NAME")`, a port, and a config that builds it (`PortConfig`), which a model's config names below `ports`.

Shapes: B rows, T positions, n elements, N images as pixels, I all images, P patches, D trunk width, V vocabulary (text tokens
or codes), G branches of guidance.
"""

from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from unimm.batch import Batch, Elements
from unimm.models.context_parallel import ContextGroup
from unimm.sequence import Image, Kind, Segment

T = TypeVar("T")


class LossSums(NamedTuple):
    """Sums over targets, to be divided once by the global count: float scalars.

    loss: weighted sum of the losses, of ids in nats. correct: weighted number of targets ranked first; 0 where nothing is
    ranked, not a number where that is not to be logged. count: sum of weights.
    """

    loss: Tensor
    correct: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]


class Passes(NamedTuple):
    """What goes through a module in a batch, to count its operations.

    vectors: go through each of its linear layers. attention: operations beside those, forward.
    """

    vectors: int
    attention: int = 0


class Port(nn.Module):
    """What every kind has.

    kind: of the elements.
    hidden_parts: those of its parts that are layers inside a network, no embeddings or heads: Muon may move their matrices, and
        they take adapters.
    element_shape: of an element that is an array of numbers.
    """

    kind: Kind
    hidden_parts: ClassVar[tuple[str, ...]] = ()
    element_shape: tuple[int, ...] = ()

    def content(self, batch: Batch, where_n: Tensor) -> Any:
        """What `embed` takes of a batch: `Elements`, of a kind whose elements are arrays; also of a batch without any.

        where_n: the positions of the kind, (n,) long, counted over all rows.
        """
        found = batch.contents.get(self.kind)
        if found is not None:
            return found
        empty = torch.zeros(0, *self.element_shape, device=where_n.device)
        return Elements(empty, empty.new_zeros(0))

    def embed(self, content: Any) -> Tensor:
        """Content -> embeddings (n, D), one for each position; also of nothing, so that every parameter has a gradient."""
        raise NotImplementedError

    def embed_own(self, batch: Batch, own_n: Tensor, context: ContextGroup) -> Tensor:
        """(n, D): embeddings of the positions of its kind that this process of a group holds, (n,) long, counted over all rows.
        By default all processes embed all elements, which may depend on each other, and each takes its own."""
        every_m = (batch.kinds.flatten() == self.kind).nonzero().squeeze(1)
        values_mD = self.embed(self.content(batch, every_m))
        if len(values_mD) != len(every_m):
            raise mismatch(self.kind, len(every_m), len(values_mD))
        return values_mD[torch.searchsorted(every_m, own_n)]

    def check(self, segment: Segment) -> None:
        """Raises ValueError where a segment of its kind holds what it cannot embed."""
        shape = () if isinstance(segment.content, Image) else segment.content.shape[1:]
        if not segment.is_open and shape != self.element_shape:
            raise ValueError(f"An element of {self.kind.name} has the shape {self.element_shape}, not {shape}.")

    def parts(self) -> dict[str, nn.Module]:
        """Its parts by the names that stages, adapters and `init_from` know; together they hold every parameter once."""
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Its repeated layers: what is cut into shards, and computed again for the backward pass, one at a time."""
        return []

    def set_attention(self, backend: str) -> None:
        """Called with the Transformer's attention backend, one of `unimm.models.attention.BACKENDS`, when it is set."""

    def path(self) -> list[nn.Module]:
        """What content goes through to become embeddings, in order: to count operations."""
        return list(self.parts().values())

    def passes(self, batch: Batch) -> list[Passes]:
        """For each module of `path`, what goes through it in a batch in main memory."""
        return [Passes(int((batch.kinds == self.kind).sum()))] * len(self.path())


def mismatch(kind: Kind, num_positions: int, num_embedded: int) -> ValueError:
    """What to raise where the content of a kind takes other positions than a batch holds for it."""
    return ValueError(
        f"The batch holds {num_positions} positions of {kind.name}, but its content takes {num_embedded}: image size, patch "
        f"size, projector and the number of positions a segment claims must agree."
    )


class Filler(Protocol):
    """A blank while it is filled in all at once, in one pass of the Transformer over all of its positions or several."""

    @property
    def is_done(self) -> bool:
        """Whether `content` is there."""
        ...

    @property
    def content(self) -> Any:
        """What the blank is closed with: an array (n, ...), as `Sequence.fill` takes it."""
        ...

    def inputs(self) -> Tensor:
        """(n, D): the embeddings of the blank's positions for the next pass."""
        ...

    def advance(self, hidden_GnD: Tensor, weights_G: Tensor) -> None:
        """Take the hidden states of a pass at the blank's positions, for each branch of guidance, whose predictions are summed
        with these weights; a single branch has the weight 1."""
        ...


@runtime_checkable
class Estimating(Protocol):
    """What a filler may have beside: what it will give, so far, after so many of its passes; None before the first."""

    num_passes: int
    estimate: Tensor | None

    @property
    def total_passes(self) -> int:
        """Passes that it takes."""
        ...


class PredictedPort(Port):
    """A port whose elements can be learned and filled in.

    reads: where the hidden state is that an element is predicted from: at the position before it ("previous"), or at its own
    ("own"), where `embed` must then not show what is to be learned (`Elements.weights` says which that is).
    """

    reads: ClassVar[Literal["previous", "own"]] = "own"

    @property
    def hides_dropped(self) -> bool:
        """Of what is filled in all at once: whether conditions that a branch of guidance drops are hidden from it."""
        return False

    def loss(self, hidden_nD: Tensor, targets: Any, weights_n: Tensor) -> LossSums:
        """The loss of n targets; sums, so that a port without targets gives zeros and zero gradients.

        targets: ids (n,), or elements (n, ...), as `targets` gives them.
        """
        raise NotImplementedError

    def filler(self, blank: Segment, key: tuple[int, int], **settings: Any) -> Filler:
        """What fills in a blank all at once. key: (seed, index) of whatever is random in it. settings: the port's own, of a
        request (`Request.filler_settings`)."""
        raise ValueError(f"{self.kind.name} is not filled in all at once, but element by element.")

    def head_path(self) -> list[nn.Module]:
        """What hidden states go through to become a prediction, in order: to count operations."""
        raise NotImplementedError

    def is_read(self, batch: Batch) -> Tensor:
        """(B, T) bool: the positions whose hidden states the loss reads."""
        is_target_BT = batch.target_kinds == self.kind
        return is_target_BT if self.reads == "previous" else self._is_learned(batch)

    def targets(self, batch: Batch, read_n: Tensor) -> tuple[Any, ...]:
        """The targets (n, ...) and their weights (n,) of the positions that `is_read` says, (n,) long, over all rows; and
        whatever else its `loss` takes."""
        is_learned_BT = self._is_learned(batch)
        if self.reads == "previous":
            is_learned_BT = is_learned_BT & (batch.positions > 0)  # the first element of a document has none before it
        elements: Elements = self.content(batch, read_n)
        chosen = is_learned_BT[batch.kinds == self.kind]
        return elements.values[chosen], elements.weights[chosen]

    def num_targets(self, batch: Batch) -> Tensor:
        """How much its targets count: a float scalar, the sum of their weights."""
        if self.reads == "previous":
            return batch.num_targets(self.kind)
        elements = batch.contents.get(self.kind)
        return batch.weights.new_zeros(()) if elements is None else elements.weights.sum()

    def _is_learned(self, batch: Batch) -> Tensor:
        """(B, T) bool: the positions of its elements that count in the loss."""
        is_learned_BT, elements = batch.kinds == self.kind, batch.contents.get(self.kind)
        if elements is not None:
            is_learned_BT = is_learned_BT.index_put((is_learned_BT,), elements.weights != 0)
        return is_learned_BT


class PortConfig(Protocol):
    """What a model's config holds of a port of another package, below `ports`: a frozen dataclass whose fields are JSON."""

    def build(self, width: int) -> Port:
        """The port, for a trunk of this width."""
        ...
