"""The rows that are being decoded: they move together, and leave and join between steps.

A row is a request's, or its null prompt's while guidance asks for it. Those that are decoded are the first rows of the cache;
behind them lie newcomers that are being prefilled. On a GPU a step is launched before the ids of the one before it are read,
wherever nobody can leave or join between them.
"""

from dataclasses import dataclass
from typing import Any

import torch

from unimm.inference.decode.kv_cache import RowCache
from unimm.inference.decode.prefill import Prefill
from unimm.inference.decode.request import Job, Row
from unimm.inference.decode.step import DecodeStep, PendingTokens
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.models.unified import UnifiedModel


@dataclass(frozen=True)
class ComputeConfig:
    """How a model is computed, as `Decoder` has it; rows and positions are what a deterministic step always computes.

    max_cache_bytes: of keys and values; None: as much as the device has.
    """

    weights: str | None
    is_deterministic: bool
    max_rows: int
    max_positions: int
    prefill_positions: int
    max_cache_bytes: int | None = None


class RunningBatch:
    """Rows on their way, and everything that they are computed with.

    lags: whether a step may be launched before the one before it is read.
    prefilled_positions, decoded_rows, decoded_steps: what was done.
    """

    def __init__(self, model: UnifiedModel, pad_id: int, arithmetic: ComputeConfig) -> None:
        self.model, self.pad_id, self.arithmetic = model, pad_id, arithmetic
        self.lags = self._is_cuda
        self.prefilled_positions = self.decoded_rows = self.decoded_steps = 0
        self._fast: DecodeModel | None = None
        self.reset()
        if arithmetic.is_deterministic:
            self.check_room(arithmetic.max_rows, arithmetic.max_positions)

    def reset(self) -> None:
        """Forget all rows."""
        self.rows: list[Row] = []
        self.entering: Prefill | None = None
        self._in_flight: PendingTokens | None = None
        self._step: DecodeStep | None = None
        self.returned: list[Job] = []
        self._cache = self._new_cache()
        self._is_arranged = False

    @property
    def jobs(self) -> list[Job]:
        """Requests that have rows, once each."""
        rows = self.rows + (self.entering.rows if self.entering is not None else [])
        return list({row.job.ticket: row.job for row in rows}.values())

    @property
    def is_current(self) -> bool:
        """Whether the model's weights are still those that it computes with."""
        return self._fast is None or self._fast.is_current()

    def renew(self) -> None:
        """Read the model's weights again. Rows go on with the new ones."""
        self.land()
        self._fast = self._step = None  # old copies go before new ones are made

    def step(self, somebody_waits: bool) -> bool:
        """Every row moves by one position, and every request gets its next id; whether others may join now."""
        if self._in_flight is not None and (somebody_waits or not self._may_lag()):
            self.land()
            self.settle()
        if self.rows:
            launched = self._launch()
            if self._may_lag() and not somebody_waits:
                launched, self._in_flight = self._in_flight, launched
            if launched is not None:
                self._accept(launched)
            self.decoded_steps += 1
        if self._in_flight is None:
            self.settle()
        return self._in_flight is None

    def begin(self, rows: list[Row]) -> None:
        """Newcomers are prefilled from now on, a share at every `enter`."""
        self.entering = self._prefill(rows)
        self._is_arranged = False  # padding keeps out of their way

    def enter(self) -> None:
        """The next share of a prefill; when it is done its rows join, with their first ids.

        Where it fails, who is to blame is not known: requests that came together are `returned`, to come again one by one.
        """
        entering = self.entering
        assert entering is not None
        try:
            hidden_RD = entering.advance()
            if hidden_RD is None:
                return
            chosen = self._stepper().begin(entering.rows, hidden_RD)
        except Exception as error:
            self.entering = None
            jobs = list({row.job.ticket: row.job for row in entering.rows}.values())
            for job in jobs:
                job.enters_alone = True
                if len(jobs) == 1:
                    job.done, job.error = True, error
            self.returned += jobs if len(jobs) > 1 else []
            return
        self._join(entering)
        self._accept(chosen)

    def take_returned(self) -> list[Job]:
        """Requests that have to come again, the oldest first."""
        jobs, self.returned = self.returned, []
        return sorted((job for job in jobs if not job.done), key=lambda job: job.ticket)

    def settle(self) -> None:
        """Rows of the finished leave, and null rows whose guidance is over; null rows whose guidance begins join."""
        if self.entering is not None and all(row.job.done for row in self.entering.rows):
            self.entering = None  # nobody waits for what is left of it
        while self.entering is not None and self._begins_guidance():
            self.enter()  # one after the other: both want the places behind the last row
        if gone := {row for row in self.rows if row.is_over}:
            self._drop(gone)
        if jobs := self._begins_guidance():
            self._join_nulls(jobs)

    def _launch(self) -> PendingTokens:
        step = self._stepper()
        if not self._is_arranged:
            step.arrange(self.rows)
            self._is_arranged = True
        chosen = step.run(max(row.length for row in self.rows) + 1)
        for row in self.rows:
            row.length += 1
        self.decoded_rows += len(self.rows)
        return chosen

    def _may_lag(self) -> bool:
        """Whether the next step is the same, whatever this one chooses: nobody is done or knows its next id."""
        if not self.lags or self.entering is not None:
            return False
        return all(not row.job.done and not row.job.is_near_a_turn for row in self.rows)

    def land(self) -> None:
        """Read the step that is under way."""
        chosen, self._in_flight = self._in_flight, None
        if chosen is not None:
            self._accept(chosen)

    def _accept(self, chosen: PendingTokens) -> None:
        for job, token, logprob in chosen.read():
            if not job.done and job.accept(token, logprob) != token:
                self._is_arranged = False  # an element that was given is read next, not the one that was chosen

    def _begins_guidance(self) -> list[Job]:
        """Requests that are guided from now on and have no null row yet."""
        guided = {row.job.ticket for row in self.rows if row.is_null}
        return [row.job for row in self.rows if row.job.begins_guidance and row.job.ticket not in guided]

    def _drop(self, gone: set[Row]) -> None:
        """These rows go, and the last rows take their places."""
        rows, place = self.rows, 0
        while place < len(rows):
            if rows[place] not in gone:
                place += 1
            elif rows[-1] in gone:
                rows.pop()
            else:
                self._cache.copy(len(rows) - 1, place, rows[-1].length)
                rows[place] = rows.pop()
        self._is_arranged = False

    @torch.inference_mode()
    def release(self) -> None:
        """Let the cache's memory go, where nobody is in it. Else it stays: captured steps know it by its place, and on a CPU
        new pages take longer than what is done with them."""
        if all(job.done for job in self.jobs):
            self.land()
            self.settle()  # a step may be under way still that nobody waits for
            self._cache, self._step = self._new_cache(), None

    def _join(self, entered: Prefill) -> None:
        """Rows that are prefilled take their places beside the others."""
        for index, row in enumerate(entered.rows):
            if entered.begin + index != len(self.rows):
                self._cache.copy(entered.begin + index, len(self.rows), row.length)
            self.rows.append(row)
        self.prefilled_positions += entered.num_positions
        self.entering = None
        self._is_arranged = False

    def _join_nulls(self, jobs: list[Job]) -> None:
        """Null rows for guidance that begins later than its request: prompt and what was filled at once."""
        rows = []
        for job in jobs:
            known = job.request.sequence.fill(job.filled[:-1]).unconditioned(self.pad_id)
            rows.append(Row(job, known, is_null=True))
        prefill = self._prefill(rows)
        prefill.finish()
        self._join(prefill)

    def _prefill(self, rows: list[Row]) -> Prefill:
        arithmetic = self.arithmetic
        return Prefill(
            self.model, self._cache, rows, len(self.rows), arithmetic.prefill_positions, alone=arithmetic.is_deterministic
        )

    def _stepper(self) -> DecodeStep:
        if self._fast is None:
            # Outside of inference mode: on a GPU joint weights become the model's own, which may be learned on.
            with torch.inference_mode(False), torch.no_grad():
                self._fast = DecodeModel(self.model, self.arithmetic.weights)
        if self._step is None:
            fixed = (None, None)
            if self.arithmetic.is_deterministic:
                fixed = self.arithmetic.max_rows, self.arithmetic.max_positions
            self._step = DecodeStep(self._fast, self._cache, *fixed)
            self._is_arranged = False
        return self._step

    def _new_cache(self) -> RowCache:
        return RowCache(len(self.model.trunk.layers), self.arithmetic.max_rows)

    def check_room(self, rows: int, slots: int) -> None:
        """ValueError: so many rows of so many slots would be too large for an empty cache."""
        most = self.arithmetic.max_cache_bytes
        if most is not None and (needed := self._num_bytes(*self._new_cache().reserved(*self._room(rows, slots)))) > most:
            takes = f"takes {needed:,} bytes of keys and values, but the engine has max_cache_bytes={most:,}"
            if self.arithmetic.is_deterministic:
                raise ValueError(f"A deterministic step {takes}: give it more, or fewer max_rows and max_positions.")
            raise ValueError(f"The request {takes}: shorten it, or give the engine more.")

    def has_room(self, rows: int, slots: int) -> bool:
        """Whether the cache may hold so many rows of so many slots, and what it holds."""
        most = self.arithmetic.max_cache_bytes
        return most is None or self._num_bytes(*self._cache.reserved(*self._room(rows, slots), ahead=False)) <= most

    def make_room(self, rows: int, slots: int) -> None:
        """Reserve so many rows of so many slots, and more for those who follow where there is room for that, too."""
        rows, slots = self._room(rows, slots)
        most = self.arithmetic.max_cache_bytes
        ahead = most is None or self._num_bytes(*self._cache.reserved(rows, slots)) <= most
        self._cache.reserve(rows, slots, ahead)

    def _room(self, rows: int, slots: int) -> tuple[int, int]:
        """Rows and slots of a step over so many: steps round up, or are always of one size."""
        if self.arithmetic.is_deterministic:
            return self.arithmetic.max_rows, self.arithmetic.max_positions
        return self._stepper().room(rows, slots)

    def _num_bytes(self, rows: int, slots: int) -> int:
        """Of keys and values."""
        config: Any = self.model.trunk.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = 4 if next(self.model.parameters()).device.type == "cpu" else next(self.model.parameters()).element_size()
        return 2 * rows * slots * config.num_hidden_layers * heads * head_dim * size

    @property
    def num_cache_bytes(self) -> int:
        """Of keys and values."""
        return self._cache.num_bytes

    @property
    def _is_cuda(self) -> bool:
        return next(self.model.parameters()).is_cuda
