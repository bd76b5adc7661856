"""Many sequences as aligned tensors: the only thing that data hands to a model.

Shapes: B rows, T positions, N images, H W pixels. A row holds one or more sequences one after another (its documents);
what is left over at its end is padding. Everything is aligned by position: `tokens[b, t]` is the element at position t and
`targets[b, t]` is the element that has to follow it, with `weights[b, t]` saying whether the loss looks at that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from unimm.sequence import Kind, Segment, Sequence

PADDING = -1
"""In `kinds`: a position that belongs to no sequence."""


@dataclass(frozen=True)
class Batch:
    """Rows of sequences as tensors.

    tokens: (B, T) long; ids of TEXT, codes of CODES, 0 elsewhere.
    kinds: (B, T) long; `Kind` of the element, `PADDING` where there is none.
    targets: (B, T) long; the next element of the same document, 0 where nothing is learned.
    target_kinds: (B, T) long; the kind of that element, `PADDING` where nothing is learned.
    weights: (B, T) float; 1 where the target is learned, else 0.
    documents: (B, T) long; 1, 2, ... for the sequences of a row, 0 for padding. Attention never crosses them.
    positions: (B, T) long; restart with every document.
    pixels: (N, 3, H, W) float; the images that are looked at, in reading order.
    features: (M, P, C) float; of further images, which a frozen vision tower has looked at before, in reading order.
    is_seen: (N + M,) bool; for every image in reading order, whether its features are there instead of its pixels.
    """

    tokens: torch.Tensor
    kinds: torch.Tensor
    targets: torch.Tensor
    target_kinds: torch.Tensor
    weights: torch.Tensor
    documents: torch.Tensor
    positions: torch.Tensor
    pixels: torch.Tensor
    features: torch.Tensor
    is_seen: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from where a GPU reads faster; a loader asks for it."""
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def num_targets(self, kind: Kind) -> torch.Tensor:
        """How many targets of a kind the loss looks at: a float scalar, the sum of their weights."""
        return (self.weights * (self.target_kinds == kind)).sum()

    @property
    def num_images(self) -> int:
        """Images that are looked at, or were before: N + M."""
        return len(self.is_seen)

    @property
    def num_elements(self) -> int:
        """Positions that are not padding."""
        return int((self.documents > 0).sum())

    def attention_mask(self) -> torch.Tensor:
        """(B, 1, T, T) bool: position t may look at s if s is not later and belongs to the same document.

        Padding looks at itself alone: a row of nothing would make softmax return nan.
        """
        num_positions = self.tokens.shape[1]
        same = self.documents[:, :, None] == self.documents[:, None, :]
        real = self.documents[:, None, :] > 0
        causal = torch.ones(num_positions, num_positions, dtype=torch.bool, device=same.device).tril()
        itself = torch.eye(num_positions, dtype=torch.bool, device=same.device)
        return ((same & real & causal) | itself)[:, None]


def collate(
    rows: Iterable[Iterable[Sequence]],
    num_positions: int | None = None,
    num_rows: int | None = None,
) -> Batch:
    """Rows of sequences -> Batch.

    Args:
        rows: the sequences of each row, in order. Open sequences contribute what is given of them.
        num_positions: T; default: the longest row.
        num_rows: B; default: the number of rows. Missing rows are padding, so that shapes can be kept fixed.

    Raises:
        ValueError: a row is longer than `num_positions`, there are too many rows, or images differ in size.
    """
    filled = [_Row.of(row) for row in rows]
    longest = max((row.length for row in filled), default=0)
    width = longest if num_positions is None else num_positions
    height = len(filled) if num_rows is None else num_rows
    if longest > width:
        raise ValueError(f"A row of {longest} positions does not fit into {width}: raise the row length.")
    if len(filled) > height:
        raise ValueError(f"{len(filled)} rows do not fit into {height}: raise the number of rows.")
    columns = {}
    for name in ("tokens", "kinds", "targets", "target_kinds", "weights", "documents", "positions"):
        empty = PADDING if name in ("kinds", "target_kinds") else 0
        column = np.full((height, width), empty, dtype=np.float32 if name == "weights" else np.int64)
        for index, row in enumerate(filled):
            column[index, : row.length] = getattr(row, name)
        columns[name] = torch.from_numpy(column)
    images = [image for row in filled for image in row.images]
    return Batch(
        **columns,
        pixels=_stack([image.pixels for image in images if image.pixels is not None], (3, 1, 1)),
        features=_stack([image.features for image in images if image.features is not None], (1, 1)),
        is_seen=torch.tensor([image.features is not None for image in images], dtype=torch.bool),
    )


def _stack(images: list[np.ndarray], empty: tuple[int, ...]) -> torch.Tensor:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"The images of a batch must have one size, not {sorted(shapes)}.")
    if not images:
        return torch.zeros(0, *empty)
    return torch.from_numpy(np.stack(images).astype(np.float32, copy=False))


@dataclass
class _Row:
    """One row while it is put together; arrays of its length."""

    tokens: np.ndarray
    kinds: np.ndarray
    targets: np.ndarray
    target_kinds: np.ndarray
    weights: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    images: list[Segment]

    @property
    def length(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, sequences: Iterable[Sequence]) -> "_Row":
        documents = [_document(sequence.given, number) for number, sequence in enumerate(sequences, start=1)]
        joined = {
            name: np.concatenate([document[name] for document in documents]) if documents else np.zeros(0, np.int64)
            for name in ("tokens", "kinds", "targets", "target_kinds", "weights", "documents", "positions")
        }
        return cls(**joined, images=[image for document in documents for image in document["images"]])


def _document(sequence: Sequence, number: int) -> dict:
    """One closed sequence as arrays, with every target aligned to the position that predicts it."""
    length = sequence.length
    tokens = np.zeros(length, np.int64)
    read = np.zeros(length, np.int64)  # tokens, but for decoys
    kinds = np.empty(length, np.int64)
    learned = np.zeros(length, bool)
    images = []
    for segment, start, stop in sequence.spans():
        kinds[start:stop] = segment.kind
        learned[start:stop] = segment.learn
        if segment.kind == Kind.PIXELS:
            images.append(segment)
        else:
            tokens[start:stop] = segment.ids
            read[start:stop] = segment.decoys or segment.ids
    # The first element has no predecessor: nothing can learn it.
    follows = np.append(learned[1:], False)
    return {
        "tokens": read,
        "kinds": kinds,
        "targets": np.where(follows, np.append(tokens[1:], 0), 0),
        "target_kinds": np.where(follows, np.append(kinds[1:], PADDING), PADDING),
        "weights": follows.astype(np.float32),
        "documents": np.full(length, number, np.int64),
        "positions": np.arange(length),
        "images": images,
    }
