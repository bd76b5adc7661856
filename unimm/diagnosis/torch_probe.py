"""Readings by torch: devices, speeds, our kernels, torch.compile. Each may end its process, which is therefore another one."""

import time
import warnings
from pathlib import Path
from typing import Any

import unimm
from unimm.diagnosis.readings import Reading, reason_of, take
from unimm.native import load_library

DTYPES = ("float32", "bfloat16", "float16")


def read_kernels() -> Reading:
    """Our C++: compiled now where it was not."""
    kernels = {}
    for source in sorted(Path(unimm.__file__).parent.rglob("*.cpp")):
        started = time.monotonic()
        try:
            load_library(source)
            why_not = None
        except OSError as error:
            why_not = str(error)
        kernels[source.stem] = {"why_not": why_not, "seconds": round(time.monotonic() - started, 1)}
    return {"kernels": kernels}


def read_torch() -> Reading:
    """How it was built, and what it takes the processor for."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch
    capabilities = dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "threads": torch.get_num_threads(),
        "kernels_for": torch.backends.cpu.get_cpu_capability(),
        "capabilities": {name: value for name, value in capabilities.items() if isinstance(value, bool | str | int)},
        "has_onednn": torch.backends.mkldnn.is_available(),
        "why_no_numpy": _why_no_numpy(),
        "warnings": _lines(caught),
    }


def read_devices() -> Reading:
    """What torch can use, and what it says where it cannot."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
        cards = [
            take(lambda number=number: _read_card(number)) for number in range(torch.cuda.device_count() if has_cuda else 0)
        ]
    return {
        "has_cuda": has_cuda,
        "cards": cards,
        "has_mps": torch.backends.mps.is_available(),
        "is_built_for_mps": torch.backends.mps.is_built(),
        "warnings": _lines(caught),
    }


def _read_card(number: int) -> Reading:
    import torch

    properties, major_minor = torch.cuda.get_device_properties(number), torch.cuda.get_device_capability(number)
    free, total = torch.cuda.mem_get_info(number)
    return {
        "name": properties.name,
        "capability": ".".join(map(str, major_minor)),
        "total": total,
        "free": free,
        "has_bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "why_not": _why_no_sum(number),
    }


def _why_no_sum(number: int) -> str | None:
    """Why a card cannot even add: a torch that was not built for it, a driver that does not fit."""
    import torch

    try:
        total = torch.ones(4, device=f"cuda:{number}").sum().item()
    except RuntimeError as error:
        return reason_of(error)
    return None if total == 4 else f"the sum of four ones is {total}"


def read_choices() -> Reading:
    """What unimm would use, from the functions that choose it."""
    import torch

    from unimm.runtime.devices import LARGE, choose_device, choose_dtype, choose_precision, cpu_has_bf16, keep_memory

    device = choose_device()
    return {
        "device": str(device),
        "dtype": str(choose_dtype(None, device, 1)).removeprefix("torch."),
        "dtype_large": str(choose_dtype(None, device, LARGE)).removeprefix("torch."),
        "large": LARGE,
        "precision": choose_precision("auto", device),
        "has_bf16": cpu_has_bf16() if device.type == "cpu" else choose_precision("auto", device) == "bf16",
        "threads": torch.get_num_threads(),
        "keeps_memory": device.type == "cpu" and keep_memory(),
    }


def read_speeds() -> Reading:
    """GFLOP/s of a product and a convolution, of the CPU and of the device that unimm would use."""
    import torch

    from unimm.runtime.devices import choose_device, measure_speed

    devices = {"cpu": torch.device("cpu")} | {(where := choose_device()).type: where}
    speeds: Reading = {}
    for name, device in devices.items():
        speeds[name] = {
            dtype: take(lambda dtype=dtype, device=device: _speed(measure_speed(getattr(torch, dtype), device)))
            for dtype in DTYPES
        }
    return speeds


def _speed(measured: Any) -> Reading:
    return {"product": round(measured.product, 1), "convolution": round(measured.convolution, 1)}


def read_compile() -> Reading:
    """Whether torch.compile works on the device that unimm would use; it compiles a small function, if none is kept."""
    from unimm.runtime.devices import choose_device, why_not_compile

    started = time.monotonic()
    why_not = why_not_compile(choose_device())
    return {"why_not": why_not, "seconds": round(time.monotonic() - started, 1)}


def _why_no_numpy() -> str | None:
    import numpy as np
    import torch

    try:
        torch.from_numpy(np.ones(1)).numpy()
    except RuntimeError as error:
        return reason_of(error)
    return None


def _lines(caught: list[warnings.WarningMessage]) -> list[str]:
    """Each once, in one line."""
    return list(dict.fromkeys(" ".join(str(one.message).split())[:400] for one in caught))
