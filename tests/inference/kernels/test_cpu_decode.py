"""The CPU's decode kernels give what `transformers`' trunk gives, and a row costs what its own length costs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_cases import write_checkpoint
from test_engine_on_a_gpu import WIDE, make_engine
from test_llama_decode import relative_error

import unimm
from unimm.data.template import Turn
from unimm.inference.decode.cache_memory import CacheMemory
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.kv_cache import BUCKET, RowCache
from unimm.inference.decode.ragged_cache import RaggedCache
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.inference.kernels.cpu_decode import has_cpu_decode
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.inference.kernels.step_inputs import Windows

CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")


@needs_compiler
@pytest.mark.parametrize("seed", [0, 1, 3])
@torch.inference_mode()
def test_it_is_the_trunk_of_transformers(seed: int, tmp_path: Path) -> None:
    """Llama and Qwen3, grouped heads, rows of different lengths and windows; other rows change nothing, to the bit."""
    write_checkpoint(tmp_path / "m", seed)
    model = unimm.load(tmp_path / "m", device="cpu", dtype="float32").model
    fast, expected_cache, cache = DecodeModel(model), RowCache(len(model.trunk.layers)), RaggedCache(model)
    assert fast.cpu is not None
    generator = torch.Generator().manual_seed(seed)
    given, positions = torch.randn(2, 9, model.width, generator=generator), torch.arange(9).expand(2, -1)
    expected_cache.reserve(2, 20)
    cache.reserve_rows(0, [20, 70])
    for one in (expected_cache, cache):
        one.prepare(slice(0, 2), positions, 9)
        model.hidden(given, torch.ones(9, 9, dtype=torch.bool).tril()[None, None], positions, one)
    lengths, widths = torch.tensor([9, 4]), [3, 1]  # the second row's prompt was shorter
    new = torch.randn(4, model.width, generator=generator)
    places, rows = torch.tensor([9, 10, 11, 4]), torch.tensor([0, 0, 0, 1])
    hidden = fast.advance(new, places, 12, cache, Windows.of(widths, torch.device("cpu")))
    for position, row, x_D, found_D in zip(places.tolist(), rows.tolist(), new, hidden, strict=True):
        slots = torch.tensor([[position]])
        expected_cache.prepare(slice(row, row + 1), slots, position + 1)
        mask = torch.ones(1, 1, 1, position + 1, dtype=torch.bool)
        expected_D = model.hidden(x_D[None, None], mask, slots, expected_cache)[0, 0]
        torch.testing.assert_close(found_D, expected_D, atol=1e-5, rtol=1e-5)
    assert int(lengths[0]) == 9
    again = fast.advance(new[:1], places[:1], 10, cache)
    torch.testing.assert_close(again[0], hidden[0], atol=1e-6, rtol=1e-6)  # products of other numbers of rows round otherwise


@needs_compiler
@pytest.mark.parametrize("weights", [None, "int8", "int4"])
@pytest.mark.parametrize("trunk", [{}, {"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 2}])
@torch.inference_mode()
def test_in_bfloat16_and_fewer_bits_it_is_what_pytorch_gives(trunk: dict[str, Any], weights: str | None) -> None:
    """Products read and give bfloat16, so only their rounding differs; rows and windows of different lengths."""
    model = make_engine("cpu", WIDE | {"head_dim": 64} | trunk, torch.bfloat16).model
    fast, rows, ragged = DecodeModel(model, weights), RowCache(len(model.trunk.layers)), RaggedCache(model)
    assert fast.cpu is not None and fast.layers is not None
    given, positions = torch.randn(2, 9, model.width).bfloat16(), torch.arange(9).expand(2, -1)
    ragged.reserve_rows(0, [20, 70])
    rows.reserve(2, 20)
    for cache in (rows, ragged):
        cache.prepare(slice(0, 2), positions, 9)
        model.hidden(given, torch.ones(9, 9, dtype=torch.bool).tril()[None, None], positions, cache)
    new, places, windows = torch.randn(4, model.width).bfloat16(), torch.tensor([9, 10, 11, 4]), Windows.of([3, 1], CPU)
    expected, found = (fast.advance(new, places, 12, cache, windows) for cache in (rows, ragged))
    assert found.dtype == torch.bfloat16 and relative_error(found, expected) < 0.02


def chat(engine: Engine, words: int, seed: int) -> Request:
    sequence = engine.template.chat([Turn("user", ("one two " * words,))], 8)
    return Request(sequence, Sampling(1.0, seed=seed))


@needs_compiler
def test_a_long_conversation_widens_no_other_row(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_cpu_decode(tiny_engine.model)
    requests = [*(chat(tiny_engine, 1, seed) for seed in range(4)), chat(tiny_engine, 16, 4)]
    lengths = [request.sequence.length for request in requests]
    assert max(lengths[:4]) <= BUCKET < lengths[4]
    wide = -(-lengths[4] // BUCKET) * BUCKET

    def fill() -> tuple[list[list[int]], int]:
        decoder = Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad, Limits(max_rows=5))
        filled, most = [[] for _ in requests], 0
        for new in decoder.steps(requests):
            most = max(most, decoder.stats().cache_bytes)
            for index, token in new.items():
                filled[index].append(token)
        return filled, most

    ragged, of_rows = fill()
    monkeypatch.setattr(CacheMemory, "has_ragged_rows", False)
    rectangular, of_rectangle = fill()
    assert ragged == rectangular
    a_position = RaggedCache(tiny_engine.model).bytes_a_position
    assert of_rows == a_position * (4 * BUCKET + wide) and of_rectangle == a_position * 5 * wide


@needs_compiler
@pytest.mark.parametrize("weights", [None, "int8"])
def test_rows_have_their_own_length_in_bfloat16_too(weights: str | None) -> None:
    engine = make_engine("cpu", WIDE, torch.bfloat16)
    decoder = Decoder(engine.model, engine.tokenizer.special.pad, Limits(max_rows=3), weights)
    requests = [chat(engine, words, seed) for seed, words in enumerate((1, 16, 1))]
    sizes = [decoder.stats().cache_bytes for _ in decoder.steps(requests)]
    assert max(sizes) == RaggedCache(engine.model).bytes_of([request.sequence.length for request in requests])


@needs_compiler
def test_buffers_come_and_go_with_their_rows(tiny_engine: Engine) -> None:
    most = RaggedCache(tiny_engine.model).bytes_of([chat(tiny_engine, 12, 0).sequence.length, BUCKET])
    limits = Limits(max_cache_bytes=most)
    decoder = Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad, limits)
    requests = [chat(tiny_engine, 12 if seed % 3 == 0 else 1, seed) for seed in range(7)]
    peak = 0
    filled: list[list[int]] = [[] for _ in requests]
    for new in decoder.steps(requests):
        peak = max(peak, decoder.stats().cache_bytes)
        for index, token in new.items():
            filled[index].append(token)
    alone = [Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad).fill([one])[0] for one in requests]
    assert filled == alone and 0 < peak <= most and decoder.stats().cache_bytes == 0
