"""Blocks of a pool over random schedules: whoever joins, leaves, waits or fails, each has one owner, and all come back."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_decoder import PROMPTS, drawing, question
from test_engine_on_a_gpu import make_engine, mix
from test_paged_cache import BlockKernels, CapturedBlockKernels
from test_triton import replay_steps
from torch import nn

import unimm.inference.decode.running_batch as running_batch_module
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.kv_cache import BUCKET, cache_bytes
from unimm.inference.decode.paged_cache import PagedCache, PagedLayer, num_blocks_for
from unimm.inference.decode.request import Request
from unimm.inference.decode.running_batch import RunningBatch
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.step import DecodeStep
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.inference.kernels.decode_kernels import LayerKernels


@pytest.fixture(scope="module")
def requests(tiny_engine: Engine) -> list[Request]:
    """Of one block and of several, guided or not, late or for a while; some begin alike."""
    long = question(tiny_engine, "one two three " * 44, 9)
    return [
        *mix(tiny_engine),
        Request(long, Sampling(1.0, seed=8)),
        Request(long, Sampling(1.0, seed=9)),
        Request(drawing(tiny_engine, PROMPTS[0], 13), Sampling(1.0, seed=2), 2.0),
    ]


@pytest.fixture(scope="module")
def alone(tiny_engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [tiny_engine.decoder.fill([request])[0] for request in requests]


class Blocks:
    """What must hold of a decoder's blocks after every step."""

    def __init__(self, decoder: Decoder, most: int) -> None:
        self.decoder, self.most = decoder, most
        self.addresses: dict[Any, list[int]] = {}

    def check(self) -> None:
        running, cache = self.decoder.running, self.decoder.running._cache
        assert isinstance(cache, PagedCache) and cache.num_bytes <= self.most
        given = [block for own in cache._blocks.values() for block in own]
        assert sorted([0, *given, *cache._unused]) == list(range(cache.num_blocks))
        prefill = running.prefill
        behind = range(prefill.begin, prefill.begin + len(prefill.rows)) if prefill is not None else range(0)
        assert set(range(len(running.rows))) <= set(cache._blocks) <= {*range(len(running.rows)), *behind}
        for place, row in enumerate(running.rows):
            own = cache._blocks[place]
            assert len(own) + 1 == num_blocks_for([row.num_slots]) and cache.table[place, : len(own)].tolist() == own
        if cache.table.numel():
            assert not cache.table[:, -1].any()
        layers = [layer for layer in cache.layers if isinstance(layer, PagedLayer)]
        buffers = [one for layer in layers for one in (layer.keys, layer.values) if one is not None]
        if buffers:
            places = [one.data_ptr() for one in (cache.table, *buffers)]
            # The cache itself, which so stays: another one would get its number and its memory.
            assert self.addresses.setdefault((cache, cache.generation), places) == places

    def check_empty(self) -> None:
        cache = self.decoder.running._cache
        assert isinstance(cache, PagedCache) and not cache._blocks and len(cache._unused) + 1 == cache.num_blocks
        assert self.decoder.stats().num_running == self.decoder.stats().num_waiting == 0


class Failing:
    """Lets the next forward of a prefill, or the next decode step, run out of memory in its middle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prefill = self.step = False
        update, run = PagedLayer.update, DecodeStep.run

        def failing_update(layer: PagedLayer, *args: Any, **words: Any) -> Any:
            found = update(layer, *args, **words)
            if self.prefill:
                self.prefill = False
                raise torch.OutOfMemoryError("no memory for a prefill")
            return found

        def failing_run(step: DecodeStep, num_slots: int) -> Any:
            if self.step:
                self.step = False
                raise torch.OutOfMemoryError("no memory for a step")
            return run(step, num_slots)

        monkeypatch.setattr(PagedLayer, "update", failing_update)
        monkeypatch.setattr(DecodeStep, "run", failing_run)


def play(
    decoder: Decoder, blocks: Blocks, failing: Failing, requests: list[Request], seed: int
) -> Iterator[tuple[int, list[int]]]:
    """Requests with what filled them, of those that were neither dropped nor failed."""
    chance, left = random.Random(seed), [(number, request) for number, request in enumerate(requests)] * 2
    chance.shuffle(left)
    tickets: dict[int, int] = {}
    filled: dict[int, list[int]] = defaultdict(list)
    for _ in range(2000):
        if left and chance.random() < 0.4:
            number, request = left.pop()
            tickets[decoder.submit(request)] = number
        if tickets and chance.random() < 0.04:
            dropped = chance.choice(list(tickets))
            decoder.abort(dropped)
            del tickets[dropped]
            blocks.check()
        failing.prefill, failing.step = chance.random() < 0.05, chance.random() < 0.01
        try:
            decoder.step()
        except torch.OutOfMemoryError:
            assert not decoder.running.rows
        blocks.check()
        for ticket in list(tickets):
            try:
                new, done = decoder.take(ticket)
            except (torch.OutOfMemoryError, RuntimeError):
                del tickets[ticket]
                continue
            filled[ticket] += new
            if done:
                yield tickets.pop(ticket), filled[ticket]
        if not left and not tickets:
            return
    raise AssertionError(f"requests {list(tickets.values())} never end")


@pytest.mark.parametrize(("seed", "is_captured"), [(0, False), (1, True)], ids=["plain", "captured"])
def test_each_block_has_one_owner_and_all_come_back(
    seed: int, is_captured: bool, requests: list[Request], alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = CapturedBlockKernels if is_captured else BlockKernels
    monkeypatch.setattr(running_batch_module, "kernels_of", lambda device, name=None: kernels(device))
    if is_captured:
        replay_steps(monkeypatch)
    chance = random.Random(seed)
    engine = make_engine("cpu")
    most = cache_bytes(engine.model, chance.randint(6, 12), BUCKET)
    limits = Limits(
        max_rows=chance.randint(2, 7),
        max_cache_bytes=most,
        prefill_positions=chance.choice([7, 40, 400]),
        window=chance.choice([1, 3]),
        prefix_cache_bytes=chance.choice([0, 10**6]),
    )
    engine = make_engine("cpu", limits=limits)
    blocks = Blocks(engine.decoder, most)
    for number, ids in play(engine.decoder, blocks, Failing(monkeypatch), requests, seed):
        assert ids == alone[number]
    blocks.check_empty()


def test_a_prefill_that_fails_when_guidance_begins_is_tried_again(
    requests: list[Request], alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two texts are read in two parts, since they are padded; the second one is read when a drawing's guidance begins."""
    lengths = [requests[number].sequence.given.length for number in (1, 3)]
    decoder = make_engine("cpu", limits=Limits(prefill_positions=sum(lengths), window=1)).decoder
    running, advance, failed = decoder.running, RunningBatch.advance_prefill, []

    def failing(batch: RunningBatch) -> None:
        assert batch.prefill is not None
        if len(batch.prefill.rows) > 1 and batch._starting_guidance():
            failed.append(batch.prefill)
            monkeypatch.setattr(batch.prefill, "_work", _raise())
        advance(batch)

    monkeypatch.setattr(RunningBatch, "advance_prefill", failing)
    late = decoder.submit(requests[4])
    while not running.rows or len(running.rows[0].job.filled) < requests[4].guided.start - 2:
        decoder.step()
    tickets = [late, *(decoder.submit(requests[number]) for number in (1, 3))]
    for _ in range(60):
        decoder.step()
    assert failed and [decoder.take(ticket) for ticket in tickets] == [(alone[number], True) for number in (4, 1, 3)]


def test_kernels_are_tried_on_the_device_of_the_model(requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which need not be that one: the first request has them compared with PyTorch's."""
    current: list[bool] = []

    class Tried(BlockKernels):
        def layers(self, layers: Iterable[nn.Module], weights: str | None = None) -> list[LayerKernels]:
            assert current, "another device is the current one"
            return super().layers(layers, weights)

    @contextmanager
    def device_as_current(decoder: Decoder) -> Iterator[None]:
        current.append(True)
        yield
        current.pop()

    monkeypatch.setattr(running_batch_module, "kernels_of", lambda device, name=None: Tried(device))
    monkeypatch.setattr(Decoder, "_device_as_current", device_as_current)
    make_engine("cpu").decoder.submit(requests[0])
    assert not current


def _raise() -> Iterator[None]:
    raise torch.OutOfMemoryError("no memory for a prefill")
    yield
