"""Which cache the rows of a decoder have, how many bytes it takes, and how much of it is reserved: what admission counts.

Where kernels read each row over its own length (`RaggedCache` on a CPU, `PagedCache` for kernels with a table), a row takes
what its own request does. Elsewhere (`RowCache`) all rows are as wide as the longest, for PyTorch's attention over a batch
reads a rectangle.

A rectangle and buffers of rows grow with what is asked for, and go when nothing is running. A pool of blocks is planned, as in
vLLM, and made once, when the first request comes:

- of `max_cache_bytes`; where the model also draws by what fills all positions at once, such as a flow, of all but `FLOW_SHARE`
  of them, which those rows have for themselves (`FillPasses` has a cache of its own). So neither waits for the other's to end;
- without that bound, of `POOL_SHARE` of the memory that is free then; the rest is for prefills, flows, images, captured steps;
- never of more blocks than `max_rows` requests of `max_positions` take.

Requests wait for blocks, also without a bound. One that the plan leaves no room for is admitted when nothing else runs, and the
pool is made larger for it, or what its rows need; it is planned anew after the engine has released its memory (`release`), or
where there was no memory for it: then the requests that needed it fail, and nothing is kept.
"""

from collections.abc import Callable

from unimm.inference.decode.compute_config import ComputeConfig
from unimm.inference.decode.kv_cache import BUCKET, RowCache, cache_bytes
from unimm.inference.decode.paged_cache import PagedCache, num_blocks_for
from unimm.inference.decode.ragged_cache import KeyValueCache, RaggedCache
from unimm.inference.kernels.cpu_decode import has_cpu_decode
from unimm.inference.kernels.decode_kernels import DecodeKernels
from unimm.models.unified import UnifiedModel
from unimm.runtime.devices import free_memory

FLOW_SHARE = 0.25
"""Of `max_cache_bytes`: what rows that are filled in all at once have beside a pool of blocks. Such a drawing takes about the
positions of one by codes, for fewer passes."""

POOL_SHARE = 0.5
"""Of the free memory, where `max_cache_bytes` is not given: what a pool takes."""


class CacheMemory:
    """Makes caches and counts them.

    rounded: rows and slots of a step over such numbers.
    """

    def __init__(
        self,
        model: UnifiedModel,
        config: ComputeConfig,
        kernels: DecodeKernels,
        rounded: Callable[[int, int], tuple[int, int]],
    ) -> None:
        self.model, self.config, self.kernels, self._rounded = model, config, kernels, rounded

    @property
    def has_ragged_rows(self) -> bool:
        """Whether rows have buffers of their own: on a CPU whose kernels read them so. Deterministic steps are of one size."""
        return not self.config.is_deterministic and not self.kernels.reads_blocks and has_cpu_decode(self.model)

    def new(self) -> KeyValueCache:
        """An empty cache."""
        num_layers, config = len(self.model.trunk.layers), self.config
        if self.kernels.reads_blocks:
            return PagedCache(num_layers, config.max_rows, config.max_positions, self.kernels.device)
        return RaggedCache(self.model) if self.has_ragged_rows else RowCache(num_layers, config.max_rows)

    def is_for(self, cache: KeyValueCache) -> bool:
        """Whether kernels read such a cache; those that were found wrong (`TritonKernels`) read another from then on."""
        return self.kernels.reads_blocks or not isinstance(cache, PagedCache)

    def check(self, rows: int, slots: int) -> None:
        """ValueError: these rows, with these slots each, are too large for an empty cache."""
        most, all_slots, has_blocks = self.config.max_cache_bytes, [slots] * rows, self.kernels.reads_blocks
        if most is None:
            return
        needed = self._bytes_of_blocks(all_slots) if has_blocks else self._bytes_for(self.new(), all_slots, ahead=True)
        if needed > most:
            takes = f"takes {needed:,} bytes of keys and values, but the engine has max_cache_bytes={most:,}"
            if self.config.is_deterministic and not has_blocks:
                raise ValueError(f"A deterministic step {takes}: give it more, or fewer max_rows and max_positions.")
            raise ValueError(f"The request {takes}: shorten it, or give the engine more.")

    def bytes_for(self, cache: KeyValueCache, slots: list[int]) -> int:
        """Of keys and values, if a cache had reserved rows of these numbers of slots, too."""
        return self._bytes_for(cache, slots, ahead=False)

    def fits(self, cache: KeyValueCache, slots: list[int]) -> bool:
        """Whether a pool, which is planned where it is not yet, has blocks for rows of these numbers of slots. Of other caches,
        which grow, `bytes_for` says what they take."""
        if not isinstance(cache, PagedCache):
            return True
        self._plan(cache)
        return num_blocks_for(slots) <= cache.num_blocks

    def rows_that_fit(self, cache: KeyValueCache, num_rows: int, num_slots: int) -> int:
        """So many rows of these slots, or what halving leaves that memory has room for."""
        most = self.config.max_cache_bytes
        most = free_memory(self.kernels.device) // 2 if most is None else most

        def has_room(slots: list[int]) -> bool:
            return self.fits(cache, slots) if isinstance(cache, PagedCache) else self.bytes_for(cache, slots) <= most

        while num_rows > 1 and not has_room([num_slots] * num_rows):
            num_rows //= 2
        return num_rows

    def reserve(self, cache: KeyValueCache, slots: list[int], num_other_bytes: int = 0) -> None:
        """Let a cache hold rows of these numbers of slots, and more for later requests where memory allows.

        num_other_bytes: of `max_cache_bytes`, what another cache takes.
        """
        if isinstance(cache, PagedCache):
            # As many rows as steps may be rounded up to: a table that gets larger later has steps recorded again.
            cache.reserve(*self._rounded(max(len(slots), self.config.max_rows), max(slots)))
            self._plan(cache)
            cache.reserve_blocks(num_blocks_for(slots))  # more than planned: of a request that is alone
            return
        most, size = self.config.max_cache_bytes, self._rounded(len(slots), max(slots))
        left = None if most is None else most - num_other_bytes
        cache.reserve(*size, left is None or self._bytes_for(cache, slots, ahead=True) <= left)

    def _plan(self, cache: PagedCache) -> None:
        if not cache.is_planned:
            cache.reserve_blocks(self._planned_blocks())

    def _planned_blocks(self) -> int:
        config, model = self.config, self.model
        room = config.max_cache_bytes
        if room is None:
            room = int(POOL_SHARE * free_memory(self.kernels.device))
        elif model.predicted_ports.keys() - model.vocabulary_ports.keys():
            room -= int(FLOW_SHARE * room)
        return min(num_blocks_for([config.max_positions] * config.max_rows), room // self._block_bytes)

    def _bytes_for(self, cache: KeyValueCache, slots: list[int], ahead: bool) -> int:
        if isinstance(cache, RaggedCache):
            return cache.bytes_of(slots)
        if isinstance(cache, PagedCache):
            return self._bytes_of_blocks(slots, cache.num_blocks)
        size = self._rounded(len(slots), max(slots)) if slots else (0, 0)
        return cache_bytes(self.model, *cache.reserved(*size, ahead))

    def _bytes_of_blocks(self, slots: list[int], least: int = 1) -> int:
        blocks = max(least, num_blocks_for(slots))
        return self._block_bytes * blocks if blocks > 1 else 0  # nothing is made for no rows

    @property
    def _block_bytes(self) -> int:
        return cache_bytes(self.model, 1, BUCKET)
