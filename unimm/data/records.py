"""What a data set gives: records, by index, the same one every time.

A data set is anything with `__len__` and `__getitem__(index) -> Record` whose answer depends on the index alone, so that
any worker of any rank can make any item and a run can resume from one integer.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image

from unimm.data.grids import Grid
from unimm.data.video.base import Video as Video


class Readable(Protocol):
    """A file that was opened for reading bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


class TensorLike(Protocol):
    """A tensor of PyTorch, which need not be imported."""

    @property
    def dtype(self) -> Any: ...

    def detach(self) -> Any: ...


class UnreadImage(ABC):
    """An image that still lies inside something larger, an archive or a table, and is read when it is opened: a run is planned
    by reading records far ahead, many times over, and must not read their images each time.
    """

    @abstractmethod
    def read(self) -> bytes:
        """The encoded image. Raises ValueError where it cannot be read."""

    def known_size(self) -> tuple[int, int] | None:
        """Width and height, where they are known without reading it."""
        return None

    def home(self) -> tuple[Path, str] | None:
        """The file that it lies in, and where in there, found without reading it; None: that is not known."""
        return None

    def is_at_home(self) -> bool:
        """Whether all of it lies in that file; may read it."""
        return True


class SeenImage(ABC):
    """An image that a frozen vision tower has looked at before: its features are stored, and training reads them instead."""

    @abstractmethod
    def features(self) -> np.ndarray:
        """What the tower made of it: (P, C) float32, a feature a patch."""

    @abstractmethod
    def original(self) -> "ImageLike":
        """The image itself."""


ImageLike = (
    str | Path | bytes | Image.Image | np.ndarray | Readable | TensorLike | Mapping[str, Any] | UnreadImage | SeenImage | Video
)
"""An image as users hold one: a path, encoded bytes, a PIL image, an array (H, W, 3) uint8, or a form of `image_forms`; or one
that is still unread; or one whose features are stored; or a video, which is looked at frame by frame."""


@dataclass(frozen=True)
class Text:
    """A piece of natural language and its language ("en", "zh").

    vague: whether it is as true of the image of the record's `corrupted_codes`, as "two circles" where these have other
        colours.
    """

    text: str
    language: str = "en"
    vague: bool = False


DEFAULT_CODES, LATENTS = "default", "latents"
"""The names of the image tokenizers whose codes, and whose latents, are meant where none is named, as in a bundle."""

Parts = tuple[str | int, ...]
"""Texts and images in reading order; an image by its number among the record's `images`, from 0."""


@dataclass(frozen=True)
class RecordImage:
    """An image of a record. codes: (num_codes,) each, by the name of their image tokenizer, or latents (C, h, w)."""

    image: ImageLike
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question about an image, its one right answer, what it asks about ("colour", "count", ...) and its language.

    rejected: an answer that is worse than the right one, for the view `Preference`; empty: none is known.
    parts, answer_parts: what is said where images stand among its texts; empty: the text alone. Where no question that is asked
        shows an image, all images of the record come before the first one. What an answer shows is drawn: it needs codes.
    given_images: images of the answer that are read and not learned, such as a drawing that the answer then says is wrong.
    """

    text: str
    answer: str
    category: str = ""
    language: str = "en"
    parts: Parts = ()
    answer_parts: Parts = ()
    rejected: str = ""
    given_images: tuple[int, ...] = ()


PixelBox = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of an upright image, x to the right and y downwards; the last two are the first beyond the box."""


@dataclass(frozen=True)
class Phrase:
    """Words for something in an image, and where all of it is.

    boxes: of everything that the words fit, in pixels of the record's `image_size`; none: it is not there.
    region: what to answer when it is asked what is in the box, where there is one; empty: that is not asked.
    category: what kind of phrase it is, for scores.
    """

    text: str
    boxes: tuple[PixelBox, ...] = ()
    language: str = "en"
    region: str = ""
    category: str = ""


@dataclass(frozen=True)
class ImageEdit:
    """What makes one image of a record of another: instructions that say the same, and the images by their numbers.

    category: what kind of edit it is, for scores. mask: where a person let it change the source, in the form of its data set.
    """

    instructions: tuple[Text, ...]
    source: int = 0
    target: int = 1
    category: str = ""
    mask: ImageLike | None = None


SHOWS = 'Does this figure show "{}"? Please answer yes or no.'
"""How it is asked whether an image shows what a prompt says, in any language: VQAScore's words (arXiv 2404.01291)."""


@dataclass(frozen=True)
class Record:
    """One item of a data set. Everything but the key is optional; a view says what it needs.

    A subclass may make its parts when they are first asked for (`functools.cached_property`), as the built-in worlds do:
    a view needs one or two of them.

    key: a stable name, unique in the data set ("shapes/train/12").
    captions: full descriptions of the image, several wordings; each also serves as a text-to-image prompt.
    codes: (num_codes,) the image as codes of an image tokenizer, where a data set holds them.
    grid: rows and columns of the codes, where they are not the image tokenizer's own.
    corrupted_codes: (num_codes,) codes of an image that is like this one and wrong, such as the same in other colours: what a
        model may read in place of its own codes while it learns these.
    questions: about the image, each by itself; or, where `is_dialogue`, the turns of one conversation, of which later ones lean
        on earlier ones.
    prompts: text-to-image prompts beside the captions: true of the whole image, but they may say less.
    text: a piece of plain text, for the language task.
    others: its further images, where it has several; then `image` and `codes` are those of the first.
    named_codes: of the first image by other image tokenizers, by their names.
    system: what is said before a conversation, instead of the prompt format's own.
    document: texts and images of an interleaved document, for the view `Document`.
    phrases: what may be located in the image, for the view `Grounding`.
    edits: what makes one of its images of another, for the view `Edit`.
    image_size: width and height in pixels that the boxes of the phrases are of; None: those of the image, upright.
    label: whether its last answer, or its image as a drawing of its prompt, is a good one, where that is known of it alone.
    partner: gives another record whose answer is none to this one's prompt (`unimm.data.partners`).
    facts: what a judge needs to know about the image (a world's own type), never shown to a model.
    """

    key: str
    image: ImageLike | None = None
    captions: tuple[Text, ...] = ()
    prompts: tuple[Text, ...] = ()
    codes: np.ndarray | None = None
    corrupted_codes: np.ndarray | None = None
    grid: Grid | None = None
    questions: tuple[Question, ...] = ()
    text: Text | None = None
    facts: Any = None
    is_dialogue: bool = False
    others: tuple[RecordImage, ...] = ()
    named_codes: Mapping[str, np.ndarray] | None = None
    system: str = ""
    document: Parts = ()
    phrases: tuple[Phrase, ...] = ()
    edits: tuple[ImageEdit, ...] = ()
    image_size: tuple[int, int] | None = None
    label: bool | None = None
    partner: Callable[[], "Record | None"] | None = None

    @property
    def images(self) -> tuple[RecordImage, ...]:
        """All images in order, with the codes that are known of them."""
        if self.image is None:
            return ()
        own = {} if self.codes is None else {DEFAULT_CODES: self.codes}
        return (RecordImage(self.image, {**own, **(self.named_codes or {})}), *self.others)

    @property
    def num_images(self) -> int:
        """How many there are, found without making one."""
        return len(self.others) + (self.makes_image or self.image is not None)

    @property
    def makes_image(self) -> bool:
        """Whether the image is made when it is asked for, and was not yet."""
        return "image" not in vars(self) and hasattr(type(self).image, "__get__")

    def with_codes(self, codes: np.ndarray, *others: np.ndarray, name: str = DEFAULT_CODES) -> Self:
        """The same record with these codes (num_codes,) of its image, or of each of its images, by an image tokenizer of that
        name; parts that are made when asked for stay unmade."""
        if others:
            further = zip(self.others, others, strict=True)
            self = self._with("others", tuple(RecordImage(one.image, {**one.codes, name: its}) for one, its in further))
        if name != DEFAULT_CODES:
            return self._with("named_codes", {**(self.named_codes or {}), name: codes})
        return self._with("codes", codes)

    def with_partner(self, partner: Callable[[], "Record | None"]) -> Self:
        """The same record, with what gives its partner."""
        return self._with("partner", partner)

    def with_grid(self, grid: Grid) -> Self:
        """The same record, whose codes have such rows and columns."""
        return self._with("grid", grid)

    def with_corrupted_codes(self, codes: np.ndarray) -> Self:
        """The same record with the codes (num_codes,) of a wrong image beside its own."""
        return self._with("corrupted_codes", codes)

    def with_image(self, image: ImageLike, *others: ImageLike) -> Self:
        """The same record with another image, or with others for all of its images; what it had stays unmade and unread."""
        if others:
            further = zip(self.others, others, strict=True)
            self = self._with("others", tuple(RecordImage(its, one.codes) for one, its in further))
        return self._with("image", image)

    def _with(self, name: str, value: Any) -> Self:
        changed = copy.copy(self)
        vars(changed)[name] = value  # frozen, and the copy is not out of our hands yet
        return changed


@dataclass(frozen=True)
class DatasetContext:
    """The networks that a data set will be used with, for those that hold what such a network made of their images.

    tokenizer_hash, latents_hash: of the image tokenizers whose codes and latents are learned; None: not known here.
    tower: gives the fingerprint of the vision tower that reads stored features, and the height and width of its images. It is
        called where something holds features, and raises ValueError where they cannot be used. None: not known here.
    """

    tokenizer_hash: str | None = None
    latents_hash: str | None = None
    tower: Callable[[], tuple[str, int]] | None = None


class Dataset(Protocol):
    """Records by index: random access, deterministic. Any class with these two methods is one; it need not inherit.

    A data set may also have `bind`, `unchecked`, `check` and `key_at`: see the functions of these names; and `order`
    (`unimm.data.order`), `head` and `hold_out`, as `unimm.data.ShardedDataset` does.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def known_length(dataset: Dataset) -> int | None:
    """How many records there are; None where they would have to be counted, in shards that may grow."""
    return None if hasattr(type(dataset), "head") else len(dataset)


def first_records(dataset: Dataset, count: int | None = None) -> Iterator[tuple[Dataset, int]]:
    """The first records (None: all), each as a data set and its index there; by `head` where the data set has that, which does
    not count all of them."""
    if hasattr(type(dataset), "head"):
        own: Any = dataset
        yield from own.head(count)
    else:
        yield from ((dataset, index) for index in range(len(dataset) if count is None else min(count, len(dataset))))


def unchecked(dataset: Dataset, index: int) -> Record:
    """A record of any data set, by `unchecked` where it has that."""
    if hasattr(type(dataset), "unchecked"):  # of its class: a wrapper may pass unknown attributes on to what it wraps
        own: Any = dataset
        return own.unchecked(index)
    return dataset[index]


def check(dataset: Dataset, index: int) -> None:
    """Raises ValueError where a record carries what was stored of another image."""
    if hasattr(type(dataset), "check"):
        own: Any = dataset
        own.check(index)


def key_at(dataset: Dataset, index: int) -> str:
    """The key of a record, by `key_at` where the data set has that; empty where it cannot be read, which is reported with all
    others of the kind."""
    if hasattr(type(dataset), "key_at"):
        own: Any = dataset
        return own.key_at(index)
    try:
        return unchecked(dataset, index).key
    except (ValueError, OSError):
        return ""
