"""The key-value cache of rows in blocks (PagedAttention, arXiv 2309.06180): each row has as many blocks of slots as its own
request takes, from one pool, so one long conversation widens no other row.

A table on the device says which blocks a row has. Attention that reads through it (`triton_layers`) reads each row as far as it
goes; the table stays at its place while rows come and go, so captured steps stay, too. `transformers`' attention, which prefill
uses, gets keys side by side, gathered. Blocks are given when a row comes, for all that its request may fill in, so no request
ever waits in its middle.

The pool is made once, by the first write, of as many blocks as were reserved by then (`CacheMemory` plans how many), for all
layers or for none. It neither grows nor shrinks: what is captured stays valid, and no row is ever copied to a larger pool.
Where there is no memory for it, the cache is as it was before blocks were reserved, and the next request may reserve others.

Block 0 is no row's: there goes what is padding. So do the last slots of every row in the table, which are never given: padding
of captured steps has its positions there.

Shapes: R rows, H key-value heads, N blocks, S slots of a block (`BUCKET`), T new positions, n positions, C blocks that a row of
the table has at most, d head width.
"""

import torch

from unimm.inference.decode.kv_cache import BUCKET, RowCache, RowCacheLayer, grown

SLOTS_AHEAD = 128
"""The table's rows are wide enough for steps whose slots are rounded up to a multiple of this."""


class PagedLayer(RowCacheLayer):
    """Keys and values (N, H, S, d) of one layer: a pool of blocks for all rows."""

    def __init__(self, cache: "PagedCache") -> None:
        super().__init__(cache)
        self._pages = cache

    @property
    def table(self) -> torch.Tensor:
        """Which blocks the cache's rows have, (rows, C)."""
        return self._pages.table

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys, self.values = (grown(one, self._pages.num_blocks, BUCKET) for one in (self.keys, self.values))

    def forget(self) -> None:
        """Have no pool again."""
        self.keys = self.values = None
        self.is_initialized = False

    def write(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (R, H, T, d) at the cache's slots; returns what there is to attend to, (R, H, used, d), gathered."""
        self._put(key_states, value_states)
        return self._gathered()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """`write` for `transformers`, whose attention needs keys in the dtype of its queries."""
        self._put(key_states, value_states)
        if self._pages.used == key_states.shape[2]:
            return key_states, value_states  # the first positions of their rows: there is nothing else to attend to
        keys, values = self._gathered()
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def grow(self) -> None:
        """A pool stays as it was made."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another."""
        assert self.keys is not None and self.values is not None
        count = -(-length // BUCKET)
        sources, targets = self.table[source, :count], self.table[target, :count]
        for buffer in (self.keys, self.values):
            buffer[targets] = buffer[sources]

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """(2, H, n, d): keys and values of a row at these positions."""
        assert self.keys is not None and self.values is not None
        blocks_n, slots_n = self._pages.where(row, start, stop)
        return torch.stack([buffer[blocks_n, :, slots_n].transpose(0, 1) for buffer in (self.keys, self.values)])

    def restore(self, row: int, start: int, states_2Hnd: torch.Tensor) -> None:
        """Write what was read of another row."""
        self._make_ready(*states_2Hnd[:, None])
        blocks_n, slots_n = self._pages.where(row, start, start + states_2Hnd.shape[2])
        for buffer, states_Hnd in zip((self.keys, self.values), states_2Hnd, strict=True):
            assert buffer is not None
            buffer[blocks_n, :, slots_n] = states_Hnd.transpose(0, 1)

    def _make_ready(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if not self.is_initialized:
            self._pages.make_pools(key_states, value_states)

    def _put(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._make_ready(key_states, value_states)
        blocks_RT, slots_RT = self._pages.places
        for buffer, states_RHTd in ((self.keys, key_states), (self.values, value_states)):
            assert buffer is not None
            # Advanced indices around a slice put the indexed axes first: (R, T, H, d).
            buffer[blocks_RT, :, slots_RT] = states_RHTd.transpose(1, 2).to(self.dtype)

    def _gathered(self) -> tuple[torch.Tensor, torch.Tensor]:
        pages = self._pages
        table_RC = self.table[pages.rows, : -(-pages.used // BUCKET)]
        keys, values = (
            buffer[table_RC].transpose(1, 2).flatten(2, 3)[:, :, : pages.used]  # (R, C, H, S, d) before
            for buffer in (self.keys, self.values)
            if buffer is not None
        )
        return keys, values


class PagedCache(RowCache):
    """One `PagedLayer` for each layer of the trunk, all with the same table.

    table: which block each part of a row's slots is in, (rows, C) long, on the device. 0: in none.
    num_blocks: that are reserved, in the pool of each layer, block 0 among them. is_planned: whether any are.

    Nothing is on the device before rows are reserved, so a new cache can be made also where a step has left no memory.

    Args:
        num_rows, num_positions: that there may be at once, and of one row: what the table is made for. Where there are more it
            grows, and captured steps are recorded again.
    """

    def __init__(self, num_layers: int, num_rows: int, num_positions: int, device: torch.device) -> None:
        super().__init__(num_layers)
        self.table = torch.zeros(0, 0, dtype=torch.long, device=device)
        self._least_rows, self._least_positions = num_rows, num_positions
        self.num_blocks = 1
        self._blocks: dict[int, list[int]] = {}
        self._unused: list[int] = []
        self._places: tuple[torch.Tensor, torch.Tensor] | None = None

    def _new_layer(self) -> PagedLayer:
        return PagedLayer(self)

    # -- the next forward ---------------------------------------------------------------------------------------------

    def prepare(self, rows: slice, slots_RT: torch.Tensor, used: int, row_numbers: torch.Tensor | None = None) -> None:
        """Set which rows the next forward is for, where it writes and how much it reads."""
        super().prepare(rows, slots_RT, used, row_numbers)
        self._places = None

    @property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The blocks, and slots of these, that the next forward writes, (R, T) each."""
        if self._places is None:
            self._places = self.table[self.rows][self.row_numbers, self.slots // BUCKET], self.slots % BUCKET
        return self._places

    def where(self, row: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The blocks, and slots of these, of positions of a row, (n,) each."""
        positions_n = torch.arange(start, stop, device=self.table.device)
        return self.table[row, positions_n // BUCKET], positions_n % BUCKET

    # -- rows that come and go ----------------------------------------------------------------------------------------

    def reserve(self, num_rows: int, num_slots: int, ahead: bool = True) -> None:
        """Let the table have this number of rows of slots; blocks are reserved by `reserve_blocks`."""
        num_slots = max(num_slots, self._least_positions)
        rows = max(num_rows, self._least_rows, self.table.shape[0])
        blocks = max(-(-num_slots // SLOTS_AHEAD) * SLOTS_AHEAD // BUCKET + 1, self.table.shape[1])
        if (rows, blocks) != self.table.shape:
            self.table = self.table.new_zeros(rows, blocks)
            for place in self._blocks:
                self._write_table(place)
            self.num_rows, self.num_slots = rows, blocks * BUCKET
            self.generation += 1

    @property
    def is_planned(self) -> bool:
        return self.num_blocks > 1

    def reserve_blocks(self, num_blocks: int) -> None:
        """Let the pools have as many blocks or more; before they are made."""
        assert num_blocks <= self.num_blocks or not self._is_made, f"a pool of {self.num_blocks} blocks lacks some"
        self._unused = [*range(num_blocks - 1, self.num_blocks - 1, -1), *self._unused]
        self.num_blocks = max(num_blocks, self.num_blocks)

    @property
    def _is_made(self) -> bool:
        return any(pool.is_initialized for pool in self._pools)

    @property
    def _pools(self) -> list[PagedLayer]:
        return [layer for layer in self.layers if isinstance(layer, PagedLayer)]

    def make_pools(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the pools of all layers, for keys and values (R, H, T, d) like these.

        torch.OutOfMemoryError: there is no memory for all of them. Then there is none of them, no row has blocks, and none are
        reserved.
        """
        try:
            for pool in self._pools:
                pool.lazy_initialization(key_states, value_states)
        except (RuntimeError, MemoryError) as error:
            for pool in self._pools:
                pool.forget()
            num_blocks, self.num_blocks, self._blocks, self._unused = self.num_blocks, 1, {}, []
            said = f"There is no memory for the {num_blocks:,} blocks of {BUCKET} positions that keys and values were to have"
            raise torch.OutOfMemoryError(f"{said}: give the engine a smaller max_cache_bytes, or fewer max_rows.") from error
        self.generation += 1

    def reserve_rows(self, begin: int, slots: list[int]) -> None:
        """Give blocks to rows of these numbers of slots, at places from `begin` on."""
        self.reserve(begin + len(slots), max(slots, default=0))
        for place, count in enumerate(slots, start=begin):
            self._take_back(place)
            needed = -(-count // BUCKET)
            if len(self._unused) < needed:
                self.reserve_blocks(self.num_blocks + needed - len(self._unused))
            self._blocks[place] = [self._unused.pop() for _ in range(needed)]
            self._write_table(place)

    def move(self, source: int, target: int, length: int) -> None:
        """A row goes to another place, with its blocks."""
        self._take_back(target)
        self._blocks[target] = self._blocks.pop(source)
        self.table[target] = self.table[source]

    def gather(self, sources: list[int], length: int) -> None:
        """The first rows become these, in this order, as far as `length` positions. No row becomes two."""
        kept = [self._blocks.pop(source) for source in sources]
        self.free(0, self.table.shape[0])
        for place, blocks in enumerate(kept):
            self._blocks[place] = blocks
            self._write_table(place)

    def read_lengths(self, lengths: list[int], num_rows: int, num_slots: int) -> list[int]:
        """Positions of each row that attention of a step reads: its own."""
        return lengths

    def free(self, begin: int, stop: int) -> None:
        """Places from `begin` to `stop` hold no rows any more: others may have their blocks."""
        for place in range(begin, stop):
            self._take_back(place)

    def _take_back(self, place: int) -> None:
        self._unused += self._blocks.pop(place, [])

    def _write_table(self, place: int) -> None:
        own = self._blocks[place]
        self.table[place] = torch.tensor(own + [0] * (self.table.shape[1] - len(own)), device=self.table.device)


def num_blocks_for(slots: list[int]) -> int:
    """Blocks of a pool for rows of these numbers of slots: theirs, and the one that is no row's."""
    return 1 + sum(-(-count // BUCKET) for count in slots)
