"""Prefill: the given part of admitted requests goes through the trunk many positions at a time, some of them at every step.

Rows with the same prefix (several images of a prompt, null prompts of one length) are computed once and copied, and what
earlier prompts have left of a prefix is not computed again (`prefix_cache`); rows of similar length go together; long ones go
in chunks, so that rows that are being decoded never wait for long.

Shapes: R rows, T positions, D trunk width.
"""

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import count

import torch
import torch.nn.functional as F

from unimm.batch import collate
from unimm.inference.decode.prefix_cache import Known, PrefixCache, behind, blocks_of, one_of_each
from unimm.inference.decode.ragged_cache import KeyValueCache
from unimm.inference.decode.request import Job, Row
from unimm.models.unified import UnifiedModel

PADDING = 1.3
"""Sequences go together when the longest is at most this many times the shortest."""


class Prefill:
    """Admitted rows on their way into the cache, at places from `begin` on.

    rows: in the order of their places, once all is done.

    Args:
        rows: each with what it begins with; `length` is set when it is written.
        positions_a_step: computed at most, over all rows, in one `advance`.
        alone: every row goes by itself, for batch invariance.
        prefixes: what earlier prompts have left, to begin with and to add to.
    """

    def __init__(
        self,
        model: UnifiedModel,
        cache: KeyValueCache,
        rows: list[Row],
        begin: int,
        positions_a_step: int,
        alone: bool = False,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self.begin, self.num_positions, self.rows = begin, 0, list(rows)
        self._model, self._cache, self._positions_a_step, self._alone = model, cache, positions_a_step, alone
        self._prefixes = prefixes
        self._num_computed = 0
        self._work = self._run()

    @torch.inference_mode()
    def advance(self) -> torch.Tensor | None:
        """Compute the next part; returns the hidden states (R, D) of the last given positions when all is done."""
        try:
            next(self._work)
        except StopIteration as end:
            return end.value
        return None

    def fail(self, error: Exception) -> list[Job]:
        """It has failed. A prefill of several requests does not say which of them it was: returns those to try again, each
        alone; a single one keeps the error."""
        jobs = list({row.job.ticket: row.job for row in self.rows}.values())
        for job in jobs:
            job.prefills_alone = True
            if len(jobs) == 1:
                job.fail(error)
        return jobs if len(jobs) > 1 else []

    def finish(self) -> torch.Tensor:
        """Compute all that is left."""
        while (hidden_RD := self.advance()) is None:
            pass
        return hidden_RD

    def _run(self) -> Generator[None, None, torch.Tensor]:
        """Yields after every part; returns the hidden states."""
        device = next(self._model.parameters()).device
        self._cache.reserve(self.begin + len(self.rows), max(row.num_slots for row in self.rows))
        first: dict[tuple, Row] = {}
        for row in self.rows:
            first.setdefault(row.prefix_key, row)
        sharers = [row for row in self.rows if first[row.prefix_key] is not row]
        owners, hidden = [], []
        for together, known in self._groups(list(first.values())):
            if self._num_computed >= self._positions_a_step:
                self._num_computed = 0
                yield
            hidden.append((yield from self._compute(self.begin + len(owners), together, known, device)))
            owners += together
        place = {row.prefix_key: index for index, row in enumerate(owners)}
        sources = [place[row.prefix_key] for row in sharers]
        for place, source, row in zip(count(self.begin + len(owners)), sources, sharers):
            self._cache.reserve_rows(place, [row.num_slots])
            self._cache.copy(self.begin + source, place, row.sequence.length)
        self.rows = owners + sharers
        for row in self.rows:
            row.length = row.sequence.length
        hidden_RD = torch.cat(hidden)
        return torch.cat([hidden_RD, hidden_RD[torch.tensor(sources, dtype=torch.long, device=device)]])

    def _groups(self, rows: list[Row]) -> Iterator[tuple[list[Row], list[Known]]]:
        """Rows that are computed together, place after place, and what is known of each: as many positions of all of them."""
        if self._prefixes is None:
            for group in self._alike(rows):
                yield group, [Known(0, [])] * len(group)
            return
        prefixes, place = self._prefixes, self.begin
        prefixes.check_weights()
        for row in self.rows:
            row.generation = prefixes.generation
        blocks = {row: blocks_of(row.sequence) for row in rows}
        for part in one_of_each(blocks, prefixes):
            known = {row: prefixes.match(blocks[row], row.sequence.length) for row in part}
            prefixes.queries += sum(row.sequence.length for row in part)
            prefixes.hits += sum(one.num_positions for one in known.values())
            for num_known in sorted({one.num_positions for one in known.values()}):
                for group in self._alike([row for row in part if known[row].num_positions == num_known]):
                    generation = prefixes.generation
                    yield group, [known[row] for row in group]
                    for row in group:
                        if generation == prefixes.generation:  # else weights have changed meanwhile
                            prefixes.insert(blocks[row], self._cache, place)
                        place += 1

    def _compute(
        self, begin: int, rows: list[Row], known: list[Known], device: torch.device
    ) -> Generator[None, None, torch.Tensor]:
        """Rows of similar length, as many positions at a time as a step may prefill -> (R, D)."""
        num_known = known[0].num_positions
        self._cache.reserve_rows(begin, [row.num_slots for row in rows])
        for place, one in enumerate(known, start=begin):
            one.restore(self._cache, place)
        batch = collate([[behind(row.sequence, num_known)] for row in rows]).to(device)
        batch = replace(batch, positions=batch.positions + num_known)
        num_rows, num_positions = batch.tokens.shape
        embeddings_RTD, mask = self._model.embed(batch), F.pad(batch.attention_mask(), (num_known, 0), value=True)
        slots_RT = num_known + torch.arange(num_positions, device=device).expand(num_rows, -1)
        last_R = torch.tensor([row.sequence.length - 1 - num_known for row in rows], device=device)
        hidden_RD = embeddings_RTD.new_zeros(num_rows, self._model.width)
        chunk = max(self._positions_a_step // num_rows, 1)
        for start in range(0, num_positions, chunk):
            if start:
                self._num_computed = 0
                yield
            stop = min(start + chunk, num_positions)
            used = num_known + stop
            self._cache.prepare(slice(begin, begin + num_rows), slots_RT[:, start:stop], used)
            part_RTD = self._model.hidden(
                embeddings_RTD[:, start:stop], mask[:, :, start:stop, :used], batch.positions[:, start:stop], self._cache
            )
            ends_here = (last_R >= start) & (last_R < stop)
            hidden_RD[ends_here] = part_RTD[ends_here, last_R[ends_here] - start]
            self._num_computed += num_rows * (stop - start)
        self.num_positions += sum(row.sequence.length - num_known for row in rows)
        return hidden_RD

    def _alike(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Rows of lengths that are near enough to be padded to the longest, the shortest first; alone, each by itself."""
        group: list[Row] = []
        for row in sorted(rows, key=lambda row: row.sequence.length):
            if group and (self._alone or row.sequence.length > PADDING * group[0].sequence.length):
                yield group
                group = []
            group.append(row)
        if group:
            yield group
