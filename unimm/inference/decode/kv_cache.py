"""The key-value cache: one length a row, rows that come and go.

`transformers`' static cache has one length for all rows; here rows of different prompts decode side by side, so every row is
written at its own position, and only the used part of the buffers is read. The rows in use are always the first ones: one
that leaves is filled by the last. Buffers grow as rows and lengths ask for it.

On a CPU keys and values are kept in float32 whatever the model computes in: products of single queries are twice as fast there
as in bfloat16, for twice the bytes (recipes/LOG.md).

Shapes: R rows, H key-value heads, S slots, d head width, T new positions.
"""

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from unimm.models.unified import UnifiedModel

BUCKET = 64
"""Slots by which buffers grow at least."""


class RowCacheLayer(CacheLayerMixin):
    """Keys and values (R, H, S, d) of one layer. `cache` says where to write and how much to read."""

    is_compileable = False

    def __init__(self, cache: "RowCache") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        heads = key_states.shape[1]
        self.device = key_states.device
        self.dtype = torch.float32 if self.device.type == "cpu" else key_states.dtype  # `grown` counts on it
        empty = {"dtype": self.dtype, "device": self.device}
        self.keys = torch.zeros(0, heads, 0, key_states.shape[-1], **empty)
        self.values = torch.zeros(0, heads, 0, value_states.shape[-1], **empty)
        self.is_initialized = True

    def write(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (R, H, T, d) at the cache's slots; returns what there is to attend to, (R, H, used, d), in its dtype."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.grow()
        assert self.keys is not None and self.values is not None
        rows, slots_RT, used = self._cache.rows, self._cache.slots, self._cache.used
        keys, values = self.keys[rows], self.values[rows]
        rows_R1 = self._cache.row_numbers
        # Advanced indices around a slice put the indexed axes first: (R, T, H, d).
        keys[rows_R1, :, slots_RT] = key_states.transpose(1, 2).to(self.dtype)
        values[rows_R1, :, slots_RT] = value_states.transpose(1, 2).to(self.dtype)
        return keys[:, :, :used], values[:, :, :used]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """`write` for `transformers`, whose attention needs keys in the dtype of its queries."""
        keys, values = self.write(key_states, value_states)
        if keys.shape[2] == key_states.shape[2]:
            return key_states, value_states  # the first positions of their rows: there is nothing else to attend to
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another."""
        assert self.keys is not None and self.values is not None
        for buffer in (self.keys, self.values):
            buffer[target, :, :length] = buffer[source, :, :length]

    def gather(self, sources: list[int], length: int) -> None:
        """The first rows become these, in this order, as far as `length` positions."""
        assert self.keys is not None and self.values is not None
        for buffer in (self.keys, self.values):
            buffer[: len(sources), :, :length] = buffer[sources, :, :length]

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """(2, H, n, d): keys and values of a row at these positions."""
        assert self.keys is not None and self.values is not None
        return torch.stack([self.keys[row, :, start:stop], self.values[row, :, start:stop]])

    def restore(self, row: int, start: int, states_2Hnd: torch.Tensor) -> None:
        """Write what was read of another row."""
        if not self.is_initialized:
            self.lazy_initialization(*states_2Hnd[:, None])
        self.grow()
        assert self.keys is not None and self.values is not None
        for buffer, states_Hnd in zip((self.keys, self.values), states_2Hnd, strict=True):
            buffer[row, :, start : start + states_Hnd.shape[1]] = states_Hnd

    @property
    def num_bytes(self) -> int:
        """Of both buffers."""
        return sum(buffer.nbytes for buffer in (self.keys, self.values) if buffer is not None)

    @property
    def bytes_a_position(self) -> int:
        """Keys and values of one position of a row."""
        return sum(one.shape[1] * one.shape[3] * one.element_size() for one in (self.keys, self.values) if one is not None)

    def grow(self) -> None:
        """Let the buffers hold what the cache has reserved; if that allocates new ones, the cache is of another generation."""
        assert self.keys is not None and self.values is not None
        rows, slots = self._cache.num_rows, self._cache.num_slots
        if self.keys.shape[0] < rows or self.keys.shape[2] < slots:
            self.keys, self.values = grown(self.keys, rows, slots), grown(self.values, rows, slots)
            self._cache.generation += 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.used, 0

    def get_seq_length(self) -> int:
        return self._cache.used - self._cache.slots.shape[1]

    def get_max_length(self) -> int:
        return self._cache.num_slots

    def get_max_cache_shape(self) -> int:
        """The same under its name in older releases."""
        return self._cache.num_slots


def grown(buffer: torch.Tensor, rows: int, slots: int) -> torch.Tensor:
    """A copy of a buffer (rows, H, slots, d) with at least this number of both, zeros behind what was there."""
    rows, slots = max(rows, buffer.shape[0]), max(slots, buffer.shape[2])
    shape = (rows, buffer.shape[1], slots, buffer.shape[3])
    # Zeros, for what is masked must be finite. On a CPU numpy takes them from the system untouched, page by page when they are
    # used; PyTorch would write them all at once, a second or two for a large batch.
    larger = torch.from_numpy(np.zeros(shape, np.float32)) if buffer.device.type == "cpu" else buffer.new_zeros(shape)
    larger[: buffer.shape[0], :, : buffer.shape[2]] = buffer
    return larger


def cache_bytes(model: UnifiedModel, rows: int, slots: int) -> int:
    """Of keys and values of these numbers of rows and slots."""
    config, weight = model.trunk.config, next(model.parameters())
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = 4 if weight.device.type == "cpu" else weight.element_size()
    return 2 * rows * slots * config.num_hidden_layers * heads * head_dim * size


class RowCache(Cache):
    """One `RowCacheLayer` for each layer of the trunk, all with the same rows and slots.

    rows: those of the next forward. row_numbers (R, 1), 0 and up, and slots (R, T): where it writes, or for each of P
        positions (P, 1) both. used: how many it reads.
    num_rows, num_slots: what the buffers hold at least. most_rows: beyond, they do not grow ahead of what is needed.
    generation: another number whenever buffers have another address, which is how captured steps know them.
    """

    def __init__(self, num_layers: int, most_rows: int = 2**31) -> None:
        self.most_rows = most_rows
        self.num_rows = self.num_slots = self.used = self.generation = 0
        self.rows = slice(0, 0)
        self.slots = self.row_numbers = torch.zeros(1, 1, dtype=torch.long)
        super().__init__(layers=[self._new_layer() for _ in range(num_layers)])

    def _new_layer(self) -> RowCacheLayer:
        return RowCacheLayer(self)

    def prepare(self, rows: slice, slots_RT: torch.Tensor, used: int, row_numbers: torch.Tensor | None = None) -> None:
        """Set which rows the next forward is for, where it writes and how much it reads. row_numbers: none are 0, 1, 2, ..."""
        self.rows, self.slots, self.used = rows, slots_RT, used
        numbers = torch.arange(len(slots_RT), device=slots_RT.device)[:, None]
        self.row_numbers = numbers if row_numbers is None else row_numbers
        self.reserve(rows.stop, used)

    def reserve(self, num_rows: int, num_slots: int, ahead: bool = True) -> None:
        """Let the buffers hold this number of rows of slots, at their next use. ahead: and more rows for later requests."""
        self.num_rows, self.num_slots = self.reserved(num_rows, num_slots, ahead)

    def reserved(self, num_rows: int, num_slots: int, ahead: bool = True) -> tuple[int, int]:
        """The rows and slots that it would hold then."""
        more = min(2 * self.num_rows, self.most_rows) if ahead and num_rows > self.num_rows else 0
        rows = max(num_rows, self.num_rows, more)
        return rows, max(self.num_slots, -(-num_slots // BUCKET) * BUCKET)

    def grow(self) -> None:
        """Let the buffers grow now rather than at their next use."""
        for layer in self._row_layers:
            if layer.is_initialized:
                layer.grow()

    def reserve_rows(self, begin: int, slots: list[int]) -> None:
        """Let the buffers hold rows of these numbers of slots at places from `begin` on."""
        self.reserve(begin + len(slots), max(slots))

    def move(self, source: int, target: int, length: int) -> None:
        """A row of `length` positions goes to another place."""
        self.copy(source, target, length)

    def read_lengths(self, lengths: list[int], num_rows: int, num_slots: int) -> list[int]:
        """Positions of each row that attention of a step of this size reads, where rows have these lengths: all of a
        rectangle."""
        return [num_slots] * num_rows

    def free(self, begin: int, stop: int) -> None:
        """Places from `begin` to `stop` hold no rows any more; buffers stay as large as they are."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another."""
        for layer in self._row_layers:
            layer.copy(source, target, length)

    def gather(self, sources: list[int], length: int) -> None:
        """Let the first rows be these, in this order, as far as `length` positions."""
        for layer in self._row_layers:
            layer.gather(sources, length)

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """(2, L, H, n, d): keys and values of a row at these positions, in all L layers."""
        return torch.stack([layer.read(row, start, stop) for layer in self._row_layers], dim=1)

    def restore(self, row: int, start: int, states: torch.Tensor) -> None:
        """Write what `read` gave of another row, from position `start` on."""
        for layer, states_2Hnd in zip(self._row_layers, states.unbind(1), strict=True):
            layer.restore(row, start, states_2Hnd)

    @property
    def bytes_a_position(self) -> int:
        """Keys and values of one position of a row, once something was written."""
        return sum(layer.bytes_a_position for layer in self._row_layers)

    @property
    def _row_layers(self) -> list[RowCacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, RowCacheLayer)]

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(layer.num_bytes for layer in self._row_layers)
