"""Automatic prefix caching: keys and values of prompts stay for later requests that begin alike, such as with the same system
prompt or the same picture (vLLM, https://docs.vllm.ai/en/latest/design/prefix_caching.html; SGLang's RadixAttention, arXiv
2312.07104).

A prompt is cut in blocks, and a block's key is a digest of all that stands in it and before it: ids, pixels, features. Text is
cut every `BLOCK` positions; an image, or anything else that a port embeds as a whole, is one block. A prompt that begins with
blocks that are there copies their keys and values into its row and computes only what follows, so a picture that was looked at
before does not go through the vision tower again. Where room is needed the blocks go that were used least recently, of a prompt
its last ones first. When the model's weights change, all of them go.

What was written behind a prompt is kept, too, when it has ended: the next turn of a chat begins with the last one's prompt and
answer. Where that answer comes back as other ids (text has several ways to be cut into tokens) it is computed again from there.
With weights of fewer bits answers are not kept: their keys and values are not of the weights that prompts are read with.

What follows is computed as behind an earlier chunk of the same prompt, so in float32 ids are the same with and without (but
where two scores are equal to the last bits).

Shapes: L layers, H key-value heads, n positions, d head width.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from unimm.inference.decode.ragged_cache import KeyValueCache
from unimm.inference.decode.request import Row
from unimm.inference.kernels.llama_decode import weight_versions
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind, Segment, Sequence

R = TypeVar("R")

BLOCK = 16
"""Positions of text in a block, as in vLLM."""


WORTH_WAITING = 64
"""Positions of text that prompts which come together must have in common, for one to wait until the other has computed them; an
image is always worth it."""


@dataclass(frozen=True)
class Block:
    """Positions of a prompt from `start` to `stop`.

    key: a digest of all positions up to `stop`. is_text: else it is embedded as a whole.
    """

    key: bytes
    start: int
    stop: int
    is_text: bool


@dataclass(frozen=True)
class Known:
    """The first positions of a prompt, which need not be computed: their keys and values, (2, L, H, n, d) a block."""

    num_positions: int
    blocks: list[torch.Tensor]

    def restore(self, cache: KeyValueCache, row: int) -> None:
        """Write them to a row."""
        if self.blocks:
            cache.restore(row, 0, torch.cat(self.blocks, dim=3))


class PrefixCache:
    """Keys and values of blocks, (2, L, H, n, d) each, on the model's device and in the dtype of its caches.

    queries, hits: positions that prompts asked for, and those of them that were there, in all.
    generation: another number whenever all blocks went, so that what was computed with older weights does not come in.
    """

    def __init__(self, model: UnifiedModel, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.queries = self.hits = self.generation = 0
        self._model, self._versions = model, weight_versions(model)
        self._entries: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __contains__(self, block: Block) -> bool:
        return block.key in self._entries

    def clear(self) -> None:
        """Drop all blocks."""
        self._entries.clear()
        self.num_bytes, self._versions = 0, weight_versions(self._model)
        self.generation += 1

    def check_weights(self) -> None:
        """Drop all blocks if the model's weights were written to since they were made."""
        if self._versions != weight_versions(self._model):
            self.clear()

    def match(self, blocks: list[Block], length: int) -> "Known":
        """What is there of a prompt of this length; its last position never is, since its hidden state is needed."""
        found = []
        for block in blocks:
            if block.key not in self._entries or block.stop >= length:
                break
            found.append(block)
        for block in reversed(found):  # the last ones are to go first
            self._entries.move_to_end(block.key)
        return Known(found[-1].stop if found else 0, [self._entries[block.key] for block in found])

    def insert(self, blocks: list[Block], cache: KeyValueCache, row: int) -> None:
        """Copy blocks out of a row that holds all of them; those that are there only count as used now."""
        room, new = self.max_bytes, []
        for block in blocks:
            entry = self._entries.get(block.key)
            room -= entry.nbytes if entry is not None else cache.bytes_a_position * (block.stop - block.start)
            if room < 0:
                break  # a prompt that is too long is kept as far as there is room
            if entry is None:
                new.append(block)
            else:
                self._entries.move_to_end(block.key)
        if new:  # the keys of new blocks follow from those before them, so these are the last ones, without gaps but by chance
            first, last = new[0].start, new[-1].stop
            states = cache.read(row, first, last)
            for block in new:
                entry = states[:, :, :, block.start - first : block.stop - first].clone()
                self._entries[block.key] = entry
                self.num_bytes += entry.nbytes
        for block in reversed(blocks):
            if block.key in self._entries:
                self._entries.move_to_end(block.key)
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1].nbytes

    @torch.inference_mode()
    def insert_answers(self, rows: list[Row], ended: Collection[Row], cache: KeyValueCache) -> None:
        """Copy blocks out of rows whose texts have ended: prompts with all that was written behind them but the last id, which
        no step has read. rows: as they lie in the cache."""
        texts = [(place, row) for place, row in enumerate(rows) if row in ended and _is_written(row)]
        if texts:
            self.check_weights()
        for place, row in texts:
            if row.generation == self.generation:  # else weights have changed meanwhile
                written = row.job.request.sequence.fill(row.job.filled)
                self.insert([block for block in blocks_of(written) if block.stop < written.length], cache, place)


def blocks_of(sequence: Sequence) -> list[Block]:
    """The blocks of a closed sequence; what is left of text at its end makes none."""
    blocks, digest = [], b""
    for segments, start, stop in _runs(sequence):
        is_text = segments[0].kind == Kind.TEXT
        ids = np.concatenate([_ids_read(segment) for segment in segments]) if is_text else None
        edges = [*range(start, stop, BLOCK), stop] if is_text else [start, stop]
        for begin, end in pairwise(edges):
            content = ids[begin - start : end - start].tobytes() if ids is not None else _content(segments[0])
            digest = hashlib.sha256(b"%s|%d|%d|" % (digest, segments[0].kind, end - begin) + content).digest()
            if end < sequence.length or end - begin == BLOCK or not is_text:
                blocks.append(Block(digest, begin, end, is_text))
    return blocks


def one_of_each(blocks: dict[R, list[Block]], cache: PrefixCache) -> tuple[list[R], list[R]]:
    """Prompts that are to be computed now, and later those that have something in common with one of them which is not there
    yet: they find it then."""
    now, later, claimed = [], [], set[bytes]()
    for prompt, own in blocks.items():
        new = [block for block in own if block not in cache]
        shared = [block for block in new if block.key in claimed]
        if any(not block.is_text for block in shared) or sum(block.stop - block.start for block in shared) >= WORTH_WAITING:
            later.append(prompt)
        else:
            now.append(prompt)
            claimed |= {block.key for block in new}
    return now, later


def behind(sequence: Sequence, num_positions: int) -> Sequence:
    """A closed sequence without its first positions, which end where a block does."""
    segments = []
    for segment, start, stop in sequence.spans():
        if start >= num_positions:
            segments.append(segment)
        elif stop > num_positions:
            assert segment.kind == Kind.TEXT, "only text is cut"
            segments.append(Segment.text(_ids_read(segment)[num_positions - start :], condition=segment.condition))
    return Sequence(tuple(segments))


def _is_written(row: Row) -> bool:
    """Whether there is more than a prompt in a row, and all of it is text behind that."""
    job = row.job
    return row.branch == 0 and job.error is None and job.request.blank.kind == Kind.TEXT and len(job.filled) > 1


def _runs(sequence: Sequence) -> Iterator[tuple[list[Segment], int, int]]:
    """Neighbouring segments of text together, others alone, with the positions that they take."""
    run: list[Segment] = []
    begin = end = 0
    for segment, start, stop in sequence.spans():
        if not segment.length:
            continue
        if run and not (segment.kind == Kind.TEXT == run[-1].kind):
            yield run, begin, start
            run, begin = [], start
        run.append(segment)
        end = stop
    if run:
        yield run, begin, end


def _ids_read(segment: Segment) -> np.ndarray:
    return segment.content_ids if segment.corrupted is None else segment.corrupted


def _content(segment: Segment) -> bytes:
    """All that a port reads of a segment which it embeds as a whole."""
    if segment.image is not None:
        array = segment.image.open()
        head = f"{array.shape}{segment.image.is_features}"
    else:
        array = _ids_read(segment) if segment.has_ids else np.asarray(segment.content)
        head = f"{array.shape}{array.dtype}"
    return head.encode() + np.ascontiguousarray(array).tobytes()
