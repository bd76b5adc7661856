"""Triton's kernels of a decode step give what PyTorch's give; where they do not, they are not used.

Without a GPU, Triton's interpreter runs them on the CPU, in a process of its own: which way a kernel goes is settled when
Triton is imported. `pytest -m gpu` runs them on a GPU.
"""

import json
import logging
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from test_decoder import PROMPTS, drawing, question
from test_engine_on_a_gpu import is_captured, make_engine, mix

pytest.importorskip("triton")

from conftest import tiny_model

import unimm.inference.decode.cache_memory as cache_memory_module
import unimm.inference.decode.running_batch as running_batch_module
import unimm.inference.decode.step as step_module
from unimm.bench.kernels import EXAMPLE, Recorder, check_shapes, compile_ahead
from unimm.inference.decode.kv_cache import RowCache
from unimm.inference.decode.paged_cache import PagedCache
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.inference.kernels.decode_kernels import DecodeKernels, TorchLayer
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.inference.kernels.triton_layers import LONG_SPLIT, MOST_SPLITS, TritonLinear, is_interpreted


@pytest.mark.parametrize(("count", "begin"), [(10, 382), pytest.param(30, 0, marks=pytest.mark.slow(seconds=20))])
def test_random_shapes_are_those_of_pytorch_in_the_interpreter(count: int, begin: int) -> None:
    """All trunks, both dtypes, with int8 and without, windows, odd widths. Five launches a layer. Ten small ones first."""
    command = [sys.executable, "-m", "unimm.bench.kernels", "check", str(count), str(begin), "cpu"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True)
    check_found(json.loads(done.stdout), count)


@pytest.fixture(scope="module")
def interpreted() -> str:
    """What pytest says of both tests that follow where Triton's kernels are interpreted, in a process of its own."""
    if is_interpreted():
        return ""
    command = [sys.executable, "-m", "pytest", "-m", "slow", "-rA", __file__, "-k", "an_engine_in_the_interpreter"]
    return subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True).stdout


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("is_deterministic", [False, True], ids=["windows", "padding"])
def test_an_engine_in_the_interpreter_draws_what_pytorch_draws(is_deterministic: bool, interpreted: str) -> None:
    """A long text beside a guided drawing: with windows; and in steps of one size, whose padding sees nothing."""
    if not is_interpreted():
        which = "padding" if is_deterministic else "windows"
        passed = rf"^PASSED \S+::test_an_engine_in_the_interpreter_draws_what_pytorch_draws\[{which}\]$"
        assert re.search(passed, interpreted, re.MULTILINE), interpreted
        return
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    reference = make_engine("cpu", sizes)
    requests = [
        Request(question(reference, "one two three " * 20, 4), Sampling(1.0, seed=8)),
        Request(drawing(reference, PROMPTS[1], 5), Sampling(1.0, seed=1), 3.0),
    ]
    limits = Limits(max_rows=4, window=1 if is_deterministic else 2)
    engine = make_engine("cpu", sizes, kernels="triton", limits=limits, deterministic=is_deterministic)
    assert engine.decoder.fill(requests) == reference.decoder.fill(requests)
    running = engine.decoder._running
    assert isinstance(running._cache, PagedCache) and running.kernels.launches >= 5 * 4 and running.kernels.reads_blocks


def check_found(found: list[dict[str, Any]], count: int) -> None:
    assert len(found) == count and {one["launches"] for one in found} == {5}
    wrong = [one for one in found if max(one["errors"].values()) > one["most"]]
    assert not wrong, wrong
    assert {one["shape"]["trunk"] for one in found} == {"llama", "qwen2", "qwen3"}
    assert {one["shape"]["weights"] for one in found} == {None, "int8"}
    assert {one["shape"]["dtype"] for one in found} == {"bfloat16", "float32"}


@pytest.mark.gpu
def test_large_shapes_are_those_of_pytorch_on_a_gpu() -> None:
    """Six, for each is compiled anew, five seconds of a processor; more by `python -m unimm.bench.kernels check 60 0 cuda`."""
    check_found(check_shapes(6, torch.device("cuda"), 52), 6)


@pytest.mark.slow
@pytest.mark.skipif(is_interpreted(), reason="kernels are interpreted")
def test_they_are_compiled_for_a_gpu_without_one() -> None:
    compiled = compile_ahead(EXAMPLE, 90)
    names = ["qkv_kernel", "attend_kernel", "output_kernel", "gate_kernel", "linear_kernel"]
    assert [one["kernel"] for one in compiled] == names
    for one in compiled:
        assert one["registers"] <= 255 and one["spilled"] == 0 and one["shared"] <= 227 * 1024, one


def test_on_a_cpu_they_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="for CUDA devices: leave out kernels='triton'"):
        make_engine("cpu", kernels="triton")
    with pytest.raises(ValueError, match="no kernels 'cuda': choose one of torch, triton"):
        make_engine("cpu", kernels="cuda")
    assert make_engine("cpu", kernels="torch").decoder.stats().num_rows == 0


def test_what_they_do_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="int8 weights, not int4"):
        DecodeModel(tiny_model(400).bfloat16(), "int4", Recorder())
    with pytest.raises(ValueError, match="for trunks of llama, qwen2, qwen3"):
        Recorder().check(None, is_known=False)


@torch.inference_mode()
def test_kernels_that_are_wrong_are_not_used_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Here they compute nothing: what they give is whatever memory held."""
    model, x, positions = tiny_model(400), torch.randn(2, 64), torch.tensor([0, 0])
    with caplog.at_level(logging.WARNING):
        careful = DecodeModel(model, None, Recorder())
    assert caplog.text.count("Triton's kernels are not used, but PyTorch's: in layer 0 they differ") == 1
    expected = DecodeModel(model).advance(x, positions, 1, RowCache(2))
    torch.testing.assert_close(careful.advance(x, positions, 1, RowCache(2)), expected)


@pytest.mark.parametrize("most", [None, 10**6])
def test_an_engine_whose_kernels_are_wrong_has_rows_without_blocks(
    most: int | None, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(running_batch_module, "kernels_of", lambda device, name=None: Recorder())
    engine = make_engine("cpu", limits=Limits(max_cache_bytes=most))
    assert isinstance(engine.decoder._running._cache, PagedCache)
    assert engine.decoder.fill(mix(engine)) == tiny_engine.decoder.fill(mix(tiny_engine))
    assert not isinstance(engine.decoder._running._cache, PagedCache) and "Triton's kernels are not used" in caplog.text


class Falsified(Recorder):
    """Right in all but one operation of one layer."""

    def __init__(self, operation: str, number: int) -> None:
        super().__init__()
        self.operation, self.at, self.made = operation, number, []

    def layer(self, layer: Any, weights: str | None = None) -> Any:
        made = TorchLayer(DecodeKernels(self.device), layer, weights)
        if len(self.made) == self.at:
            true = getattr(made, self.operation)
            setattr(made, self.operation, lambda *args: falsified(true(*args), *args))
        self.made.append(made)
        return made


def falsified(given: Any, *args: Any) -> Any:
    """A thousandth more; of what is projected only in the keys."""
    if isinstance(given, tuple):
        args[2].keys.mul_(1.001)
        return given[0], given[1] * 1.001, given[2]
    return given * 1.001


@pytest.mark.parametrize(
    ("operation", "number", "told"),
    [
        ("project", 1, "in layer 1 they differ from them in keys by 0.001, older keys by 0.001, attention by"),
        ("attend", 0, "in layer 0 they differ from them in attention by"),
        ("gate", 1, "in layer 1 they differ from them in gate and up by 0.001 of"),
        ("add_down", 1, "in layer 1 they differ from them in down by 0.001 of"),
        ("", 5, ""),
    ],
)
def test_a_single_false_operation_is_found_and_named(
    operation: str, number: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = Falsified(operation, number)
    layers = kernels.layers(tiny_model(400).trunk.layers)
    assert told in caplog.text and bool(caplog.records) == bool(told) == kernels.has_failed
    assert kernels.is_checked and all((layer in kernels.made) != bool(told) for layer in layers)
    assert not told or "of what is computed, more than 0.0001" in caplog.text


def test_kernels_that_raise_are_not_used_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Recorder):
        def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **blocks: Any) -> None:
            raise RuntimeError("no such instruction\nand much more")

    kernels = Raising()
    assert isinstance(kernels.layers(tiny_model(400).trunk.layers)[1], TorchLayer)
    assert "the first step of layer 0 failed (RuntimeError: no such instruction)" in caplog.text


def test_heads_are_pytorchs_too_where_layers_differ(caplog: pytest.LogCaptureFixture) -> None:
    kernels, head = Recorder(), torch.nn.Linear(32, 48).bfloat16()
    assert isinstance(kernels.linear([head], "int8"), TritonLinear)
    kernels.layers([layer.bfloat16() for layer in tiny_model(400).trunk.layers], None)
    assert kernels.has_failed and not isinstance(kernels.linear([head]), TritonLinear)


def test_other_activations_and_dtypes_are_pytorchs(caplog: pytest.LogCaptureFixture) -> None:
    layer: Any = tiny_model(400).trunk.layers[0]
    assert isinstance(Recorder().layers([layer.half()])[0], TorchLayer) and "not torch.float16" in caplog.text
    layer.float().mlp.act_fn = torch.nn.GELU()
    assert isinstance(Recorder().layers([layer])[0], TorchLayer) and "SiLU, not GELU" in caplog.text


def test_keys_are_split_for_processors_and_all_are_read() -> None:
    kernels = Recorder()
    kernels.num_processors = 132
    for programs in (1, 16, 64, 4096):
        for used in (1, 32, 65, 700, 4096):
            num_splits, chunk = kernels.splits(programs, used)
            assert 1 <= num_splits <= MOST_SPLITS and (num_splits - 1) * chunk < used <= num_splits * chunk
    assert kernels.splits(4096, LONG_SPLIT)[0] == 1 and kernels.splits(16, 4096)[0] == MOST_SPLITS
    assert kernels.splits(4096, 3 * LONG_SPLIT) == (3, LONG_SPLIT)


class Replayed:
    """A stand-in for graphs: what was recorded of a shape is run again, with the tensors that it closed over."""

    def __init__(self, device: torch.device) -> None:
        self._works: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._works)

    def run(self, shape: Any, work: Any, changed: list[torch.Tensor]) -> Any:
        assert all(tensor.device.type == "cpu" for tensor in changed)
        return self._works.setdefault(shape, work)()


def replay_steps(monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    """Engines that are made from now on have captured steps over rows of one length, as on a GPU; returns their graphs."""
    made: list[Replayed] = []

    def make(model: DecodeModel) -> Replayed:
        made.append(Replayed(torch.device("cpu")))
        return made[-1]

    monkeypatch.setattr(step_module, "make_graphs", make)
    monkeypatch.setattr(cache_memory_module, "has_cpu_decode", lambda model: False)
    return made


@pytest.mark.parametrize("window", [1, 3])
def test_steps_with_windows_are_captured_and_draw_the_same(
    window: int, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, guidance that begins late, texts beside drawings: the same ids from graphs that are used again."""
    expected = tiny_engine.decoder.fill(mix(tiny_engine))
    replayed = replay_steps(monkeypatch)
    engine = make_engine("cpu", limits=Limits(window=window))
    assert engine.decoder.fill(mix(engine)) == expected
    recorded = len(replayed[-1])
    assert engine.decoder.fill(mix(engine)) == expected and len(replayed[-1]) == recorded > 0


@pytest.mark.parametrize("window", [1, 4])
def test_steps_that_are_captured_ahead_are_those_that_are_made(
    window: int, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawings are the same; and where windows are not cut short at the end, nothing more is recorded for them."""
    expected = tiny_engine.generate_codes("a red circle", num_images=4, seed=3)
    replayed = replay_steps(monkeypatch)
    engine = make_engine("cpu", limits=Limits(max_rows=8, window=window))
    count = engine.capture_steps()
    assert count == len(replayed[-1]) > 0
    assert torch.equal(engine.generate_codes("a red circle", num_images=4, seed=3), expected)
    assert len(replayed) == 1 and (window > 1 or len(replayed[0]) == count)


def test_steps_that_were_captured_go_on_with_new_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a policy learns between its rollouts: where weights are read in place, nothing is recorded again."""
    replayed = replay_steps(monkeypatch)
    monkeypatch.setattr(running_batch_module, "kernels_of", lambda device, name=None: DecodeKernels(device))
    engine, reference = make_engine("cpu"), make_engine("cpu")
    old = engine.decoder.fill(mix(engine))
    recorded = [len(one) for one in replayed]
    changed = [(name, one.detach() * 1.3) for name, one in engine.model.named_parameters() if "proj" in name or "head" in name]
    for one in (engine, reference):
        one.update_weights(changed)
    new = engine.decoder.fill(mix(engine))
    assert recorded == [len(one) for one in replayed][: len(recorded)] and recorded[0] > 0
    assert new == reference.decoder.fill(mix(reference)) != old


def test_steps_are_not_captured_over_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    replay_steps(monkeypatch)
    engine = make_engine("cpu")
    engine.decoder.submit(mix(engine)[0])
    with pytest.raises(RuntimeError, match="captured before there are requests"):
        engine.capture_steps()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("trunk", "limits"),
    [
        ({}, Limits(max_rows=16, window=1)),
        ({"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 2}, Limits(max_rows=4, window=4)),
    ],
    ids=["llama", "qwen3 with windows"],
)
def test_an_engine_with_them_draws_what_a_cpu_draws(trunk: dict[str, Any], limits: Limits) -> None:
    """16 positions a step at most: more of them in float32 take the compiler twenty seconds."""
    reference = make_engine("cpu", trunk)
    engine = make_engine("cuda", trunk, kernels="triton", limits=limits)
    assert not engine.decoder._running.kernels.has_failed  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(2):
        assert engine.decoder.fill(mix(engine)) == reference.decoder.fill(mix(reference))
    assert is_captured(engine)


@pytest.mark.gpu
@pytest.mark.parametrize("weights", [None, "int8"])
def test_an_engine_with_them_draws_to_the_end_in_bfloat16(weights: str | None) -> None:
    engine = make_engine("cuda", None, torch.bfloat16, kernels="triton", weights=weights, limits=Limits(max_rows=16))
    assert not engine.decoder._running.kernels.has_failed  # pyright: ignore[reportAttributeAccessIssue]
    filled = engine.decoder.fill(mix(engine))
    assert engine.decoder.fill(mix(engine)) == filled
    assert [len(ids) for ids in filled] == [request.blank.limit for request in mix(engine)]
