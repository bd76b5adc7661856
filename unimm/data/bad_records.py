"""Records that cannot be used: replaced inside the stream by others of their source.

Which record comes in place of a bad one depends on the seed, the source and the number of the sample alone, so that it is the
same one on every rank, in every worker and after a resume. What cannot be known before an image is opened is replaced in its
row, by a sample that is no longer. The trainer is given the bad records with their reasons, and stops where there are more than
`max_bad` allows.
"""

import re
from typing import NamedTuple

TRIES = 64
"""So many other records are tried in place of a bad one; a source in which none of them can be used is broken as a whole."""

BAD_RECORDS = "bad_records.txt"
"""In a run's folder: a line for each record that it could not use, its key, why, and its source, between tabs."""

_BREAKS_LISTS = re.compile(r"[\ud800-\udfff\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")


class BadRecord(NamedTuple):
    """A record that cannot be used: its key, why, and the name of its source."""

    key: str
    reason: str
    source: str = ""


def as_listed(text: str) -> str:
    """A key or a reason as lists have it, in UTF-8 and on one line: what would break that is escaped, as names of files may."""
    return re.sub(_BREAKS_LISTS, lambda one: one[0].encode("unicode_escape").decode(), text)


class StaleStoreError(ValueError):
    """What is stored of a record's image is of another one: nothing is wrong with the record, and it is not replaced."""


def reason_of(error: Exception) -> str:
    """What is wrong, in one line, without the traceback of a process that loads data."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def kind_of(reason: str) -> str:
    """A reason without the names of files and records, so that those that are alike can be counted."""
    short = re.sub(r"^Cannot (read|use) .{1,400}?: ", "", reason)
    short = re.sub(r"^.{0,300}?: record [^ :]{1,200}:? ", "", short)
    short = re.sub(r"^(record|Record) [^ :]{1,200}:? ", "", short)
    short = re.sub(r"([Tt]he image|The caption|the image data) (?:\S{0,300}/)?\S+", r"\1", short)
    short = re.sub(r"^.{1,400}? (?=has no caption|lies in no folder)", "it ", short)
    short = re.sub(r"(?<=: write ).{1,200}\.txt (?=beside it)", "a .txt ", short)
    short = re.sub(r"(?<=is empty: describe ).{1,200}(?= in it$)", "the image", short)
    return re.sub(r" \('utf-8' codec can't decode [^)]{1,100}\)", "", short)


def count_kinds(bad: list[BadRecord]) -> str:
    """How many there are of each reason, the most common first: for a person."""
    counts: dict[str, int] = {}
    for one in bad:
        kind = kind_of(one.reason)
        counts[kind] = counts.get(kind, 0) + 1
    most = sorted(counts.items(), key=lambda item: -item[1])
    named = "; ".join(f"{count:,} {reason}" for reason, count in most[:6])
    return f"{named}; and {len(most) - 6} other reasons" if len(most) > 6 else named
