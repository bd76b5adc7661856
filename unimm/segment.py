"""A segment: a run of elements of one kind inside a sequence: context, supervised, or open (to be generated).

Its content is ids, an image, or, of a kind from outside, an array of numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from unimm.kind import Kind
from unimm.runtime.number_checks import real_number, whole_numbers

BLANK = -1
"""Inside the ids of an open segment: an element that is not known yet."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image for the vision tower that takes `num_positions` positions: its pixels (3, H, W), float32 in [-1, 1] or uint8, a
    quarter of that; or, where `is_features`, what a frozen vision tower made of them before, (P, C) float32.

    source: these numbers, or a function that reads them. A sequence with such an *unopened* image can be measured and moved
        around; the image is read when a batch is made of it, and not kept.
    """

    num_positions: int
    source: np.ndarray | Callable[[], np.ndarray]
    is_features: bool = False

    def __post_init__(self) -> None:
        if self.num_positions < 1:
            raise ValueError(f"An image takes at least 1 position, not {self.num_positions}.")

    def open(self) -> np.ndarray:
        """Pixels (3, H, W) in [-1, 1] or features (P, C), float32; an unopened image is read anew each time."""
        array = self.read()
        return in_unit_range(array) if array.dtype == np.uint8 else array

    def read(self) -> np.ndarray:
        """As `open`, but pixels that are given as uint8 stay so."""
        array = self.source() if callable(self.source) else self.source
        return array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)

    def opened(self) -> "Image":
        """The same image, open."""
        return replace(self, source=self.read()) if callable(self.source) else self

    def __eq__(self, other: object) -> bool:
        """Whether both show the same; opens those that are unopened."""
        if not isinstance(other, Image):
            return NotImplemented
        if self is other or (self._form == other._form and self.source is other.source):
            return True
        return self._form == other._form and np.array_equal(self.open(), other.open())

    def __hash__(self) -> int:
        return hash(self._form)

    @property
    def _form(self) -> tuple[int, bool]:
        return self.num_positions, self.is_features


Content = np.ndarray | Image
"""What a segment holds: ids (n,) int64, an image, or an array (n, ...) float32, which has an element in each of n places."""

Weight = float | np.ndarray
"""How much the loss of each element of a segment counts: one number for all of them, or an array (n,)."""


@dataclass(frozen=True)
class Expected:
    """What the elements of a segment may well be, one after another, such as the codes of an image that is edited.

    bias: added to their logits, in the loss and before temperature: what is expected becomes so much likelier, and can still be
        another.
    """

    ids: tuple[int, ...]
    bias: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(whole_numbers("an expected element", list(self.ids), len(self.ids))))
        object.__setattr__(self, "bias", real_number("the bias of what is expected", self.bias))
        if not math.isfinite(self.bias):
            raise ValueError(f"The bias of what is expected is a finite number, not {self.bias}.")


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of elements of one kind. Use the constructors `text`, `codes`, `look`, `seen`, `array` and `blank`.

    content: the elements: ids, in an open segment those already known, `BLANK` where unknown; an image of PIXELS; or an array
        of a kind from outside. Arrays are not copied, and can only be read here.
    weight: how much the loss of each element counts; 0: it is given, not learned.
    condition: the name of the condition it belongs to ("text", "image"), which guidance drops; None for what always stays.
    limit: at most so many elements are to be filled in; None means closed.
    stop: ids that end an open TEXT segment early.
    suppressed: ids that are never chosen for an open segment, such as the begin of an image where words alone are asked for.
    corrupted: ids that are read in place of the content, which is learned all the same: one learns to go on from what is wrong.
    expected: what the ids that are learned may well be: what is to be learned is where they are others.
    """

    kind: Kind
    content: Content
    weight: Weight = 0.0
    condition: str | None = None
    limit: int | None = None
    stop: tuple[int, ...] = ()
    corrupted: np.ndarray | None = None
    suppressed: tuple[int, ...] = ()
    expected: Expected | None = None

    def __post_init__(self) -> None:  # planning makes millions of segments: what is usual is checked first
        content, kind = self.content, self.kind
        if isinstance(content, Image):
            if kind != Kind.PIXELS:
                raise ValueError(f"A PIXELS segment holds an image, and no other does: this one is of {kind.name}.")
            if self.limit is not None or self.learn:
                raise ValueError("A PIXELS segment is neither open nor learned.")
            return
        content = read_only(content)
        object.__setattr__(self, "content", content)
        if kind == Kind.PIXELS:
            raise ValueError("A PIXELS segment holds an image.")
        if content.dtype != np.int64 and (kind == Kind.TEXT or kind == Kind.CODES):
            raise ValueError(f"A {kind.name} segment holds ids (n,), whole numbers.")
        if type(self.weight) is not float or self.corrupted is not None or self.expected is not None:
            self._check_learning(len(content))
        if self.limit is not None:
            self._check_limit(self.limit, len(content))
        elif content.dtype == np.int64 and (content == BLANK).any():
            raise ValueError("A closed segment cannot hold blanks: give it a limit to leave it open.")

    def _check_learning(self, num_elements: int) -> None:
        if not isinstance(self.weight, int | float):
            object.__setattr__(self, "weight", read_only(np.asarray(self.weight, dtype=np.float32)))
            if np.shape(self.weight) != (num_elements,):
                raise ValueError(f"{num_elements} elements take as many weights, or a single one, not {np.shape(self.weight)}.")
        if self.corrupted is not None:
            object.__setattr__(self, "corrupted", read_only(self.corrupted))
            if not (self.learn and self.has_ids and self.corrupted.shape == (num_elements,)):
                raise ValueError(
                    f"Corrupted inputs stand in place of as many learned ids: {len(self.corrupted)} for {num_elements}."
                )
        if self.expected is not None and not (self.learn and self.has_ids and len(self.expected.ids) == num_elements):
            raise ValueError(f"As many ids are expected as are learned, not {len(self.expected.ids)} for {num_elements}.")

    def _check_limit(self, limit: int, num_known: int) -> None:
        if limit < 1:
            raise ValueError(f"An open segment needs a limit of at least 1 element, not {limit}.")
        if num_known > limit:
            raise ValueError(f"An open segment of {limit} elements cannot hold {num_known} known ones.")

    @classmethod
    def text(cls, ids: Any, learn: bool = False, condition: str | None = None, weight: Weight | None = None) -> "Segment":
        """Given or learned text: ids (n,) of the text tokenizer, a list, tuple or array. weight: default 1 if learned."""
        return cls(Kind.TEXT, _ids(ids), _weight(learn, weight), condition)

    @classmethod
    def codes(cls, ids: Any, learn: bool = False, condition: str | None = None, weight: Weight | None = None) -> "Segment":
        """Given or learned image codes (n,) in raster order, as a list, a tuple or an array. weight: default 1 if learned."""
        return cls(Kind.CODES, _ids(ids), _weight(learn, weight), condition)

    @classmethod
    def look(cls, pixels: np.ndarray | Callable[[], np.ndarray], num_positions: int, condition: str | None = None) -> "Segment":
        """An image for the vision tower: pixels (3, H, W) in [-1, 1], or what reads them, and the positions they take."""
        return cls(Kind.PIXELS, Image(num_positions, pixels), condition=condition)

    @classmethod
    def seen(
        cls, features: np.ndarray | Callable[[], np.ndarray], num_positions: int, condition: str | None = None
    ) -> "Segment":
        """An image that was looked at before: its features (P, C), or a function that reads them, in place of its pixels."""
        return cls(Kind.PIXELS, Image(num_positions, features, is_features=True), condition=condition)

    @classmethod
    def array(
        cls, kind: Kind, values: np.ndarray, learn: bool = False, condition: str | None = None, weight: Weight | None = None
    ) -> "Segment":
        """Elements of a kind from outside: an array (n, ...) of numbers, of n positions, given or learned."""
        return cls(kind, np.asarray(values, dtype=np.float32), _weight(learn, weight), condition)

    @classmethod
    def blank(
        cls, kind: Kind, limit: int, known: Any = (), stop: tuple[int, ...] = (), suppressed: tuple[int, ...] = ()
    ) -> "Segment":
        """An open segment: up to `limit` elements to fill, some of them perhaps known already (ids, `BLANK` where not)."""
        return cls(kind, _ids(known), limit=limit, stop=tuple(stop), suppressed=tuple(suppressed))

    @property
    def is_open(self) -> bool:
        """Whether there is something left to fill."""
        return self.limit is not None

    @property
    def learn(self) -> bool:
        """Whether any of its elements counts in the loss."""
        return bool(self.weight) if isinstance(self.weight, int | float) else bool(np.any(self.weight))

    @property
    def has_ids(self) -> bool:
        """Whether its content is ids."""
        return isinstance(self.content, np.ndarray) and self.content.dtype == np.int64

    @property
    def content_ids(self) -> np.ndarray:
        """Its ids (n,) int64; none where it holds something else."""
        return self.content if isinstance(self.content, np.ndarray) and self.has_ids else np.zeros(0, dtype=np.int64)

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Its ids as numbers of Python's, for people; none where it holds something else."""
        return tuple(self.content_ids.tolist())

    @property
    def image(self) -> Image | None:
        """Its image, of PIXELS."""
        return self.content if isinstance(self.content, Image) else None

    @property
    def pixels(self) -> np.ndarray | None:
        """The pixels (3, H, W) of its image; of an unopened one they are read now. None where there is none, or features."""
        return None if self.image is None or self.image.is_features else self.image.open()

    @property
    def features(self) -> np.ndarray | None:
        """The features (P, C) of its image, where it was looked at before; they may be read now."""
        return self.image.open() if self.image is not None and self.image.is_features else None

    def known(self, place: int, otherwise: int) -> int:
        """The element at a place of an open segment where it is known, else `otherwise`."""
        return self.ids[place] if place < len(self.ids) and self.ids[place] != BLANK else otherwise

    @property
    def num_known(self) -> int:
        """Elements that it holds; positions of its image."""
        return self.content.num_positions if isinstance(self.content, Image) else len(self.content)

    @property
    def length(self) -> int:
        """How many positions it takes; an open segment counts its limit."""
        return self.num_known if self.limit is None else self.limit

    def opened(self) -> "Segment":
        """The same segment, its image open."""
        return replace(self, content=self.image.opened()) if self.image is not None and callable(self.image.source) else self

    def __eq__(self, other: object) -> bool:
        """Whether all of it is the same, also what its image shows."""
        if not isinstance(other, Segment):
            return NotImplemented
        return self._rest == other._rest and _is_same(self.content, other.content)

    def __hash__(self) -> int:
        return hash((self._rest, self.ids))

    @property
    def _rest(self) -> tuple:
        corrupted = None if self.corrupted is None else self.corrupted.tobytes()
        weight = np.broadcast_to(np.float32(self.weight), self.num_known).tobytes()
        return self.kind, weight, self.condition, self.limit, self.stop, corrupted, self.suppressed, self.expected


NOISE_KEYS = 2**24
"""Keys of noise are whole numbers below this, which a float32 holds."""


def latent_elements(latents_CHW: np.ndarray, patch_size: int, key: int = 0) -> np.ndarray:
    """The latents of an image as elements of LATENTS, (1 + h w, C p p) float32: p x p patches, row by row, behind the place of
    the time, whose first number is the key that noise and time are drawn by while they are learned.

    Raises ValueError where they cannot be cut into such patches.
    """
    channels, height, width = latents_CHW.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"Latents of {tuple(latents_CHW.shape)} cannot be cut into patches of {patch_size} x {patch_size}.")
    rows, columns = height // patch_size, width // patch_size
    patches = latents_CHW.reshape(channels, rows, patch_size, columns, patch_size).transpose(1, 3, 0, 2, 4)
    elements = np.zeros((1 + rows * columns, channels * patch_size**2), np.float32)
    elements[0, 0] = key % NOISE_KEYS
    elements[1:] = patches.reshape(rows * columns, -1)
    return elements


def _weight(learn: bool, weight: Weight | None) -> Weight:
    return float(learn) if weight is None else weight


def _ids(ids: Any) -> np.ndarray:
    """Ids (n,) int64 of a list, a tuple or an array of whole numbers."""
    return np.asarray(ids, dtype=np.int64)


def in_unit_range(levels: np.ndarray) -> np.ndarray:
    """Pixels as uint8, of any shape -> float32 in [-1, 1]: Janus' mean and deviation of 0.5."""
    pixels = levels.astype(np.float32)
    pixels /= np.float32(127.5)
    pixels -= np.float32(1)
    return pixels


def read_only(content: Any) -> np.ndarray:
    """Ids as int64 and other numbers as float32, as an array that cannot be written to; not copied where it need not be."""
    array = np.asarray(content)
    if array.dtype != np.int64 or array.ndim != 1:
        is_ids = array.ndim == 1 and (array.size == 0 or array.dtype.kind in "iub")
        if not is_ids and (array.ndim == 0 or array.dtype.kind != "f"):
            raise ValueError(f"A segment holds ids (n,), an image or numbers (n, ...), not {array.dtype} {array.shape}.")
        array = array.astype(np.int64 if is_ids else np.float32, copy=False)
    array = array.view()
    array.flags.writeable = False
    return array


def _is_same(one: Content, other: Content) -> bool:
    if isinstance(one, Image) or isinstance(other, Image):
        return one == other
    return one.dtype == other.dtype and np.array_equal(one, other)
