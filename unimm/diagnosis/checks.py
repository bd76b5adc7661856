"""Checks of the machine: processor, threads, memory, disks, speed. Pure functions of readings."""

from collections.abc import Iterator

from unimm.diagnosis.findings import BROKEN, NOTE, PROBLEM, Check, Finding
from unimm.diagnosis.readings import Readings, gib, has_failed

GIB = 2**30

MIN_MEMORY, MIN_TOTAL_MEMORY, MIN_SHARED = 2 * GIB, 4 * GIB, GIB // 4

MIN_DISK = {
    "current folder": 2 * GIB,
    "temporary files": GIB // 2,
    "compiled kernels": GIB // 16,
    "torch.compile": GIB // 2,
    "hub cache": 5 * GIB,
}
"""Free bytes under which a use of a folder is soon at its end."""

MENDS_OF_FOLDERS = {
    "current folder": "free some space, or go to a folder that you may write to",
    "temporary files": "free some space, or let TMPDIR name another folder",
    "compiled kernels": "let XDG_CACHE_HOME name a folder that you may write to; else each process compiles them anew",
    "torch.compile": "let TORCHINDUCTOR_CACHE_DIR name a folder that you may write to",
    "hub cache": "free some space, or let HF_HOME name a folder on another disk",
}

BUSY = 0.5
"""Cores with other work from which measurements are worse."""

SLOW_CPU = 25.0
"""GFLOP/s of a product in float32, under which two cores with AVX2 are not."""


def check_processor(readings: Readings) -> Iterator[Finding]:
    """No AVX2; UNIMM_CPU."""
    processor = readings["processor"]
    asked, instructions = processor["UNIMM_CPU"], processor["instructions"] or {}
    if asked == "avx2":
        what = "UNIMM_CPU=avx2 makes this processor behave like one with AVX2 and nothing newer."
        yield Finding(NOTE, "processor", what, "unset UNIMM_CPU")
    elif asked:
        yield Finding(BROKEN, "processor", f"UNIMM_CPU={asked} is unknown.", "unset UNIMM_CPU, or set it to avx2")
    if instructions.get("AVX2") is False:
        what = "It has no AVX2: all computing on it is several times slower."
        yield Finding(PROBLEM, "processor", what, "use another machine, or a GPU")


def check_threads(readings: Readings) -> Iterator[Finding]:
    """Fewer or more threads than cores, a quota, threads that spin, a machine that is busy."""
    threads = readings["threads"]
    usable = threads["usable"]
    own = {name: value for name, value in threads["settings"].items() if name not in threads["set_by_unimm"]}
    if usable < threads["allowed"]:
        what = f"A quota lets {threads['quota']:g} of {threads['allowed']} cores run: unimm uses as many threads as that."
        yield Finding(NOTE, "threads", what, "give the container more: docker run --cpus=N, or limits.cpu of a pod")
    elif threads["allowed"] < (threads["cores"] or 0):
        what = f"This process may use {threads['allowed']} of {threads['cores']} cores (its affinity)."
        yield Finding(NOTE, "threads", what, "start it without taskset, or ask the batch system for more")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        number = own.get(name, "").split(",")[0]
        if number.isdecimal() and int(number) != usable:
            what = "the others are idle" if int(number) < usable else "they get into each other's way"
            yield Finding(PROBLEM, "threads", f"{name}={own[name]}, where {usable} cores are usable: {what}.", f"unset {name}")
    if spinning := [name for name, value in own.items() if _spins(name, value)]:
        what = (
            f"{', '.join(f'{name}={own[name]}' for name in spinning)}: waiting threads spin, and a training beside other work"
        )
        yield Finding(PROBLEM, "threads", f"{what} takes 3 to 4 times as long.", f"unset {' '.join(spinning)}")
    if threads["busy"] > max(BUSY, 0.1 * usable):
        what = f"Other processes use about {threads['busy']:.1f} cores: speeds are lower now than on an idle machine."
        yield Finding(NOTE, "threads", what, "run it again when the machine is idle")


def _spins(name: str, value: str) -> bool:
    if name == "OMP_WAIT_POLICY":
        return value.strip().upper() == "ACTIVE"
    return name in ("KMP_BLOCKTIME", "GOMP_SPINCOUNT") and value.strip().lower() not in ("0", "0ms", "0us")


def check_memory(readings: Readings) -> Iterator[Finding]:
    """Too little of it, or of what processes share."""
    memory = readings["memory"]
    limit = min(memory["total"], memory["cgroup_limit"] or memory["total"])
    if memory["available"] < MIN_MEMORY:
        what = f"Only {gib(memory['available'])} are free, less than a training needs."
        yield Finding(PROBLEM, "memory", what, "end other programs, or raise the container's limit: docker run --memory=8g")
    elif limit < MIN_TOTAL_MEMORY:
        yield Finding(NOTE, "memory", f"{gib(limit)} are enough for the quickstart, and for little more.")
    if memory["address_space_limit"] is not None:
        what = f"A process may use {gib(memory['address_space_limit'])} of addresses, of which torch reserves many."
        yield Finding(PROBLEM, "memory", what, "ulimit -v unlimited")
    if memory["shared"] is not None and memory["shared"] < MIN_SHARED:
        what = f"/dev/shm has {gib(memory['shared'])} free: loader workers hand batches over in it, and die when it is full."
        yield Finding(PROBLEM, "memory", what, "docker run --shm-size=2g (or --ipc=host), or trainer.num_workers=0")


def check_disks(readings: Readings) -> Iterator[Finding]:
    """Folders that are full or cannot be written."""
    disks = readings["disks"]
    reported: set[tuple[int, int]] = set()
    for use, folder in disks["folders"].items():
        mend = MENDS_OF_FOLDERS[use]
        if has_failed(folder):
            level = BROKEN if use == "temporary files" else PROBLEM
            yield Finding(level, "disk", f"There is no folder for it ({use}): {folder['failed']}", mend)
        elif folder["why_not"]:
            yield Finding(PROBLEM, "disk", f"{folder['path']} ({use}) cannot be written: {folder['why_not']}.", mend)
        elif folder["free"] < MIN_DISK[use] and (disk := (folder["total"], folder["free"])) not in reported:
            reported.add(disk)  # on which several of the folders may be
            yield Finding(PROBLEM, "disk", f"{folder['path']} ({use}) has {gib(folder['free'])} free.", mend)
    asked, used = disks["TMPDIR"], disks["folders"]["temporary files"].get("path")
    if asked and used and used.rstrip("/") != asked.rstrip("/"):
        told_tmp = f"TMPDIR={asked} cannot be written: {used} is used instead."
        yield Finding(PROBLEM, "disk", told_tmp, "let TMPDIR name a folder that you may write to")


def check_speeds(readings: Readings) -> Iterator[Finding]:
    """A CPU that is all there is, and slow though it has nothing else to do."""
    speed = readings["speeds"].get("cpu", {}).get("float32", {}).get("product", SLOW_CPU)
    if readings["choices"]["device"] == "cpu" and speed < SLOW_CPU and readings["threads"]["busy"] <= BUSY:
        what = f"The CPU computes {speed:.0f} GFLOP/s in float32, which is little."
        yield Finding(NOTE, "speed", what, "give `unimm quickstart` more --minutes")


CHECKS = (
    Check(("processor",), check_processor),
    Check(("threads",), check_threads),
    Check(("memory",), check_memory),
    Check(("disks",), check_disks),
    Check(("speeds", "choices", "threads"), check_speeds),
)
