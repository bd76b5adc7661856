"""The rows that are being decoded: they advance together, and leave and join between steps.

A row is a request's, or another branch's of its guidance while it is guided. Rows that are decoded are the first rows of the
cache; behind them lie admitted requests that are being prefilled. On a GPU a step is launched before the ids of the one before
it are read, wherever no row can leave or join between them.
"""

import time
from collections.abc import Iterator

import torch

from unimm.inference.decode.cache_memory import CacheMemory
from unimm.inference.decode.compute_config import ComputeConfig
from unimm.inference.decode.prefill import Prefill
from unimm.inference.decode.prefix_cache import PrefixCache
from unimm.inference.decode.request import WINDOWED, Job, Row
from unimm.inference.decode.step import DecodeStep, PendingTokens
from unimm.inference.decode.windows import WindowChoice, WindowTotals
from unimm.inference.kernels.decode_kernels import kernels_of
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.models.unified import UnifiedModel
from unimm.sequence import BLANK


class RunningBatch:
    """The rows that are decoded or prefilled, and everything that they are computed with.

    reads_one_step_late: whether a step may be launched before the one before it is read.
    prefilled_positions, decoded_rows, decoded_steps, windows: totals. window: codes of a drawing in the last step, at most.
    """

    def __init__(self, model: UnifiedModel, pad_id: int, config: ComputeConfig, prefixes: PrefixCache | None = None) -> None:
        self.model, self.pad_id, self.config, self.prefixes = model, pad_id, config, prefixes
        self.kernels = kernels_of(next(model.parameters()).device, config.kernels)
        self.reads_one_step_late = self.kernels.is_captured
        self.prefilled_positions = self.decoded_rows = self.decoded_steps = 0
        self.windows, self._choice = WindowTotals(), WindowChoice() if self._may_choose_windows else None
        self._decode_model: DecodeModel | None = None
        self._memory = CacheMemory(model, config, self.kernels, self._rounded)
        self.reset()
        if config.is_deterministic and not self.kernels.reads_blocks:
            self.check_capacity(config.max_rows, config.max_positions)

    def reset(self) -> None:
        """Forget all rows."""
        self.rows: list[Row] = []
        self.prefill: Prefill | None = None
        self._pending: PendingTokens | None = None
        self._step: DecodeStep | None = None
        self._retries: list[Job] = []
        self._cache = self._memory.new()
        self._is_up_to_date = False
        self._widths: list[int] = []
        self.window = 1

    @property
    def jobs(self) -> list[Job]:
        """Requests that have rows, once each."""
        rows = self.rows + (self.prefill.rows if self.prefill is not None else [])
        return list({row.job.ticket: row.job for row in rows}.values())

    @property
    def is_current(self) -> bool:
        """Whether the model's weights are still those that it computes with."""
        return self._decode_model is None or self._decode_model.is_current()

    def reload_weights(self) -> None:
        """Read the model's weights again. Rows go on with the new ones. Where they are read in place, captured steps stay."""
        self.read_pending_step()
        if not (self._decode_model and self._decode_model.reads_in_place and self.is_current):
            self._decode_model = self._step = None  # old copies go before new ones are made

    def step(self, has_waiting: bool) -> bool:
        """Every row advances by one position, or by as many as were guessed right, and every request gets its next ids; returns
        whether rows may join now.

        has_waiting: whether requests are in the queue.
        """
        if self._pending is not None and (has_waiting or not self._may_read_late()):
            self.read_pending_step()
            self.retire_rows()
        if self.rows:
            started = time.thread_time()
            launched = self._launch()
            if self._may_read_late() and not has_waiting:
                launched, self._pending = self._pending, launched
            if launched is not None:
                self._accept_step(launched)
            self.decoded_steps += 1
            self._note_seconds(time.thread_time() - started)
        if self._pending is None:
            self.retire_rows()
        return self._pending is None

    def start_prefill(self, rows: list[Row]) -> None:
        """Admit rows: they are prefilled from now on, a part at every `advance_prefill`."""
        self.prefill = self._make_prefill(rows)
        self._is_up_to_date = False  # the padding of a step must not overwrite them

    def advance_prefill(self) -> None:
        """The next part of a prefill; when it is done its rows join, with their first ids."""
        prefill = self.prefill
        assert prefill is not None
        try:
            hidden_RD = prefill.advance()
            if hidden_RD is None:
                return
            chosen = self.decode_step().choose_first(prefill.rows, hidden_RD)
        except Exception as error:
            self._drop_prefill(prefill)
            self._retries += prefill.fail(error)
            return
        self._join(prefill)
        for _ in self._accept(chosen):
            pass

    def take_retries(self) -> list[Job]:
        """Requests whose prefill has to be tried again, the oldest first."""
        jobs, self._retries = self._retries, []
        return sorted((job for job in jobs if not job.done), key=lambda job: job.ticket)

    def retire_rows(self) -> None:
        """Rows of finished requests leave, and branches whose guidance is over; branches whose guidance begins join."""
        if self.prefill is not None and all(row.job.done for row in self.prefill.rows):
            self._drop_prefill(self.prefill)  # all of its requests were aborted
        while self.prefill is not None and self._starting_guidance():
            self.advance_prefill()  # one after the other: both need the places behind the last row
        if gone := {row for row in self.rows if row.is_over}:
            if self.prefixes is not None and self.config.weights is None:
                self.prefixes.insert_answers(self.rows, gone, self._cache)
            self._drop(gone)
        if jobs := self._starting_guidance():
            self._join_branches(jobs)

    def _launch(self) -> PendingTokens:
        step, self.window = self.decode_step(), self._next_window()
        widths = [row.job.width(self.window) if self._may_have_window(row) else 1 for row in self.rows]
        for row, width in zip(self.rows, widths, strict=True):
            row.job.guess(width - 1)
        if not self._is_up_to_date or widths != self._widths:
            step.set_rows(self.rows, widths)
            self._is_up_to_date, self._widths = True, widths
        elif self._has_windows:
            step.refresh()
        chosen = step.run(max(row.length + width for row, width in zip(self.rows, widths, strict=True)))
        if not self._has_windows:
            for row in self.rows:
                row.length += 1
        self.decoded_rows += len(self.rows)
        return chosen

    @property
    def _has_windows(self) -> bool:
        """Whether the step launched last may have moved rows by more than one position; it is read before the next one."""
        return max(self._widths, default=1) > 1

    def _may_have_window(self, row: Row) -> bool:
        """Whether it is a drawing's. Log-probabilities differ in their last bits by window, so where nobody asked for one, a
        drawing that keeps them has one code a step, as a text has one element."""
        request = row.job.request
        has_logprobs = request.logprobs or request.top_logprobs > 0
        return request.blank.kind in WINDOWED and not (self._choice is not None and has_logprobs)

    @property
    def _drawing_rows(self) -> list[Row]:
        return [row for row in self.rows if self._may_have_window(row)]

    def _next_window(self) -> int:
        """Codes of a drawing that the next step computes at most; 1 where there is none."""
        drawing = self._drawing_rows
        if not drawing:
            return 1
        if self._choice is None:
            return self.config.window or 1
        return self._choice.choose(sum(row.branch == 0 for row in drawing), len(drawing), len(self.rows) - len(drawing))

    def _note_seconds(self, seconds: float) -> None:
        """The step that was just launched and read took so long; where many windows were cut short that says nothing."""
        if self._choice is None:
            return
        widths = [width for row, width in zip(self.rows, self._widths, strict=True) if self._may_have_window(row)]
        num_rows, num_positions = len(widths), sum(widths)
        if num_positions > 0.9 * self.window * num_rows:
            self._choice.measured(self.window, num_rows, len(self.rows) - num_rows, seconds)

    @property
    def _may_choose_windows(self) -> bool:
        return self.config.window is None and may_choose_windows(self.model, self.config.is_deterministic)

    def _may_read_late(self) -> bool:
        """Whether the next step is the same, whatever this one chooses: no request ends or has its next id given."""
        if not self.reads_one_step_late or self.prefill is not None:
            return False
        if (self._choice is not None or (self.config.window or 1) > 1) and self._drawing_rows:
            return False
        return all(not row.job.done and not row.job.changes_soon for row in self.rows)

    def read_pending_step(self) -> None:
        """Wait for the step in flight and read its ids."""
        chosen, self._pending = self._pending, None
        if chosen is not None:
            self._accept_step(chosen)

    def _accept(self, chosen: PendingTokens) -> Iterator[tuple[Job, int, int]]:
        """Each request that goes on gets its next ids; gives it with its new positions and how many of them hold."""
        for job, choices in chosen.read():
            if job.done:
                continue
            count = job.accept_window(choices)
            if job.filled[-1] != choices[count - 1].token:
                self._is_up_to_date = False  # an element that was given is read next, not the one that was chosen
            yield job, len(choices), count

    def _accept_step(self, chosen: PendingTokens) -> None:
        counts: dict[Job, int] = {}
        for job, width, count in self._accept(chosen):
            counts[job] = count
            if job.request.blank.kind in WINDOWED:
                begin = len(job.filled) - count
                num_guesses, num_right = (_num_unknown(job, begin, number - 1) for number in (width, count))
                self.windows.add(num_guesses, num_right)
                if self._choice is not None and num_guesses:
                    self._choice.guessed(1 + num_guesses, 1 + num_right)
        if self._has_windows:
            for row in self.rows:
                row.length += counts.get(row.job, 0)

    def _starting_guidance(self) -> list[Job]:
        """Requests that are guided from now on and have no rows of their other branches yet."""
        guided = {row.job.ticket for row in self.rows if row.branch > 0}
        return [row.job for row in self.rows if row.job.starts_guidance and row.job.ticket not in guided]

    def _drop_prefill(self, prefill: Prefill) -> None:
        self.prefill = None
        self._cache.free(prefill.begin, prefill.begin + len(prefill.rows))

    def _drop(self, gone: set[Row]) -> None:
        """These rows leave, and the last rows move to their places."""
        rows, place, num_before = self.rows, 0, len(self.rows)
        while place < len(rows):
            if rows[place] not in gone:
                place += 1
            elif rows[-1] in gone:
                rows.pop()
            else:
                self._cache.move(len(rows) - 1, place, rows[-1].length)
                rows[place] = rows.pop()
        self._cache.free(len(rows), num_before)
        self._is_up_to_date = False

    @torch.inference_mode()
    def release(self) -> None:
        """Free the cache's memory if no request uses it. While one does it stays: captured steps know its address, and on a
        CPU new pages take longer than what is done with them."""
        if all(job.done for job in self.jobs):
            self.read_pending_step()
            self.retire_rows()
            self._cache, self._step = self._memory.new(), None

    def _join(self, prefill: Prefill) -> None:
        """Rows that are prefilled are decoded from now on."""
        for index, row in enumerate(prefill.rows):
            if prefill.begin + index != len(self.rows):
                self._cache.move(prefill.begin + index, len(self.rows), row.length)
            self.rows.append(row)
        self.prefilled_positions += prefill.num_positions
        self.prefill = None
        self._is_up_to_date = False

    def _join_branches(self, jobs: list[Job]) -> None:
        """Rows for guidance that begins later than its request: prompt and what was filled since, prefilled at once."""
        prefill = self._make_prefill([row for job in jobs for row in job.guiding_rows(self.pad_id)])
        prefill.finish()
        self._join(prefill)

    def _make_prefill(self, rows: list[Row]) -> Prefill:
        sizes = len(self.rows), self.config.prefill_positions, self.config.is_deterministic
        return Prefill(self.model, self._cache, rows, *sizes, self.prefixes)

    def decode_step(self) -> DecodeStep:
        """What it makes steps with; made when it is first needed."""
        if self._decode_model is None:
            # Outside of inference mode: on a GPU joint weights become the model's own, which may be trained further.
            with torch.inference_mode(False), torch.no_grad():
                self._decode_model = DecodeModel(self.model, self.config.weights, self.kernels)
            if not self._memory.is_for(self._cache):
                self._cache = self._memory.new()
        if self._step is None:
            config = self.config
            fixed = (config.max_rows, config.max_positions, config.window or 1) if config.is_deterministic else ()
            self._step = DecodeStep(self._decode_model, self._cache, *fixed)
            self._is_up_to_date = False
        return self._step

    def check_capacity(self, rows: int, slots: int) -> None:
        """ValueError: these rows, with these slots each, are too large for an empty cache."""
        self._settled_memory.check(rows, slots)

    def bytes_for(self, slots: list[int]) -> int:
        """Of keys and values, if the cache had reserved rows of these numbers of slots, too."""
        return self._settled_memory.bytes_for(self._cache, slots)

    def fits(self, slots: list[int]) -> bool:
        """Whether the cache has room for rows of these numbers of slots, where it does not grow."""
        return not slots or self._settled_memory.fits(self._cache, slots)

    def rows_that_fit(self, num_rows: int, num_slots: int) -> int:
        """So many rows of these slots, or what halving leaves that memory has room for."""
        return self._settled_memory.rows_that_fit(self._cache, num_rows, num_slots)

    def reserve(self, slots: list[int], num_other_bytes: int = 0) -> None:
        """Let the cache hold rows of these numbers of slots, and more for later requests where memory allows.

        num_other_bytes: of `max_cache_bytes`, what another cache takes.
        """
        self._settled_memory.reserve(self._cache, slots, num_other_bytes)

    @property
    def _settled_memory(self) -> CacheMemory:
        """Once kernels that read blocks were compared with PyTorch's: if they differ, the cache is another."""
        if self.kernels.reads_blocks:
            self.decode_step()
        return self._memory

    def _rounded(self, rows: int, slots: int) -> tuple[int, int]:
        """Rows and slots of a step over these numbers: steps round up, or are always of one size."""
        if self.config.is_deterministic:
            return self.config.max_rows, self.config.max_positions
        return self.decode_step().rounded(rows, slots)

    @property
    def num_cache_bytes(self) -> int:
        """Of keys and values."""
        return self._cache.num_bytes


def may_choose_windows(model: UnifiedModel, is_deterministic: bool) -> bool:
    """Whether windows are chosen by what steps cost: as the device's kernels say, and never where results are to be fixed."""
    first = next(model.parameters())
    return not is_deterministic and kernels_of(first.device).chooses_windows(first.dtype)


def _num_unknown(job: Job, begin: int, count: int) -> int:
    """Of `count` elements of a request, from `begin` on, those that are not known beforehand."""
    return count - sum(element != BLANK for element in job.request.blank.ids[begin : begin + count])
