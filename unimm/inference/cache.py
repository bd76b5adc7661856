"""The key-value cache: one length a row, written where each row stands.

`transformers`' static cache has one length for all rows; here rows of different prompts decode side by side, so every row is
written at its own position, and only the used part of the buffers is read.

Shapes: R rows, H key-value heads, S slots, d head width, T new positions.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class RowCacheLayer(CacheLayerMixin):
    """Keys and values (R, H, S, d) of one layer. `cache` tells where to write and how much to read."""

    is_compileable = False

    def __init__(self, cache: "RowCache") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(rows, heads, self._cache.num_slots, width)
        self.values = value_states.new_zeros(rows, heads, self._cache.num_slots, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Write (R, H, T, d) at the cache's slots; return what may be looked at, (R, H, used, d)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        slots_RT = self._cache.slots
        rows_R1 = torch.arange(len(slots_RT), device=slots_RT.device)[:, None]
        # Advanced indices around a slice put the indexed axes first: (R, T, H, d).
        self.keys[rows_R1, :, slots_RT] = key_states.transpose(1, 2)
        self.values[rows_R1, :, slots_RT] = value_states.transpose(1, 2)
        used = self._cache.used
        return self.keys[:, :, :used], self.values[:, :, :used]

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only the given rows, in that order."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.used, 0

    def get_seq_length(self) -> int:
        return self._cache.used - self._cache.slots.shape[1]

    def get_max_length(self) -> int:
        return self._cache.num_slots

    def get_max_cache_shape(self) -> int:
        """The same under its name in older releases."""
        return self._cache.num_slots


class RowCache(Cache):
    """One `RowCacheLayer` a layer of the trunk, all told the same slots.

    num_slots: S, positions that a row can hold. slots: (R, T) where the next forward writes. used: how many slots it reads.
    """

    def __init__(self, num_layers: int, num_slots: int) -> None:
        self.num_slots = num_slots
        self.slots = torch.zeros(1, 1, dtype=torch.long)
        self.used = 0
        super().__init__(layers=[RowCacheLayer(self) for _ in range(num_layers)])

    def prepare(self, slots_RT: torch.Tensor, used: int) -> None:
        """Say where the next forward writes and how much it reads."""
        if used > self.num_slots:
            raise ValueError(f"A cache of {self.num_slots} positions cannot hold {used}.")
        self.slots, self.used = slots_RT, used

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only the given rows of every layer."""
        for layer in self.layers:
            assert isinstance(layer, RowCacheLayer)
            layer.keep(rows)
