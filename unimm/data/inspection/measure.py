"""What is measured of a record: its texts, its images, and the sequences that views make of it; many records are a `Part`.

Nothing that is wrong with a record ends the work. It is noted as a `Problem`: the record cannot be read, an image of it cannot,
or a view refuses it. Records are asked through their public attributes alone: those of other packages are measured as well.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unimm.data.image import FORMATS, PLUGINS, decode_image
from unimm.data.inspection.near_duplicates import fingerprint
from unimm.data.records import Dataset, ImageLike, Record, SeenImage, UnreadImage, key_at, unchecked
from unimm.data.template import Template
from unimm.data.text import SPECIAL_NAMES
from unimm.data.views import View
from unimm.sequence import Sample

TEXTS = ("caption", "prompt", "system", "question", "answer", "text", "document")
"""Kinds of texts that a record has."""

PARTS = ("image", "several images", "captions", "prompts", "questions", "a dialogue", "text", "a document")
"""What a record may have, and is counted by."""

RECORD, IMAGE = "record", "image"
"""What a problem is about; else it is the name of a source, whose view refuses the record."""

SCRIPTS = {
    "Han": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "Kana": re.compile(r"[\u3040-\u30ff]"),
    "Hangul": re.compile(r"[\u1100-\u11ff\uac00-\ud7af]"),
    "Cyrillic": re.compile(r"[\u0400-\u052f]"),
    "Greek": re.compile(r"[\u0370-\u03ff]"),
    "Arabic": re.compile(r"[\u0600-\u06ff\u0750-\u077f]"),
    "Hebrew": re.compile(r"[\u0590-\u05ff]"),
    "Devanagari": re.compile(r"[\u0900-\u097f]"),
    "Thai": re.compile(r"[\u0e00-\u0e7f]"),
    "Latin": re.compile(r"[A-Za-z\u00c0-\u024f]"),
}
"""Letters of a script; what is in none of them is "other"."""

_SYLLABLES = ("Han", "Kana", "Hangul")
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_NAMES.values())))
_NUMBERS = re.compile(r"\d[\d.,]*")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|/\S+")
_MOST_REASON = 300


class Problem(NamedTuple):
    """Something that is wrong with a record. place: its index. about: RECORD, IMAGE, or the name of a source."""

    place: int
    key: str
    about: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without numbers and names, which many share."""
        return _NUMBERS.sub("N", _QUOTED.sub("...", self.reason.replace(self.key, "...") if self.key else self.reason))


@dataclass
class Part:
    """What was measured of some records.

    counts: named counts: how many records have what, texts by language and script ("en/Latin"), images by format and mode.
    tokens: lengths of texts in tokens, by kind (TEXTS).
    lengths: of each source, sequences' lengths in positions before anything is cut, one a record that it takes.
    longest: of each source, the length of its longest sequence and minus the index of its record.
    numbers: of images: "width", "height", "bytes" (-1: not a file), "bits" (8), "colours" (48), "owner" (its record); of
        captions: "said" (a hash of the text), "said_by" (its record).
    """

    counts: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in TEXTS})
    lengths: dict[str, list[int]] = field(default_factory=dict)
    longest: dict[str, tuple[int, int]] = field(default_factory=dict)
    numbers: dict[str, list[Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, name: str, value: Any) -> None:
        """One more of the numbers of a name."""
        self.numbers.setdefault(name, []).append(value)


@dataclass(frozen=True)
class Measure:
    """How the records of a data set are measured.

    views: by the names of their sources.
    template: with the text tokenizer, and the most positions that a sequence may have.
    num_codes: positions that the codes of an image take; records without codes are measured with so many.
    with_images: read and decode every image; else none is opened.
    """

    dataset: Dataset
    views: Mapping[str, View]
    template: Template
    num_codes: int
    seed: int = 0
    with_images: bool = True

    def __call__(self, indices: np.ndarray) -> Part:
        """Measure some records."""
        part = Part(lengths={name: [] for name in self.views})
        first = int(indices[0]) if len(indices) else 0
        rng = np.random.Generator(np.random.Philox(key=[self.seed, 0], counter=[0, first, 0, 0]))
        for index in indices.tolist():
            try:
                record = unchecked(self.dataset, index)
                self._texts(record, index, part)
            except (ValueError, OSError) as error:
                part.problems.append(Problem(index, key_at(self.dataset, index), RECORD, short_reason(error)))
                continue
            number = record.num_images
            part.counts["image"] += number > 0
            part.counts["several images"] += number > 1
            part.counts["images"] += number
            if self.with_images:
                self._images(record, index, part)
            self._sequences(self._with_codes(record, number), index, rng, part)
        return part

    def _texts(self, record: Record, index: int, part: Part) -> None:
        given = {"captions": record.captions, "prompts": record.prompts, "questions": record.questions}
        for name, value in given.items():
            part.counts[name] += bool(value)
        part.counts["text"] += record.text is not None
        part.counts["a document"] += bool(record.document)
        part.counts["a dialogue"] += record.is_dialogue and bool(record.questions)
        for kind, language, text in texts_of(record):
            part.tokens[kind].append(len(self.template.tokenizer.encode(text)))
            part.counts[f"language {language}/{script_of(text)}"] += 1
            part.counts["empty texts"] += not text.strip()
            part.counts["texts with the name of a special token"] += "<" in text and _SPECIAL.search(text) is not None
            if kind == "caption":
                digest = blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=8).digest()
                part.add("said", int.from_bytes(digest, "little"))
                part.add("said_by", index)
        part.counts["records"] += 1

    def _images(self, record: Record, index: int, part: Part) -> None:
        for image in images_of(record):
            try:
                seen = measure_image(image)
            except (ValueError, OSError) as error:
                part.problems.append(Problem(index, record.key, IMAGE, short_reason(error)))
                continue
            for name, value in seen.numbers.items():
                part.add(name, value)
            part.add("owner", index)
            part.counts[f"format {seen.form}"] += 1
            part.counts[f"mode {seen.mode}"] += 1

    def _with_codes(self, record: Record, number_of_images: int) -> Record:
        """The record with as many codes as a training would have stored of it."""
        if record.codes is not None or not number_of_images:
            return record
        codes = np.zeros(self.num_codes, dtype=np.int32)
        record = record.with_codes(codes, *[codes] * (number_of_images - 1))
        is_read = any(getattr(view, "corrupted", 0) for view in self.views.values())
        return record.with_corrupted_codes(codes) if is_read else record

    def _sequences(self, record: Record, index: int, rng: np.random.Generator, part: Part) -> None:
        for name, view in self.views.items():
            try:
                made = view(record, self.template, rng)
            except (ValueError, OSError) as error:
                part.problems.append(Problem(index, record.key, name, short_reason(error)))
                continue
            sample = made if isinstance(made, Sample) else Sample((made,))
            length = sample.full_length or sample.length
            part.lengths[name].append(length)
            part.counts[f"cut {name}"] += sample.full_length is not None
            part.longest[name] = max(part.longest.get(name, (0, 0)), (length, -index))


class SeenFile(NamedTuple):
    """An image that was read: the format of its file (the type of object where it is none), its mode, numbers as `Part` has."""

    form: str
    mode: str
    numbers: dict[str, Any]


def measure_image(image: ImageLike) -> SeenFile:
    """Read and decode an image, as training does.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(image, SeenImage):
        image = image.original()
    data = encoded_bytes(image)
    picture = decode_image(image if data is None else data)
    form, mode = "array" if isinstance(image, np.ndarray) else type(image).__name__, picture.mode
    if data is not None:
        form, mode = format_of(data)
    mark = fingerprint(picture)
    size = {"width": picture.width, "height": picture.height, "bytes": -1 if data is None else len(data)}
    return SeenFile(form, mode, {**size, "bits": mark.bits, "colours": mark.colours})


def format_of(data: bytes) -> tuple[str, str]:
    """Format and mode of an image file that `decode_image` has read."""
    with Image.open(io.BytesIO(data), formats=(*FORMATS, *(name for name in PLUGINS if name in Image.OPEN))) as header:
        return header.format or "unknown", header.mode


def encoded_bytes(image: ImageLike) -> bytes | None:
    """The file that an image is, where it is one and can be read; else None, and `decode_image` says what is wrong with it."""
    if isinstance(image, UnreadImage):
        return image.read()
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike) and not str(image).startswith("data:"):
        try:
            return Path(image).read_bytes() or None
        except (OSError, ValueError):
            return None
    return None


def images_of(record: Record) -> list[ImageLike]:
    """All images of a record, in order."""
    return [one.image for one in record.images]


def texts_of(record: Record) -> Iterator[tuple[str, str, str]]:
    """All texts of a record: kind (one of TEXTS), language, text."""
    for caption in record.captions:
        yield "caption", caption.language, caption.text
    for prompt in record.prompts:
        yield "prompt", prompt.language, prompt.text
    if record.system:
        yield "system", record.questions[0].language if record.questions else "en", record.system
    for question in record.questions:
        yield "question", question.language, question.text
        yield "answer", question.language, question.answer
    if record.text is not None:
        yield "text", record.text.language, record.text.text
    for piece in record.document:
        if isinstance(piece, str):
            yield "document", "not said", piece


def script_of(text: str) -> str:
    """The script that most of a text is written in; a Chinese character or a syllable counts as two letters."""
    if text.isascii():
        return "Latin" if SCRIPTS["Latin"].search(text) else "other"
    sizes = {name: len(letters.findall(text)) * (1 + (name in _SYLLABLES)) for name, letters in SCRIPTS.items()}
    name = max(sizes, key=lambda script: sizes[script])
    return name if sizes[name] else "other"


def short_reason(error: Exception) -> str:
    """What is wrong, in one line; names of records and files that stand beside it are left out."""
    said = " ".join(str(error).split()).rstrip(".")
    said = re.sub(r"^Cannot (read|use) (the image data|the array|the image|the file '.*?'|the image .*?): ", "", said)
    said = re.sub(r"^Record \S+ (?=(has|takes) )", "it ", said)
    return said if len(said) <= _MOST_REASON else f"{said[:_MOST_REASON]}..."
