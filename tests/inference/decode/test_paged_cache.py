"""Rows in blocks hold what rows in a rectangle hold, whatever comes, goes and moves; and cost what they hold themselves.

Kernels that read blocks are Triton's; here PyTorch's stand in, over blocks that are gathered (`BlockKernels`).
"""

import random

import pytest
import torch
from test_admission import finish
from test_decoder import PROMPTS, drawing, question
from test_engine_on_a_gpu import make_engine, mix, settings
from test_triton import Replayed, replay_steps

import unimm.inference.decode.running_batch as running_batch_module
from unimm.inference.decode.kv_cache import BUCKET, RowCache, RowCacheLayer, cache_bytes
from unimm.inference.decode.paged_cache import PagedCache, num_blocks_for
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.inference.kernels.decode_kernels import DecodeKernels

CPU = torch.device("cpu")


class BlockKernels(DecodeKernels):
    """PyTorch's, over blocks."""

    @property
    def reads_blocks(self) -> bool:
        return True


class CapturedBlockKernels(BlockKernels):
    """A step is launched before the last one is read, too."""

    is_captured = True


@pytest.fixture
def block_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are made from now on have them."""
    monkeypatch.setattr(running_batch_module, "kernels_of", lambda device, name=None: BlockKernels(device))


@pytest.fixture
def replayed(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    """The same, and steps are captured: their graphs."""
    tiny_engine.decoder.running.decode_step()  # made before, so that its steps are plain ones
    monkeypatch.setattr(running_batch_module, "kernels_of", lambda device, name=None: CapturedBlockKernels(device))
    return replay_steps(monkeypatch)


class Both:
    """The same done to a cache in blocks and to one in a rectangle, of two layers, two heads of width 4."""

    def __init__(self, seed: int) -> None:
        self.paged, self.plain = PagedCache(2, 6, 300, CPU), RowCache(2, 6)
        self.paged.reserve_blocks(num_blocks_for([300] * 6))  # a pool is made once
        self.random, self.noise = random.Random(seed), torch.Generator().manual_seed(seed)
        self.rows: list[tuple[int, int]] = []  # positions that are written, and that there may be

    def forward(self, begin: int, stop: int, slots_RT: torch.Tensor, used: int) -> None:
        """Both write the same, and find the same, up to what they have."""
        states = torch.randn(2, stop - begin, 2, slots_RT.shape[1], 4, generator=self.noise)
        for number in range(2):
            found = []
            for cache in (self.paged, self.plain):
                cache.prepare(slice(begin, stop), slots_RT, used)
                layer = cache.layers[number]
                assert isinstance(layer, RowCacheLayer)
                found.append(layer.update(states[0] + number, states[1] - number))
            if slots_RT.shape[1] < used:
                for row, end in enumerate(slots_RT[:, -1].tolist()):
                    have = min(end + 1, self.rows[begin + row][1])
                    for one, other in zip(*found, strict=True):
                        assert torch.equal(one[row, :, :have], other[row, :, :have])

    def join(self) -> None:
        """One or two rows of about one length, in two parts, with padding behind the shorter one."""
        begin, most = len(self.rows), self.random.randint(20, 250)
        lengths = [most, self.random.randint(most // 2, most)][: self.random.randint(1, 2)]
        slots = [length + self.random.randint(1, 40) for length in lengths]
        for cache in (self.paged, self.plain):
            cache.reserve_rows(begin, slots)
        self.rows += zip(lengths, slots, strict=True)
        half, every = self.random.randint(1, most), torch.arange(most).expand(len(lengths), -1)
        self.forward(begin, len(self.rows), every[:, :half], half)
        if half < most:
            self.forward(begin, len(self.rows), every[:, half:], most)

    def decode(self) -> None:
        """Every row one position further, where it has one."""
        if self.rows and all(length < slots for length, slots in self.rows):
            positions_R1 = torch.tensor([[length] for length, _ in self.rows])
            self.forward(0, len(self.rows), positions_R1, max(length for length, _ in self.rows) + 1)
            self.rows = [(length + 1, slots) for length, slots in self.rows]

    def leave(self) -> None:
        """A row, whose place the last one takes."""
        if not self.rows:
            return
        place, last = self.random.randrange(len(self.rows)), len(self.rows) - 1
        for cache in (self.paged, self.plain):
            if place < last:
                cache.move(last, place, self.rows[last][0])
            cache.free(last, last + 1)
        self.rows[place] = self.rows[last]
        self.rows.pop()

    def copy(self) -> None:
        """A row once more, whole or through what `read` gives."""
        if not self.rows or len(self.rows) > 5:
            return
        source, place, through = self.random.randrange(len(self.rows)), len(self.rows), self.random.random() < 0.5
        length, slots = self.rows[source]
        for cache in (self.paged, self.plain):
            cache.reserve_rows(place, [slots])
            cache.grow()
            if through:
                cache.restore(place, 0, cache.read(source, 0, length))
            else:
                cache.copy(source, place, length)
        self.rows.append((length, slots))

    def reorder(self) -> None:
        """Some rows stay, in another order."""
        if self.rows:
            order = self.random.sample(range(len(self.rows)), self.random.randint(1, len(self.rows)))
            for cache in (self.paged, self.plain):
                cache.gather(order, max(self.rows[one][0] for one in order))
            self.rows = [self.rows[one] for one in order]

    def check(self) -> None:
        for place, (length, _) in enumerate(self.rows):
            assert torch.equal(self.paged.read(place, 0, length), self.plain.read(place, 0, length))
        given = [block for blocks in self.paged._blocks.values() for block in blocks]
        assert sorted([0, *given, *self.paged._unused]) == list(range(self.paged.num_blocks))
        assert len(given) + 1 == num_blocks_for([slots for _, slots in self.rows])


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(6))
def test_rows_in_blocks_are_those_of_a_rectangle(seed: int) -> None:
    both = Both(seed)
    for _ in range(40):
        steps = [both.decode] * 3 + [both.leave, both.copy, both.reorder] + [both.join] * (len(both.rows) < 5)
        both.random.choice(steps)()
        both.check()
    both.paged.reserve(20, 1000)  # a larger table
    both.check()
    assert both.paged.bytes_a_position == both.plain.bytes_a_position or not both.rows


def long_and_short(engine: Engine) -> list[Request]:
    """A conversation of several blocks beside three short drawings."""
    long = Request(question(engine, "one two three " * 44, 9), Sampling(1.0, seed=8))
    return [long, *(Request(drawing(engine, PROMPTS[1], 9), Sampling(1.0, seed=seed)) for seed in range(3))]


def pool_of(engine: Engine) -> PagedCache:
    cache = engine.decoder.running._cache
    assert isinstance(cache, PagedCache)
    return cache


def fill(engine: Engine, requests: list[Request]) -> tuple[list[list[int]], set[int], int]:
    """Their ids, the bytes that keys and values had, and the most blocks that rows had."""
    filled, sizes, most = [[] for _ in requests], set(), 0
    for new in engine.decoder.steps(requests):
        sizes.add(engine.decoder.stats().cache_bytes)
        most = max(most, sum(map(len, pool_of(engine)._blocks.values())))
        for index, token in new.items():
            filled[index].append(token)
    return filled, sizes, most


@pytest.mark.usefixtures("block_kernels")
def test_a_row_costs_what_it_holds(tiny_engine: Engine) -> None:
    requests = long_and_short(tiny_engine)
    engine = make_engine("cpu", limits=Limits(max_rows=8))
    slots = [request.sequence.length for request in requests for _ in range(request.num_rows)]
    filled, _, most = fill(engine, requests)
    assert filled == tiny_engine.decoder.fill(requests)
    assert most + 1 == num_blocks_for(slots)
    assert max(slots) > 3 * BUCKET and most < 0.6 * len(slots) * -(-max(slots) // BUCKET)


@pytest.mark.usefixtures("block_kernels")
@pytest.mark.parametrize("blocks", [5, 7, 12])
def test_blocks_are_never_more_than_memory_allows(blocks: int, tiny_engine: Engine) -> None:
    """Requests wait for blocks; the long one for most of them."""
    requests = [*long_and_short(tiny_engine), *mix(tiny_engine)]
    bound = cache_bytes(tiny_engine.model, blocks, BUCKET)
    engine = make_engine("cpu", limits=Limits(max_rows=8, max_cache_bytes=bound))
    filled, sizes, most = fill(engine, requests)
    assert filled == tiny_engine.decoder.fill(requests) and sizes == {bound} and most < blocks
    engine.decoder.release()
    assert engine.decoder.stats().cache_bytes == 0


@pytest.mark.usefixtures("block_kernels")
def test_a_request_that_never_fits_is_refused(tiny_engine: Engine) -> None:
    bound = cache_bytes(tiny_engine.model, 3, BUCKET)
    engine = make_engine("cpu", limits=Limits(max_cache_bytes=bound))
    with pytest.raises(ValueError, match=f"bytes of keys and values, but the engine has max_cache_bytes={bound:,}"):
        engine.decoder.submit(long_and_short(engine)[0])
    assert engine.decoder.fill(long_and_short(engine)[1:]) == tiny_engine.decoder.fill(long_and_short(tiny_engine)[1:])


@pytest.mark.usefixtures("block_kernels")
def test_blocks_come_back_whoever_leaves_and_when(tiny_engine: Engine) -> None:
    """Dropped while their prompts are read, in pieces, or in the middle; or done. Others draw what they drew."""
    requests = mix(tiny_engine)
    expected = tiny_engine.decoder.fill(requests)
    decoder = make_engine("cpu", limits=Limits(max_rows=5, prefill_positions=7)).decoder
    tickets = [decoder.submit(request) for request in requests]
    for number, dropped in ((1, 0), (3, 3), (12, 4)):
        for _ in range(number):
            decoder.step()
        decoder.abort(tickets[dropped])
    stays = [1, 2, 5, 6]
    filled = finish(decoder, [tickets[number] for number in stays])
    assert list(filled.values()) == [expected[number] for number in stays]
    cache = decoder.running._cache
    assert isinstance(cache, PagedCache) and len(cache._unused) + 1 == cache.num_blocks > 1 and not cache._blocks


@pytest.mark.parametrize("window", [1, 3])
def test_captured_steps_over_blocks_draw_the_same(window: int, tiny_engine: Engine, replayed: list[Replayed]) -> None:
    """Graphs that are used again read the table where it lies, while rows come, move and go; padding harms nobody."""
    requests = [*mix(tiny_engine), *settings(tiny_engine), *long_and_short(tiny_engine)]
    expected = tiny_engine.decoder.fill(requests)
    limits = Limits(max_rows=6, window=window, prefill_positions=30)
    engine = make_engine("cpu", limits=limits)
    assert engine.decoder.fill(requests) == expected
    table, recorded = engine.decoder.running._cache.table, len(replayed[-1])  # pyright: ignore[reportAttributeAccessIssue]
    assert engine.decoder.fill(requests) == expected
    assert engine.decoder.running._cache.table is table  # pyright: ignore[reportAttributeAccessIssue]
    assert len(replayed) == 1 and len(replayed[0]) == recorded > 0


def test_steps_that_are_captured_ahead_are_those_that_are_made(tiny_engine: Engine, replayed: list[Replayed]) -> None:
    expected = tiny_engine.generate_codes("a red circle", num_images=4, seed=3)
    engine = make_engine("cpu", limits=Limits(max_rows=9, window=1))  # rounded up to 16
    count = engine.capture_steps()
    assert count == len(replayed[-1]) > 0
    assert torch.equal(engine.generate_codes("a red circle", num_images=4, seed=3), expected)
    assert len(replayed[-1]) == count


@pytest.mark.usefixtures("block_kernels")
def test_prompts_that_begin_alike_are_found_in_blocks(tiny_engine: Engine) -> None:
    requests = [Request(question(tiny_engine, words, 9), Sampling()) for words in ("What is it?", "What is it?", "What is?")]
    engine = make_engine("cpu", limits=Limits(prefix_cache_bytes=10**7))
    expected = tiny_engine.decoder.fill(requests)
    assert [engine.decoder.fill([request])[0] for request in requests] == expected
    assert engine.decoder.stats().prefix_cache_hits > 0


@pytest.mark.usefixtures("block_kernels")
def test_deterministic_steps_have_rows_of_their_own_length(tiny_engine: Engine) -> None:
    """And need not have memory for the largest step that there could be."""
    bound = cache_bytes(tiny_engine.model, 16, BUCKET)
    limits = Limits(max_rows=16, max_positions=256, max_cache_bytes=bound)
    engine = make_engine("cpu", None, torch.bfloat16, limits=limits, deterministic=True)
    requests = mix(engine)
    together, sizes, _ = fill(engine, requests)
    assert [engine.decoder.fill([request])[0] for request in requests] == together and max(sizes) <= bound


@pytest.mark.usefixtures("block_kernels")
def test_padding_is_not_the_longest_position(tiny_engine: Engine) -> None:
    """Where rotations change with the longest one, as those of dynamic scaling behind what a model was trained on."""
    trunk = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}
    requests, limits = mix(tiny_engine), Limits(max_rows=12)
    padded = make_engine("cpu", trunk, limits=limits, deterministic=True)
    assert padded.model.trunk.rotary_emb.rope_type == "dynamic"
    assert padded.decoder.fill(requests) == make_engine("cpu", trunk, limits=limits).decoder.fill(requests)


def test_weights_that_change_between_steps_are_read(replayed: list[Replayed]) -> None:
    engine, reference = make_engine("cpu"), make_engine("cpu")
    old = engine.decoder.fill(mix(engine))
    recorded = len(replayed[0])
    changed = [(name, weight.detach() * 1.3) for name, weight in engine.model.named_parameters() if "proj" in name]
    for one in (engine, reference):
        one.update_weights(changed)
    new = engine.decoder.fill(mix(engine))
    assert len(replayed[0]) == recorded > 0 and new == reference.decoder.fill(mix(reference)) != old


def test_a_table_is_wide_enough_for_rounded_steps() -> None:
    """Padding has its place behind all slots that a step may read."""
    for most in (1, 63, 64, 65, 128, 129, 700):
        cache = PagedCache(1, 2, most, CPU)
        assert cache.table.numel() == 0  # nothing is on a device that may have no memory left
        cache.reserve(1, 1)
        assert cache.num_slots - BUCKET >= -(-most // 128) * 128 and cache.table.shape == (2, cache.num_slots // BUCKET)
        cache.reserve_rows(0, [most, 1])
        assert cache.table[:, -1].tolist() == [0, 0] and cache.generation == 1
