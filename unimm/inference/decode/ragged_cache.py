"""The key-value cache of rows of any lengths: each row has a buffer as long as its own request, so one long conversation
widens no other row.

Rows come and go without copies: a row that moves to another place takes its buffer along, and one that leaves frees it. Kernels
get the address of each row's buffer (`cpu_decode`). Prefill, which `transformers`' attention does for rows of about one length
together, gets them side by side.

Shapes: R rows, L layers, H key-value heads, S slots of a row, d head width, T new positions.
"""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, CacheLayerMixin

from unimm.inference.decode.kv_cache import BUCKET, RowCache
from unimm.models.unified import UnifiedModel


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values of all rows, as views."""

    is_compileable = False
    is_initialized = True

    def __init__(self, cache: "RaggedCache", number: int) -> None:
        super().__init__()
        self._cache, self._number, self.is_initialized = cache, number, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Buffers are made row by row."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any):
        """Write (R, H, T, d) at the cache's slots; returns what there is to attend to, (R, H, used, d)."""
        cache, found = self._cache, []
        places = range(cache.rows.start, cache.rows.stop)
        for states_RHTd, which in ((key_states, 0), (value_states, 1)):
            rows = []
            for place, states_HTd, slots_T in zip(places, states_RHTd, cache.slots, strict=True):
                row_HSd = cache.states(place)[which, self._number]
                count = int((slots_T < row_HSd.shape[1]).sum())  # what is beyond is padding
                row_HSd.index_copy_(1, slots_T[:count], states_HTd[:, :count].float())
                rows.append(row_HSd[:, : cache.used])
            if key_states.shape[2] < cache.used:
                found.append(rows[0][None] if len(rows) == 1 else torch.stack([_padded(one, cache.used) for one in rows]))
        if not found:
            return key_states, value_states  # the first positions of their rows have all there is
        return tuple(one.to(key_states.dtype) for one in found)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.used, 0

    def get_seq_length(self) -> int:
        return self._cache.used - self._cache.slots.shape[1]

    def get_max_length(self) -> int:
        return self._cache.used

    def get_max_cache_shape(self) -> int:
        """The same under its name in older releases."""
        return self._cache.used


class RaggedCache(Cache):
    """Buffers (2, L, H, S, d) float32 by the places of their rows. For CPUs.

    rows, slots (R, T), used: of the next forward, as `RowCache` has them; the slots of a row rise.
    """

    generation = num_slots = 0
    """Steps over it are not captured, and have no padding."""

    def __init__(self, model: UnifiedModel) -> None:
        config = model.trunk.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self._shape = (2, config.num_hidden_layers, heads, head_dim)
        self._buffers: dict[int, torch.Tensor] = {}
        self.rows, self.used, self.slots = slice(0, 0), 0, torch.zeros(1, 1, dtype=torch.long)
        super().__init__(layers=[RaggedLayer(self, number) for number in range(config.num_hidden_layers)])

    def states(self, place: int) -> torch.Tensor:
        """(2, L, H, S, d): keys and values of the row at a place."""
        return self._buffers[place]

    def addresses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the buffers of the rows of the next forward lie, and their S, (R,) long each."""
        own = [self._buffers[place] for place in range(self.rows.start, self.rows.stop)]
        return torch.tensor([one.data_ptr() for one in own]), torch.tensor([one.shape[3] for one in own])

    def prepare(self, rows: slice, slots_RT: torch.Tensor, used: int, row_numbers: torch.Tensor | None = None) -> None:
        """Set which rows the next forward is for, where it writes and how much it reads."""
        self.rows, self.slots, self.used = rows, slots_RT, used

    def reserve_rows(self, begin: int, slots: list[int]) -> None:
        """Rows of these numbers of slots begin at places from `begin` on."""
        planes, layers, heads, head_dim = self._shape
        for place, count in enumerate(slots, start=begin):
            self._buffers[place] = torch.empty(planes, layers, heads, _rounded(count), head_dim)

    def reserve(self, num_rows: int, num_slots: int, ahead: bool = True) -> None:
        """Nothing is reserved but by row."""

    def grow(self) -> None:
        """Rows never grow: each has as many slots as its request takes at most."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another."""
        self._buffers[target][..., :length, :] = self._buffers[source][..., :length, :]

    def move(self, source: int, target: int, length: int) -> None:
        """A row goes to another place."""
        self._buffers[target] = self._buffers.pop(source)

    def read_lengths(self, lengths: list[int], num_rows: int, num_slots: int) -> list[int]:
        """Positions of each row that attention of a step reads: its own."""
        return lengths

    def free(self, begin: int, stop: int) -> None:
        """Places from `begin` to `stop` hold no rows any more."""
        for place in range(begin, stop):
            self._buffers.pop(place, None)

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """(2, L, H, n, d): keys and values of a row at these positions, in all L layers."""
        return self._buffers[row][..., start:stop, :]

    def restore(self, row: int, start: int, states: torch.Tensor) -> None:
        """Write what `read` gave of another row, from position `start` on."""
        self._buffers[row][..., start : start + states.shape[3], :] = states

    @property
    def bytes_a_position(self) -> int:
        """Keys and values of one position of a row."""
        planes, layers, heads, head_dim = self._shape
        return 4 * planes * layers * heads * head_dim

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def bytes_of(self, slots: list[int]) -> int:
        """Of rows with these numbers of slots."""
        return self.bytes_a_position * sum(_rounded(count) for count in slots)


KeyValueCache: TypeAlias = "RowCache | RaggedCache"


def _rounded(num_slots: int) -> int:
    return -(-num_slots // BUCKET) * BUCKET


def _padded(x_HSd: torch.Tensor, num_slots: int) -> torch.Tensor:
    return F.pad(x_HSd, (0, 0, 0, num_slots - x_HSd.shape[1]))
