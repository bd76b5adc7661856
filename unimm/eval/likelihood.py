"""Texts as sequences whose likelihood is asked for (`Engine.loglikelihood`): continuations of a prompt, and long texts, read in
windows, every token scored once, as lm-evaluation-harness cuts them.
"""

from collections.abc import Iterator

from unimm.sequence import Segment, Sequence


def continuation(given: Sequence, ids: list[int]) -> Sequence:
    """A prompt, open or closed, with these text ids behind it to be scored."""
    return Sequence((*given.given.segments, Segment.text(ids, learn=True)))


def text_sequences(ids: list[int], first: int, length: int) -> list[Sequence]:
    """A text of any length as sequences of at most `length` positions, in which every id is scored once (`text_windows`)."""
    windows = text_windows(ids, first, length - 1) if ids else ()
    return [continuation(Sequence((Segment.text(context),)), scored) for context, scored in windows]


def text_windows(ids: list[int], first: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """A text as windows (context, to be scored) of at most `length` + 1 ids together, every id scored once.

    The first window begins behind `first`, the id that begins a text; a later one has as much context as there is room for, and
    scores `length` ids but for the last, which scores what is left.
    """
    yield [first], ids[:length]
    for start in range(length, len(ids), length):
        stop = min(start + length, len(ids))
        yield ids[stop - length - 1 : start], ids[start:stop]
