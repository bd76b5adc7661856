"""The pool of blocks is planned and made once: how large, who waits, and what is left where there is no memory for it."""

from typing import Any

import pytest
import torch
from test_engine_on_a_gpu import make_engine, mix
from test_paged_cache import BlockKernels, fill, long_and_short, pool_of

import unimm.inference.decode.cache_memory as cache_memory_module
import unimm.inference.decode.paged_cache as paged_cache_module
import unimm.inference.decode.running_batch as running_batch_module
from unimm.inference.decode.kv_cache import BUCKET, cache_bytes
from unimm.inference.decode.paged_cache import num_blocks_for
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine


@pytest.fixture(autouse=True)
def block_kernels(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are made from now on have them."""
    tiny_engine.decoder.running.decode_step()  # made before
    monkeypatch.setattr(running_batch_module, "kernels_of", lambda device, name=None: BlockKernels(device))


@pytest.mark.parametrize(
    ("free", "bound", "expected"), [(40, None, 20), (9, None, 4), (999, None, 33), (2, 12, 12), (2, 99, 33)]
)
def test_a_pool_is_planned_once(free: int, bound: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half of what is free, or of what is allowed; never of more than 8 rows of 4 blocks. Requests wait for blocks."""
    block = cache_bytes(make_engine("cpu").model, 1, BUCKET)
    limits = Limits(max_rows=8, max_positions=4 * BUCKET, max_cache_bytes=bound and bound * block)
    engine = make_engine("cpu", limits=limits)
    monkeypatch.setattr(cache_memory_module, "free_memory", lambda device: free * block)
    running, cache = engine.decoder.running, pool_of(engine)
    assert not cache.is_planned and running.fits([]) and not cache.is_planned
    assert running.bytes_for([]) == 0 and running.fits([1] * 3) and cache.num_blocks == expected
    monkeypatch.setattr(cache_memory_module, "free_memory", lambda device: 0)
    running.reserve([1, 2, BUCKET])
    assert cache.num_blocks == expected and running.bytes_for([]) == expected * block
    assert running.fits([BUCKET] * (expected - 1)) and not running.fits([BUCKET] * expected)
    assert running.rows_that_fit(32, 1) == next(rows for rows in (32, 16, 8, 4, 2, 1) if rows < expected)


def test_without_a_bound_requests_wait_for_blocks(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long one finds too few of them planned: it is alone, in a pool that is made for it."""
    requests = [*mix(tiny_engine), *long_and_short(tiny_engine)]
    engine = make_engine("cpu", limits=Limits(max_rows=8))
    monkeypatch.setattr(cache_memory_module, "free_memory", lambda device: 8 * cache_bytes(engine.model, 1, BUCKET))
    filled, sizes, _ = fill(engine, requests)
    assert filled == tiny_engine.decoder.fill(requests)
    assert sizes == {
        cache_bytes(engine.model, blocks, BUCKET) for blocks in (4, num_blocks_for([requests[-4].sequence.length]))
    }


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError("no")], ids=["a device", "main memory"])
def test_a_pool_that_finds_no_memory_leaves_nothing_behind(
    error: Exception, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the layers that had found some, either; the next request has a pool of its own plan."""
    requests = long_and_short(tiny_engine)
    engine = make_engine("cpu", limits=Limits(max_rows=8))
    grown, free, made = paged_cache_module.grown, [999], []

    def grown_while_there_is_room(*args: Any) -> torch.Tensor:
        made.append(args)
        if len(made) == 4:  # of the second layer
            raise error
        return grown(*args)

    monkeypatch.setattr(cache_memory_module, "free_memory", lambda device: free[0] * cache_bytes(engine.model, 1, BUCKET))
    monkeypatch.setattr(paged_cache_module, "grown", grown_while_there_is_room)
    with pytest.raises(torch.OutOfMemoryError, match=r"no memory for the 33 blocks of 64 positions .* smaller max_cache_bytes"):
        engine.decoder.fill(requests[1:2])
    cache = pool_of(engine)
    assert not cache.is_planned and not cache._blocks and not cache._unused and cache.num_bytes == 0
    free[0] = 20
    filled, sizes, _ = fill(engine, requests)
    assert filled == tiny_engine.decoder.fill(requests) and sizes == {cache_bytes(engine.model, 10, BUCKET)}
