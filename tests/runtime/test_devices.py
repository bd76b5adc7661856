"""What is chosen follows the device: by its instructions, and on a CPU by a short trial."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from unimm.runtime import devices
from unimm.runtime.devices import bf16_is_faster, choose_device, choose_dtype, choose_precision, cpu_has_bf16, why_not_compile
from unimm.training.loop import Loop

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    """A processor with AVX2 and nothing newer, as far as it is asked."""
    monkeypatch.setenv("UNIMM_CPU", "avx2")
    bf16_is_faster.cache_clear()
    yield
    bf16_is_faster.cache_clear()


def test_precision_is_as_asked_or_as_the_device_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [choose_precision(asked, CPU) for asked in ("no", "bf16")] == ["no", "bf16"]
    for is_faster, precision in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(devices, "bf16_is_faster", lambda is_faster=is_faster: is_faster)
        assert choose_precision("auto", CPU) == precision
    with pytest.raises(ValueError, match="Unknown precision 'fp8': use auto, no or bf16"):
        choose_precision("fp8", CPU)


def test_a_small_processor_never_emulates_bf16(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_seconds_of_products", lambda dtype: pytest.fail("there is nothing to try"))
    assert not cpu_has_bf16() and not bf16_is_faster() and choose_precision("auto", CPU) == "no"


def test_a_trial_decides_between_what_there_are_instructions_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    for seconds, is_faster in (
        ({torch.bfloat16: 1.0, torch.float32: 2.0}, True),
        ({torch.bfloat16: 2.0, torch.float32: 1.0}, False),
    ):
        bf16_is_faster.cache_clear()
        monkeypatch.setattr(devices, "_seconds_of_products", seconds.__getitem__)
        assert bf16_is_faster() is is_faster
    bf16_is_faster.cache_clear()


def test_libraries_take_a_larger_processor_for_a_small_one() -> None:
    code = "import unimm, torch; print(torch.backends.cpu.get_cpu_capability())"
    said = subprocess.run([sys.executable, "-c", code], env={**os.environ, "UNIMM_CPU": "avx2"}, capture_output=True, text=True)
    assert said.stdout.strip() in ("AVX2", "DEFAULT"), said.stderr


def test_another_small_processor_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMM_CPU", "sse2")
    with pytest.raises(ValueError, match="UNIMM_CPU=sse2 is unknown"):
        cpu_has_bf16()


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_there_is_one_cpu(device: str | torch.device) -> None:
    assert choose_device(device) == CPU


@pytest.mark.parametrize(
    "device", ["meta", "xpu", "xpu:0", "npu", "hpu", "cpu:1", "mps:1", "cuda:x", "vulkan", "cuda:", 0, "", "x" * 10_000]
)
def test_devices_that_are_none_are_one_sentence(device: str) -> None:
    with pytest.raises(ValueError, match=r"^Unknown device '.*': use cuda, cuda:N, mps or cpu\.$") as refused:
        choose_device(device)
    assert len(str(refused.value)) < 150


def test_a_device_that_is_not_here_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: 2 * there)
        if not there:
            for device in ("cuda", "cuda:0", "mps"):
                with pytest.raises(ValueError, match=r"^No (CUDA|MPS) device is here"):
                    choose_device(device)
    assert [str(choose_device(device)) for device in (None, "cuda", "cuda:1", "mps:0")] == ["cuda", "cuda", "cuda:1", "mps"]
    with pytest.raises(ValueError, match="There is no cuda:2: 2 CUDA devices are here"):
        choose_device("cuda:2")


def test_dtypes_are_those_that_a_model_computes_in() -> None:
    for dtype in ("fp32", "float32", "torch.float32", torch.float32):
        assert choose_dtype(dtype, CPU) == torch.float32
    for dtype in (torch.int8, torch.complex64, torch.float64, torch.float8_e4m3fn, "int4", 16, torch.bool):
        with pytest.raises(ValueError, match=r"^Unknown dtype '"):
            choose_dtype(dtype, CPU)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_without_bf16_never_emulates_it(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in an engine, not in a training, not in Muon's products."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16)
    cuda = torch.device("cuda")
    assert choose_dtype(None, cuda) == (torch.bfloat16 if has_bf16 else torch.float16)
    assert choose_precision("auto", cuda) == ("bf16" if has_bf16 else "no")
    loop = SimpleNamespace(accelerator=SimpleNamespace(device=cuda))
    assert Loop.muon_dtype.__get__(loop) == (torch.bfloat16 if has_bf16 else torch.float32)


@pytest.fixture
def untried():
    """Nothing of torch.compile is known yet, nor kept of what a test made of it."""
    why_not_compile.cache_clear()
    yield
    why_not_compile.cache_clear()


def test_why_compiling_fails_is_the_line_that_says_it(untried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(x: torch.Tensor) -> None:
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler\n\nSet TORCH_LOGS")

    monkeypatch.setattr(torch, "compile", lambda work: run)
    assert why_not_compile() == "InvalidCxxCompiler: No working C++ compiler"


def test_compiling_is_tried_where_the_training_is(untried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may have a compiler for its CPU and a GPU that is too old, or the other way round."""

    def run(x: torch.Tensor) -> None:
        if x.device.type == "meta":
            raise RuntimeError("This device is too old.\nMuch more.")

    monkeypatch.setattr(torch, "compile", lambda work: run)
    assert why_not_compile() is None and why_not_compile("meta") == "This device is too old."
    for device, works in (("cpu", True), ("meta", False)):
        config, accelerator = SimpleNamespace(compile=True), SimpleNamespace(device=torch.device(device))
        assert Loop.compiles(SimpleNamespace(loop_config=config, accelerator=accelerator, is_main=False)) == works  # pyright: ignore
