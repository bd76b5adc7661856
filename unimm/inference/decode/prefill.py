"""Prefill: the given part of admitted requests goes through the trunk many positions at a time, some of them at every step.

Rows with the same prefix (several images of a prompt, null prompts of one length) are computed once and copied; rows of similar
length go together; long ones go in chunks, so that rows that are being decoded never wait for long.

Shapes: R rows, T positions, D trunk width.
"""

from collections.abc import Generator, Iterator

import torch

from unimm.batch import collate
from unimm.inference.decode.kv_cache import RowCache
from unimm.inference.decode.request import Job, Row
from unimm.models.unified import UnifiedModel

PADDING = 1.3
"""Sequences go together when the longest is at most this many times the shortest."""


class Prefill:
    """Admitted rows on their way into the cache, at places from `begin` on.

    Args:
        rows: each with what it begins with; `length` is set when it is written.
        positions_a_step: computed at most, over all rows, in one `advance`.
        alone: every row goes by itself, for batch invariance.
    """

    def __init__(
        self, model: UnifiedModel, cache: RowCache, rows: list[Row], begin: int, positions_a_step: int, alone: bool = False
    ) -> None:
        self.begin, self.num_positions = begin, 0
        first: dict[tuple, Row] = {}
        for row in rows:
            first.setdefault(row.prefix_key, row)
        owners = sorted(first.values(), key=lambda row: row.sequence.length)
        sharers = [row for row in rows if first[row.prefix_key] is not row]
        self.rows = owners + sharers
        self._model, self._cache, self._positions_a_step, self._alone = model, cache, positions_a_step, alone
        self._num_computed = 0
        self._work = self._run(owners, sharers)

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

    def _run(self, owners: list[Row], sharers: list[Row]) -> Generator[None, None, torch.Tensor]:
        """Yields after every part; returns the hidden states."""
        device = next(self._model.parameters()).device
        self._cache.reserve(self.begin + len(self.rows), max(row.num_slots for row in self.rows))
        hidden = []
        for start, stop in self._together([row.sequence.length for row in owners]):
            if self._num_computed >= self._positions_a_step:
                self._num_computed = 0
                yield
            hidden.append((yield from self._compute(self.begin + start, owners[start:stop], device)))
        place = {row.prefix_key: index for index, row in enumerate(owners)}
        sources = [place[row.prefix_key] for row in sharers]
        for index, (source, row) in enumerate(zip(sources, sharers, strict=True)):
            self._cache.copy(self.begin + source, self.begin + len(owners) + index, row.sequence.length)
        for row in self.rows:
            row.length = row.sequence.length
        hidden_RD = torch.cat(hidden)
        return torch.cat([hidden_RD, hidden_RD[torch.tensor(sources, dtype=torch.long, device=device)]])

    def _compute(self, begin: int, rows: list[Row], device: torch.device) -> Generator[None, None, torch.Tensor]:
        """Rows of similar length, as many positions at a time as a step may prefill -> (R, D)."""
        batch = collate([[row.sequence] for row in rows]).to(device)
        num_rows, num_positions = batch.tokens.shape
        embeddings_RTD, mask = self._model.embed(batch), batch.attention_mask()
        slots_RT = torch.arange(num_positions, device=device).expand(num_rows, -1)
        last_R = torch.tensor([row.sequence.length - 1 for row in rows], device=device)
        hidden_RD = embeddings_RTD.new_zeros(num_rows, self._model.width)
        chunk = max(self._positions_a_step // num_rows, 1)
        for start in range(0, num_positions, chunk):
            if start:
                self._num_computed = 0
                yield
            stop = min(start + chunk, num_positions)
            self._cache.prepare(slice(begin, begin + num_rows), slots_RT[:, start:stop], stop)
            part_RTD = self._model.hidden(
                embeddings_RTD[:, start:stop], mask[:, :, start:stop, :stop], batch.positions[:, start:stop], self._cache
            )
            ends_here = (last_R >= start) & (last_R < stop)
            hidden_RD[ends_here] = part_RTD[ends_here, last_R[ends_here] - start]
            self._num_computed += num_rows * (stop - start)
        self.num_positions += sum(row.sequence.length for row in rows)
        return hidden_RD

    def _together(self, lengths: list[int]) -> Iterator[tuple[int, int]]:
        """Ranges of ascending lengths that are near enough to be padded to their longest."""
        start = 0
        for stop in range(1, len(lengths) + 1):
            if stop == len(lengths) or self._alone or lengths[stop] > PADDING * lengths[start]:
                yield start, stop
                start = stop
