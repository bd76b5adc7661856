"""What a data set holds, what a format of files can hold, and the sentence that says where these do not agree."""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from unimm.data.conversion.entries import CannotHoldError, Entry

PARTS = ("captions", "questions", "conversation", "text", "document")


@dataclass
class Contents:
    """What a data set holds, known before anything is written.

    counts: records with "image", with "language", and with each of PARTS. num_records: those that can be read. most_images,
    most_captions, most_questions: of a record. languages: that texts are in. has_parts: some turn is a list of parts.
    bad: the indices of those that could not be read, and of which nothing is known.
    """

    num_records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    most_images: int = 0
    most_captions: int = 0
    most_questions: int = 0
    languages: list[str] = field(default_factory=list)
    has_parts: bool = False
    bad: list[int] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """One record more; its images are counted, and may be unread."""
        self.num_records += 1
        self.counts.update(name for name in PARTS if getattr(entry, name))
        self.counts["image"] += bool(entry.images)
        self.counts["language"] += bool(entry.language)
        self.most_images = max(self.most_images, len(entry.images))
        self.most_captions = max(self.most_captions, len(entry.captions))
        self.most_questions = max(self.most_questions, len(entry.questions))
        self.has_parts |= any(not isinstance(turn["value"], str) for turn in entry.conversation)
        if entry.language and entry.language not in self.languages:
            self.languages.append(entry.language)

    def all_hold_only(self, part: str) -> bool:
        """Whether every record has this of PARTS, and none has another."""
        return self.counts[part] == self.num_records and not any(self.counts[name] for name in PARTS if name != part)

    @property
    def language(self) -> str:
        """That of all texts, where it is one."""
        return self.languages[0] if len(self.languages) == 1 else ""


FORMATS: dict[str, type["Format"]] = {}
"""All formats, by what `to` calls them."""


class Format(ABC):
    """One of the formats.

    holds: of PARTS. images: the least and the most images of a record. is_shard: a part is one file; else lines.
    """

    name: ClassVar[str]
    holds: ClassVar[tuple[str, ...]]
    images: ClassVar[tuple[int, int]] = (0, 1 << 30)
    is_shard: ClassVar[bool] = False
    suffix: ClassVar[str] = ".jsonl"

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            FORMATS[cls.name] = cls

    def __init__(self, contents: Contents) -> None:
        self.contents = contents

    def check(self, entry: Entry) -> None:
        """Raises CannotHoldError where it cannot hold a record."""
        low, high = self.images
        for name in PARTS:
            if getattr(entry, name) and name not in self.holds:
                raise self._refusal(entry, f"has {_WORDS[name]}", f", or leave them out, leave_out=[{name}]")
        if not low <= len(entry.images) <= high:
            raise self._refusal(entry, f"has {len(entry.images)} images" if len(entry.images) else "has no image")

    def check_all(self) -> None:
        """Raises CannotHoldError where it cannot hold all records together."""
        if self.contents.counts["conversation"] and self.contents.counts["questions"]:
            raise CannotHoldError(
                "Some records hold conversations and others questions of their own, and no configuration reads both: leave one "
                "out, leave_out=[questions]."
            )

    def _refusal(self, entry: Entry, what: str, or_else: str = "") -> CannotHoldError:
        others = [name for name, one in FORMATS.items() if _would_hold(one, entry)]
        ways = f"choose {' or '.join(f'to={name}' for name in others)}" if others else "no format here does"
        return CannotHoldError(f"{entry.key} {what}, which {self.name} does not hold: {ways}{or_else}.")

    @abstractmethod
    def write(self, entries: list[Entry], number: int, first: int, path: Path, folder: Path) -> None:
        """Write a part at `path`, and its images below `folder`, which will be the result. first: the number of its first
        record."""

    @abstractmethod
    def overrides(self, out: Path) -> list[str]:
        """With what `unimm encode` and `unimm train` read it again."""


def _would_hold(one: type[Format], entry: Entry) -> bool:
    low, high = one.images
    return low <= len(entry.images) <= high and all(name in one.holds for name in PARTS if getattr(entry, name))


_WORDS = {
    "captions": "captions",
    "questions": "questions",
    "conversation": "a conversation",
    "text": "plain text",
    "document": "an interleaved document",
}
