"""Which cache the rows of a decoder have, how many bytes it takes, and how much of it is reserved: what admission counts.

Where kernels read each row over its own length (`RaggedCache` on a CPU, `PagedCache` for kernels with a table), a row takes
what its own request does. Elsewhere (`RowCache`) all rows are as wide as the longest, for PyTorch's attention over a batch
reads a rectangle.
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

    def reserve(self, cache: KeyValueCache, slots: list[int], num_other_bytes: int = 0) -> None:
        """Let a cache hold rows of these numbers of slots, and more for later requests where memory allows.

        num_other_bytes: of `max_cache_bytes`, what another cache takes.
        """
        most, size = self.config.max_cache_bytes, self._rounded(len(slots), max(slots))
        left = None if most is None else most - num_other_bytes
        if isinstance(cache, PagedCache):
            cache.reserve(*size)
            needed = num_blocks_for(slots)
            if needed > cache.num_blocks:
                cache.reserve_blocks(max(needed, min(2 * cache.num_blocks, self._most_blocks(cache, left))))
        else:
            cache.reserve(*size, left is None or self._bytes_for(cache, slots, ahead=True) <= left)

    def _most_blocks(self, cache: PagedCache, left: int | None) -> int:
        """That a pool may have for later requests: what is left, or, without a bound, half of what the device has free more."""
        if left is None:
            return cache.num_blocks + free_memory(self.kernels.device) // 2 // self._block_bytes
        return left // self._block_bytes

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
