"""What is chosen follows the device: by its instructions, and on a CPU by a short trial."""

import os
import subprocess
import sys

import pytest
import torch

from unimm import devices
from unimm.devices import bf16_is_faster, choose_precision, cpu_has_bf16

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
