"""A batch: sequences packed into rows, as aligned tensors with padding, documents and positions; what data hands to a model.

Shapes: B rows, T positions, I images, H W pixels. A row holds one or more sequences one after another (its documents);
what is left over at its end is padding. Everything is aligned by position: `tokens[b, t]` is the element at position t and
`targets[b, t]` is the element that has to follow it, and `weights[b, t]` how much its loss counts.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch

from unimm.segment import in_unit_range
from unimm.sequence import Image, Kind, Segment, Sequence

PADDING = -1
"""In `kinds`: a position that belongs to no sequence."""

_COLUMNS = ("tokens", "kinds", "targets", "target_kinds", "weights", "expected", "biases", "documents", "positions")
_FLOATS = ("weights", "biases")


class Tensors:
    """A dataclass of tensors, and of dictionaries of such dataclasses, that moves as a whole."""

    def to(self, device: torch.device | str) -> Self:
        """The same on another device. Copies to a GPU are waited for by what is computed there; main memory is read at once, so
        on the way there each copy is."""
        is_queued = torch.device(device).type != "cpu"
        return self._map(
            lambda one: one.to(device, non_blocking=is_queued) if isinstance(one, torch.Tensor) else one.to(device)
        )

    def pin_memory(self) -> Self:
        """The same in page-locked memory, from where a GPU reads faster; a loader asks for it."""
        return self._map(lambda one: one.pin_memory())

    def _map(self, move: Any) -> Self:
        moved = {}
        for f in fields(self):  # pyright: ignore[reportArgumentType]
            one = getattr(self, f.name)
            moved[f.name] = {key: move(value) for key, value in one.items()} if isinstance(one, dict) else move(one)
        return type(self)(**moved)


@dataclass(frozen=True)
class Images(Tensors):
    """The images of a batch in reading order: content of PIXELS.

    pixels: (N, 3, H, W) uint8 or float (`normalise_pixels`); those that are looked at now.
    features: (M, P, C) float; of the others, which a frozen vision tower has looked at before.
    is_seen: (N + M,) bool; for every image, whether its features are there instead of its pixels.
    """

    pixels: torch.Tensor
    features: torch.Tensor
    is_seen: torch.Tensor

    def __len__(self) -> int:
        return len(self.is_seen)

    def part(self, numbers: slice) -> "Images":
        """Those with some numbers, one after another."""
        seen_before = [int(self.is_seen[:end].sum()) for end in (numbers.start, numbers.stop)]
        looked = slice(numbers.start - seen_before[0], numbers.stop - seen_before[1])
        return Images(self.pixels[looked], self.features[slice(*seen_before)], self.is_seen[numbers])


@dataclass(frozen=True)
class Elements(Tensors):
    """The elements of a batch in reading order that are arrays of numbers: content of a kind from outside.

    values: (n, ...) float; one for each position of the kind. weights: (n,) float; how much the loss of each counts.
    """

    values: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Batch(Tensors):
    """Rows of sequences as tensors.

    tokens: (B, T) long; ids of kinds that have some (TEXT, CODES), 0 elsewhere.
    kinds: (B, T) long; `Kind` of the element, `PADDING` where there is none.
    targets: (B, T) long; the next element of the same document, 0 where nothing is learned.
    target_kinds: (B, T) long; the kind of that element, `PADDING` where nothing is learned.
    weights: (B, T) float; how much the loss of that element counts, 0 where nothing is learned.
    expected: (B, T) long; the id that this element may well be, as the source's where an image is edited; 0 where none is.
    biases: (B, T) float; what is added to the logit of that id, 0 where none is expected.
    documents: (B, T) long; 1, 2, ... for the sequences of a row, 0 for padding. Attention never crosses them.
    positions: (B, T) long; restart with every document.
    image_spans: (I, 3) long; for every image in reading order its row, where it starts there, and its number of positions.
    contents: what is not ids, by kind: `Images` of PIXELS (always there), `Elements` of other kinds that the batch holds.
    samples: (D, 2) long; for every document in reading order which sample it is of, 0, 1, ..., and its place in that sample.
    """

    tokens: torch.Tensor
    kinds: torch.Tensor
    targets: torch.Tensor
    target_kinds: torch.Tensor
    weights: torch.Tensor
    expected: torch.Tensor
    biases: torch.Tensor
    documents: torch.Tensor
    positions: torch.Tensor
    image_spans: torch.Tensor
    contents: dict[Kind, Any]
    samples: torch.Tensor

    @property
    def images(self) -> Images:
        """The images that are looked at, or were before."""
        return self.contents[Kind.PIXELS]

    @property
    def num_images(self) -> int:
        """Images that are looked at, or were before: N + M."""
        return len(self.image_spans)

    def num_targets(self, kind: Kind) -> torch.Tensor:
        """How many targets of a kind count in the loss: a float scalar, the sum of their weights."""
        return (self.weights * (self.target_kinds == kind)).sum()

    @property
    def num_elements(self) -> int:
        """Positions that are not padding."""
        return int((self.documents > 0).sum())

    def document_indices(self) -> torch.Tensor:
        """(B, T) long: the document that holds a position, as its row in `samples`; -1 for padding."""
        begins_BT = (self.positions == 0) & (self.documents > 0)
        return torch.where(self.documents > 0, begins_BT.flatten().cumsum(0).view(begins_BT.shape) - 1, -1)

    def attention_mask(self) -> torch.Tensor:
        """(B, 1, T, T) bool: position t may attend to s if s is not later and belongs to the same document.

        Padding attends to itself alone: a row of nothing would make softmax return nan.
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
    samples: Iterable[Iterable[tuple[Hashable, int]]] | None = None,
) -> Batch:
    """Rows of sequences -> Batch.

    Args:
        rows: the sequences of each row, in order. Open sequences contribute what is given of them.
        num_positions: T; default: the longest row.
        num_rows: B; default: the number of rows. Missing rows are padding, so that shapes can be kept fixed.
        samples: for every sequence of each row the name of the sample that it is of, and its place there; default: each is a
            sample of its own.

    Images that are unopened are read now.

    Raises:
        ValueError: a row is longer than `num_positions`, there are too many rows, images differ in size or cannot be read, or
            arrays of one kind differ in form.
    """
    rows = [list(row) for row in rows]
    filled = [_Row.of(row) for row in rows]
    longest = max((row.length for row in filled), default=0)
    width = longest if num_positions is None else num_positions
    height = len(filled) if num_rows is None else num_rows
    if longest > width:
        raise ValueError(f"A row of {longest} positions does not fit into {width}: raise the row length.")
    if len(filled) > height:
        raise ValueError(f"{len(filled)} rows do not fit into {height}: raise the number of rows.")
    columns = {}
    for name in _COLUMNS:
        empty = PADDING if name in ("kinds", "target_kinds") else 0
        column = np.full((height, width), empty, dtype=np.float32 if name in _FLOATS else np.int64)
        for index, row in enumerate(filled):
            column[index, : row.length] = row.columns[name]
        columns[name] = torch.from_numpy(column)
    spans = [(index, start, image.num_positions) for index, row in enumerate(filled) for image, start in row.images]
    contents: dict[Kind, Any] = {Kind.PIXELS: _images([image for row in filled for image, _ in row.images])}
    for kind in {segment.kind: None for row in filled for segment in row.arrays}:
        contents[kind] = _elements(kind, [segment for row in filled for segment in row.arrays if segment.kind == kind])
    spans_I3 = torch.tensor(spans, dtype=torch.long).view(-1, 3)
    return Batch(**columns, image_spans=spans_I3, contents=contents, samples=_numbered(rows, samples))


def _numbered(rows: list[list[Sequence]], samples: Iterable[Iterable[tuple[Hashable, int]]] | None) -> torch.Tensor:
    """(D, 2) long: `Batch.samples`."""
    if samples is None:
        numbers = [(number, 0) for number in range(sum(len(row) for row in rows))]
    else:
        named, known = [one for row in samples for one in row], {}
        numbers = [(known.setdefault(name, len(known)), place) for name, place in named]
        if len(numbers) != sum(len(row) for row in rows):
            raise ValueError(
                f"{len(numbers)} samples are named for {sum(len(row) for row in rows)} sequences: name one for each."
            )
    return torch.tensor(numbers, dtype=torch.long).view(-1, 2)


def normalise_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (..., H, W) as uint8 -> float32 in [-1, 1], the same numbers as `Image.open` gives, on their device: as uint8 they
    take a quarter of the memory on their way. Floats stay as they are."""
    if pixels.dtype != torch.uint8:
        return pixels
    # By a number on the device: a GPU multiplies by the reciprocal of a plain one, which rounds otherwise.
    return pixels.float().div_(torch.full((), 127.5, device=pixels.device)).sub_(1)


def _images(images: list[Image]) -> Images:
    looked = [image for image in images if not image.is_features]
    pixels = [image.read() for image in looked]
    if any(array.dtype != np.uint8 for array in pixels):
        pixels = [array if array.dtype != np.uint8 else in_unit_range(array) for array in pixels]
    return Images(
        pixels=_stack(pixels, (3, 1, 1)),
        features=_stack([image.open() for image in images if image.is_features], (1, 1)),
        is_seen=torch.tensor([image.is_features for image in images], dtype=torch.bool),
    )


def _stack(images: list[np.ndarray], empty: tuple[int, ...]) -> torch.Tensor:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        sizes = " and ".join(map(str, sorted(shapes)))
        raise ValueError(
            f"Images of one batch have one size, which is the vision tower's, not {sizes}: prepare them with one template "
            f"(Template.look), or store the features of all of them again."
        )
    return torch.from_numpy(np.stack(images)) if images else torch.zeros(0, *empty)


def _elements(kind: Kind, segments: list[Segment]) -> Elements:
    arrays = [np.asarray(segment.content) for segment in segments]
    if len({array.shape[1:] for array in arrays}) > 1:
        raise ValueError(
            f"The elements of {kind.name} must have one form, not {sorted({array.shape[1:] for array in arrays})}."
        )
    weights = [np.full(segment.length, segment.weight, dtype=np.float32) for segment in segments]
    return Elements(torch.from_numpy(np.concatenate(arrays)), torch.from_numpy(np.concatenate(weights)))


@dataclass
class _Row:
    """One row while it is put together: arrays of its length by name, its images with their first positions, other arrays."""

    columns: dict[str, np.ndarray]
    images: list[tuple[Image, int]]
    arrays: list[Segment]

    @property
    def length(self) -> int:
        return len(self.columns["tokens"])

    @classmethod
    def of(cls, sequences: Iterable[Sequence]) -> "_Row":
        given = [sequence.given for sequence in sequences]
        documents = [_document(sequence, number) for number, sequence in enumerate(given, start=1)]
        columns = {
            name: np.concatenate([document[name] for document in documents]) if documents else np.zeros(0, np.int64)
            for name in _COLUMNS
        }
        row, first = cls(columns, [], []), 0
        for sequence in given:
            for segment, start, _ in sequence.spans():
                if segment.image is not None:
                    row.images.append((segment.image, first + start))
                elif not segment.has_ids:
                    row.arrays.append(segment)
            first += sequence.length
        return row


def _document(sequence: Sequence, number: int) -> dict[str, np.ndarray]:
    """One closed sequence as arrays, with every target aligned to the position that predicts it."""
    length = sequence.length
    tokens = np.zeros(length, np.int64)
    read = np.zeros(length, np.int64)  # tokens, but for what is corrupted
    kinds = np.empty(length, np.int64)
    weights = np.empty(length, np.float32)
    expected, biases = np.zeros(length, np.int64), np.zeros(length, np.float32)
    for segment, start, stop in sequence.spans():
        kinds[start:stop] = segment.kind
        weights[start:stop] = segment.weight
        if segment.has_ids:
            tokens[start:stop] = segment.content_ids
            read[start:stop] = segment.content_ids if segment.corrupted is None else segment.corrupted
        if segment.expected is not None:
            expected[start:stop], biases[start:stop] = segment.expected.ids, segment.expected.bias
    # The first element has no predecessor: nothing can learn it.
    weights = np.append(weights[1:], np.float32(0))
    follows = weights != 0
    return {
        "tokens": read,
        "kinds": kinds,
        "targets": np.where(follows, np.append(tokens[1:], 0), 0),
        "target_kinds": np.where(follows, np.append(kinds[1:], PADDING), PADDING),
        "weights": weights,
        "expected": np.where(follows, np.append(expected[1:], 0), 0),
        "biases": np.where(follows, np.append(biases[1:], np.float32(0)), np.float32(0)),
        "documents": np.full(length, number, np.int64),
        "positions": np.arange(length),
    }
