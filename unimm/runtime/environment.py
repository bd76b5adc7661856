"""Environment variables that are set before torch is imported: instruction set, threads (affinity and cgroup quota), waiting.

The command line sets them; in Python, set the variables, or call
`unimm.runtime.environment.prepare_threads()`, before the first import of torch. What the user has set is left alone.
"""

import math
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from itertools import pairwise
from pathlib import Path, PurePosixPath

SMALL_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""What UNIMM_CPU=avx2 stands for: libraries then take a larger processor for one with AVX2 and nothing newer."""

WAIT_PASSIVELY = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""For GNU's and for Intel's OpenMP: threads that wait for each other sleep. By default they spin, and use up their share of
a core that another process could use: a training beside one busy process then takes 3 to 4 times as long (recipes/LOG.md)."""

CGROUP = Path("/sys/fs/cgroup")

FEW_OF_CORES = 8
"""Data loading processes are few where there are so many times as many cores."""

UNLIMITED = 2**60
"""What a cgroup of version 1 calls no limit is above it."""

PREPARED: set[str] = set()
"""Variables that `prepare_threads` has set in this process; what else is there is the user's."""


def prepare_libraries() -> None:
    """Called by `import unimm`: apply UNIMM_CPU, and in commands the settings of threads."""
    if os.environ.get("UNIMM_CPU") == "avx2":
        os.environ |= SMALL_CPU
        # Kernels that torch.compile has kept of the larger processor give nan here.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "torchinductor_avx2")))
    if is_command(sys.orig_argv):
        prepare_threads()


def prepare_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Waiting threads sleep, and there are no more of them than a cgroup's quota of processor time lets run."""
    cores = usable_cores()
    for name, value in (WAIT_PASSIVELY | ({"OMP_NUM_THREADS": str(cores)} if cores < allowed_cores() else {})).items():
        if name not in environment:
            environment[name] = value
            PREPARED.add(name)


def is_command(argv: list[str]) -> bool:
    """Whether a process was started as `python -m unimm...`, as launchers do; argv: all its arguments, Python's own too."""
    return any(flag == "-m" and name.split(".")[0] == "unimm" for flag, name in pairwise(argv))


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by the quota of its cgroup (of a container, say)."""
    quota = cgroup_quota()
    return allowed_cores() if quota is None else max(1, min(allowed_cores(), math.ceil(quota)))


def loader_processes(num_workers: int) -> int:
    """The number of data loading processes: `num_workers`, but no more than this process' share of the cores, which it divides
    with a launcher's other processes on this machine (LOCAL_WORLD_SIZE). 0 stays 0."""
    return min(num_workers, max(1, usable_cores() // local_processes()))


def local_processes() -> int:
    """Processes of this run on this machine, this one among them, as a launcher says (LOCAL_WORLD_SIZE)."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def compute_threads(num_workers: int, environment: Mapping[str, str] = os.environ) -> int | None:
    """Threads for a training beside so many data loading processes of its own: the usable cores without theirs where they take
    an eighth of them at most. Where they would take more, as one of two cores, they run at a lower priority beside all threads:
    a worker is busy for a part of the time, and a core that is left to it alone is lost for the rest. None: as the user says
    (OMP_NUM_THREADS)."""
    if "OMP_NUM_THREADS" in environment and "OMP_NUM_THREADS" not in PREPARED:
        return None
    cores = usable_cores()
    return cores - num_workers if num_workers * FEW_OF_CORES <= cores else cores


def allowed_cores() -> int:
    """Cores in this process' affinity mask; all of the machine's where the system has none."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_quota(root: Path = CGROUP, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processor time that the cgroup of this process may use, in cores; None where it is not limited. Versions 2 and 1.

    What a cgroup above it may use limits it, too; inside of a container its path may be the host's, and only the root is there.
    """
    quotas = [quota for place in _cgroups(root, own) if (quota := _quota(place)) is not None]
    return min(quotas, default=None)


def cgroup_memory(root: Path = CGROUP, own: Path = Path("/proc/self/cgroup")) -> tuple[int, int] | None:
    """Bytes that the cgroup of this process may use, and uses: of those that limit it the one with the least left; None where
    it is not limited."""
    limits = [limit for place in _cgroups(root, own, "memory") if (limit := _memory(place)) is not None]
    return min(limits, key=lambda limit: limit[0] - limit[1], default=None)


def within_cgroup(available: int) -> int:
    """Of so many bytes that the machine has free, those that the cgroup of this process (of a container, or a job) may take."""
    limited = cgroup_memory()
    return available if limited is None else min(available, max(0, limited[0] - limited[1]))


def processor_name() -> str:
    """As the system calls it."""
    names = [value for key, value in _cpuinfo() if key == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """What Linux says that the processor can do, such as "avx2"; nothing on other systems."""
    return frozenset(word for key, value in _cpuinfo() if key in ("flags", "Features") for word in value.split())


def _cpuinfo() -> list[tuple[str, str]]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def _cgroups(root: Path, own: Path, controller: str = "cpu") -> list[Path]:
    """Folders of the cgroup that `own` names and of those above it."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    places = {root, root / controller}
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers or controller in controllers.split(","):
            top = root / controller if controllers else root
            inside = PurePosixPath(path.lstrip("/"))
            places |= {top / part for part in (inside, *inside.parents) if ".." not in part.parts}
    return sorted(places)


def _quota(place: Path) -> float | None:
    new, quota, period = place / "cpu.max", place / "cpu.cfs_quota_us", place / "cpu.cfs_period_us"
    if new.is_file():
        words = new.read_text(encoding="ascii").split()
    elif quota.is_file() and period.is_file():
        words = [quota.read_text(encoding="ascii").strip(), period.read_text(encoding="ascii").strip()]
    else:
        return None
    return None if words[0] in ("max", "-1") else int(words[0]) / int(words[1])


def _memory(place: Path) -> tuple[int, int] | None:
    """Limit and use; what only caches files does not count, since the system frees it when memory is short."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        if not ((place / limit).is_file() and (place / used).is_file()):
            continue
        word = (place / limit).read_text(encoding="ascii").strip()
        if word == "max" or int(word) >= UNLIMITED:
            return None
        stat = place / "memory.stat"
        pairs = [line.split() for line in (stat.read_text(encoding="ascii").splitlines() if stat.is_file() else [])]
        cached = sum(int(pair[1]) for pair in pairs if pair[0] == "inactive_file")
        return int(word), max(0, int((place / used).read_text(encoding="ascii")) - cached)
    return None
