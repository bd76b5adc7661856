"""What torch is asked of graphics cards, by stand-ins; and how fast this machine's CPU is, which is true everywhere."""

from types import SimpleNamespace

import pytest
import torch

from unimm.diagnosis import torch_probe
from unimm.runtime.devices import measure_speed

GIB = 2**30


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one that this torch has no kernels for, and a lost one."""

    def properties(number: int) -> SimpleNamespace:
        if number == 1:
            raise RuntimeError("CUDA error: uncorrectable ECC error\nmore")
        return SimpleNamespace(name="GTX 750", total_memory=2 * GIB)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (5, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (GIB, 2 * GIB))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)

    def ones(size: int, device: str) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "ones", ones)


def test_cards_that_do_not_work_are_read(two_cards: None) -> None:
    devices = torch_probe.read_devices()
    old, lost = devices["cards"]
    assert (old["name"], old["capability"], old["has_bf16"]) == ("GTX 750", "5.0", False)
    assert old["free"] == GIB and "no kernel image" in old["why_not"]
    assert lost == {"failed": "RuntimeError: CUDA error: uncorrectable ECC error more"}


def test_warnings_of_a_driver_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        import warnings

        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old\n(found version 11040).", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    said = torch_probe.read_devices()["warnings"]
    assert said == ["CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."]


def test_a_speed_is_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of 512 x 512 matrices is 2 * 512^3 operations, a convolution 2 * 9 * 64 for each value."""
    ticks = iter(range(100))
    monkeypatch.setattr("unimm.runtime.devices.time.perf_counter", lambda: next(ticks))
    monkeypatch.setattr("unimm.runtime.devices.MAX_TRIAL_SECONDS", 10)
    speed = measure_speed(torch.float32)
    assert speed.seconds == 2
    assert speed.product == pytest.approx(2 * 512**3 / 1e9) and speed.convolution == pytest.approx(
        2 * 9 * 64 * 4 * 64 * 32 * 32 / 1e9
    )


def test_what_is_slow_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("unimm.runtime.devices.F.conv2d", lambda *words, **more: calls.append(1) or torch.ones(1))
    ticks = iter(range(0, 1000, 3))
    monkeypatch.setattr("unimm.runtime.devices.time.perf_counter", lambda: next(ticks))
    assert measure_speed(torch.float32).seconds == 6 and len(calls) == 1
