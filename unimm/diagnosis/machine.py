"""Readings of the machine itself, without torch: system, processor, threads, memory, disks, graphics cards."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from unimm.diagnosis.readings import Reading, reason_of, take
from unimm.native import kept_libraries
from unimm.runtime.environment import (
    PREPARED,
    allowed_cores,
    cgroup_memory,
    cgroup_quota,
    processor_flags,
    processor_name,
    usable_cores,
    within_cgroup,
)

X86 = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AMX INT8": "amx_int8",
    "AMX BF16": "amx_bf16",
}
ARM = {"NEON": "asimd", "SVE": "sve", "I8MM": "i8mm", "BF16": "bf16"}
"""Instruction sets, and what Linux calls them."""

THREAD_SETTINGS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT"),
    *("OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "OMP_DYNAMIC", "MKL_DYNAMIC"),
)

WRITTEN = 1 << 20
"""Bytes that are written, and vanish, to see whether a folder takes any."""

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader,nounits")


def read_system() -> Reading:
    """The operating system, and whether it is a container."""
    is_linux = sys.platform.startswith("linux")
    release = take(platform.freedesktop_os_release) if is_linux else {}
    name = release.get("PRETTY_NAME") or " ".join(filter(None, [platform.system(), platform.mac_ver()[0]]))
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return {
        "name": name,
        "family": f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".split() or [sys.platform],
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "is_container": any(mark.exists() for mark in marks) or bool(os.environ.get("KUBERNETES_SERVICE_HOST")),
        "is_wsl": "microsoft" in platform.release().lower(),
    }


def read_processor() -> Reading:
    """Its name and instruction sets (None where the system does not say), and the setting of UNIMM_CPU."""
    flags, sets = processor_flags(), ARM if platform.machine().lower() in ("aarch64", "arm64") else X86
    return {
        "name": processor_name(),
        "instructions": {name: flag in flags for name, flag in sets.items()} if flags else None,
        "UNIMM_CPU": os.environ.get("UNIMM_CPU"),
    }


def read_threads() -> Reading:
    """Cores that are there, allowed and paid for, how busy they are, and the variables that limit libraries' threads."""
    import psutil

    busy = psutil.cpu_percent(interval=0.25) / 100 * (psutil.cpu_count() or 1)
    return {
        "cores": os.cpu_count(),
        "allowed": allowed_cores(),
        "quota": cgroup_quota(),
        "usable": usable_cores(),
        "busy": round(busy, 1),
        "settings": {name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ},
        "set_by_unimm": sorted(PREPARED),
    }


def read_memory() -> Reading:
    """In bytes: of the machine, of the cgroup (None: not limited), of the address space, and shared between processes."""
    import psutil

    memory, swap, limited = psutil.virtual_memory(), psutil.swap_memory(), cgroup_memory()
    shared = Path("/dev/shm")
    return {
        "total": memory.total,
        "available": within_cgroup(memory.available),
        "swap": swap.total,
        "cgroup_limit": None if limited is None else limited[0],
        "cgroup_used": None if limited is None else limited[1],
        "address_space_limit": _address_space_limit(),
        "shared": shutil.disk_usage(shared).free if shared.is_dir() else None,
    }


def read_disks(hub_cache: str | None) -> Reading:
    """Of the folders that unimm writes to: where, free bytes, why nothing can be written.

    hub_cache: the hub's, where it is known.
    """
    folders = {
        "current folder": Path.cwd,
        "temporary files": lambda: Path(tempfile.gettempdir()),
        "compiled kernels": kept_libraries,
        "torch.compile": _compiled_by_torch,
    }
    if hub_cache is not None:
        folders["hub cache"] = lambda: Path(hub_cache)
    return {
        "TMPDIR": os.environ.get("TMPDIR"),
        "folders": {use: take(lambda at=at: _read_folder(at())) for use, at in folders.items()},
    }


def read_gpus() -> Reading:
    """What there is beside torch's view of it: NVIDIA's driver and its cards, AMD's driver, and what is hidden."""
    driver = Path("/proc/driver/nvidia/version")
    return {
        "nvidia_driver": driver.read_text(encoding="utf-8").splitlines()[0] if driver.is_file() else None,
        **_ask_nvidia(),
        "has_amd": Path("/dev/kfd").exists(),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _ask_nvidia() -> Reading:
    path = shutil.which(NVIDIA_SMI[0])
    if path is None:
        return {"nvidia": None, "nvidia_failed": None}
    try:
        said = subprocess.run([path, *NVIDIA_SMI[1:]], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia": None, "nvidia_failed": reason_of(error)}
    if said.returncode:
        return {
            "nvidia": None,
            "nvidia_failed": " ".join((said.stdout + said.stderr).split())[:200] or f"exit code {said.returncode}",
        }
    names = ("name", "driver", "total_mib", "used_mib")
    lines = [[field.strip() for field in line.split(",")] for line in said.stdout.splitlines() if line.strip()]
    return {"nvidia": [dict(zip(names, fields, strict=False)) for fields in lines], "nvidia_failed": None}


def _read_folder(folder: Path) -> Reading:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    reading = {"path": str(folder), "exists": folder.exists(), "free": usage.free, "total": usage.total, "why_not": None}
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * WRITTEN)
    except OSError as error:
        reading["why_not"] = (error.strerror or str(error)).lower()
    return reading


def _compiled_by_torch() -> Path:
    """As torch._inductor has it, which takes seconds to import."""
    if given := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(given)
    return Path(tempfile.gettempdir())


def _address_space_limit() -> int | None:
    """Of `ulimit -v`, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft
