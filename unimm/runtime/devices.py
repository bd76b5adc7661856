"""The device and the dtype to use by default; and how a process keeps its memory on a CPU."""

import ctypes
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import psutil
import torch
import torch.nn.functional as F

from unimm.runtime.environment import within_cgroup

PRECISIONS = ("auto", "no", "bf16")

CPU = torch.device("cpu")

MAX_TRIAL_SECONDS = 0.5
"""After which a dtype that is so slow is not tried once more."""

LARGE = 200_000_000
"""Parameters from which a CPU gains more from reading half the bytes than it loses by the conversions around it."""


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The given device, or the best that is here: cuda, mps, cpu. There is one cpu and one mps, which "cpu:0" names, too.

    Raises:
        ValueError: the device that was asked for is not here, or unknown to unimm.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    named = re.fullmatch(r"(cuda):([0-9]{1,3})|(cuda|mps|cpu)|(mps|cpu):0", str(device))
    if named is None:
        raise ValueError(f"Unknown device '{str(device)[:60]}': use cuda, cuda:N, mps or cpu.")
    kind, number = named[1] or named[3] or named[4], None if named[2] is None else int(named[2])
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("No CUDA device is here: leave the device out, or use cpu.")
    if kind == "cuda" and number is not None and number >= torch.cuda.device_count():
        raise ValueError(f"There is no {device}: {torch.cuda.device_count()} CUDA devices are here, from cuda:0 on.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("No MPS device is here: leave the device out, or use cpu.")
    return torch.device(kind) if number is None else torch.device(kind, number)


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device, num_parameters: int | None = None) -> torch.dtype:
    """The given dtype, or a sensible one for running a model of that size on that device.

    cuda: bfloat16, float16 where the card has none. mps: float16. cpu: bfloat16 for large models where the processor has
    instructions for it, else float32.

    Raises:
        ValueError: it is another dtype than float32, bfloat16 or float16.
    """
    if dtype is not None:
        names = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
        names |= {"float16": torch.float16, "fp16": torch.float16}
        name = str(dtype).removeprefix("torch.")
        if name not in names:
            few_bits = " (for fewer bits see `weights` of unimm.load)" if "8" in name else ""
            raise ValueError(f"Unknown dtype '{name[:60]}': use one of {', '.join(names)}{few_bits}.")
        return names[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if (num_parameters or 0) >= LARGE and cpu_has_bf16() else torch.float32


def free_memory(device: torch.device) -> int:
    """Bytes that are free now: of a GPU, or of this machine's memory, as far as a container or job may take it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return within_cgroup(psutil.virtual_memory().available)


def cpu_has_bf16() -> bool:
    """Whether this processor has instructions that multiply bfloat16 matrices (AMX or AVX-512 BF16).

    Without them oneDNN emulates bfloat16, 20 to 50 times slower than float32. UNIMM_CPU=avx2 makes a larger processor say no.
    """
    if small_cpu():
        return False
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capability.get("amx_bf16") or capability.get("avx512_bf16"))


def cpu_has_vnni() -> bool:
    """Whether this processor adds up products of 8-bit integers exactly (AVX-512 VNNI); with UNIMM_CPU=avx2 none does."""
    return not small_cpu() and torch.cpu._is_vnni_supported()


def small_cpu() -> bool:
    """Whether UNIMM_CPU=avx2 is set: treat this processor as one with AVX2 and nothing newer, for tests and benchmarks.

    Raises:
        ValueError: the variable has another value.
    """
    asked = os.environ.get("UNIMM_CPU", "")
    if asked not in ("", "avx2"):
        raise ValueError(f"UNIMM_CPU={asked} is unknown: use avx2, or leave it out.")
    return asked == "avx2"


def check_precision(precision: str) -> None:
    """Raises ValueError where it is none of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision '{precision}': use {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}.")


def choose_precision(precision: str, device: torch.device) -> str:
    """What a training or a pass over data computes in: "no" (float32) or "bf16" (autocast to bfloat16).

    precision: one of these, or "auto": bf16 on a GPU with instructions for it, and on a CPU where a trial finds it faster.

    Raises:
        ValueError: it is none of PRECISIONS.
    """
    check_precision(precision)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if device.type == "cpu" and bf16_is_faster() else "no"


def has_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_bf16()


def evaluation_precision(precision: str) -> str:
    """One of PRECISIONS; what is scored in float32 may also be said to be "fp32". Raises ValueError where it is none."""
    precision = "no" if precision == "fp32" else precision
    check_precision(precision)
    return precision


def evaluation_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a model's weights while it is scored: float32 for "no" or "fp32", bfloat16 for "bf16"; for "auto" what
    `choose_precision` finds faster on a CPU, and `choose_dtype`'s on a GPU.

    Raises:
        ValueError: it is none of PRECISIONS.
    """
    chosen = choose_precision(evaluation_precision(precision), device)
    if precision == "auto" and device.type != "cpu":
        return choose_dtype(None, device)
    return torch.bfloat16 if chosen == "bf16" else torch.float32


@cache
def bf16_is_faster() -> bool:
    """Whether this CPU computes a product and a convolution faster in bfloat16 than in float32: tried once a process, about
    a tenth of a second; not tried where there are no instructions for it."""
    if not cpu_has_bf16():
        return False
    return _seconds_of_products(torch.bfloat16) < _seconds_of_products(torch.float32)


def _seconds_of_products(dtype: torch.dtype) -> float:
    """Of a matrix product and a convolution on this CPU."""
    return measure_speed(dtype).seconds


@dataclass(frozen=True)
class Speed:
    """Of a device in one dtype: GFLOP/s of a matrix product and of a convolution, and the seconds that one of each took."""

    product: float
    convolution: float
    seconds: float


@torch.inference_mode()
def measure_speed(dtype: torch.dtype, device: torch.device = CPU) -> Speed:
    """Tried in about a tenth of a second, or as long as it takes once: how fast a device computes in a dtype."""
    size, count = (512, 4) if device.type == "cpu" else (4096, 256)
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    image = torch.ones(count, 64, 32, 32, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    kernel = torch.ones(64, 64, 3, 3, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    product = _shortest(lambda: matrix @ matrix, device)
    convolution = _shortest(lambda: F.conv2d(image, kernel, padding=1), device)
    counted = 2e-9 * size**3 / product, 2e-9 * image.numel() * kernel[0].numel() / convolution
    return Speed(*counted, product + convolution)


def _shortest(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds of the shortest of three calls, after one that prepares them; of fewer where they take long."""
    times = []
    while len(times) < 4 and sum(times) < MAX_TRIAL_SECONDS:
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:] or times)


@cache
def why_not_compile(device: torch.device | str = "cpu") -> str | None:
    """Why torch.compile does not work for a device, or None where it does: for a CPU it needs a C++ compiler and Python's
    headers; for a GPU Triton, which needs a C compiler and no card that is too old. Tried once a process.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(16, device=device))
    except RuntimeError as error:  # what dynamo and inductor raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if not line.endswith("raised:")), type(error).__name__)
    return None


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEPT_BYTES = 2**31 - 1


def keep_memory() -> bool:
    """Let the C library keep freed memory for the next tensors, up to 2 GiB, for the whole process.

    Otherwise it returns large blocks to the system and requests them again, page by page, at every operation: a fifth to a
    third of the time of a training step or an image's decoding on a CPU (recipes/LOG.md). UNIMM_KEEP_MEMORY=0 changes nothing.

    Returns:
        Whether it was done: only glibc (Linux) has the switch.
    """
    if not sys.platform.startswith("linux") or os.environ.get("UNIMM_KEEP_MEMORY") == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: KEPT_BYTES, M_TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
