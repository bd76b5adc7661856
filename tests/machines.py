"""Readings of a machine that has nothing wrong: what every reading tells, to be changed by tests."""

from copy import deepcopy
from typing import Any

GIB = 2**30


def folder(path: str) -> dict[str, Any]:
    return {"path": path, "exists": True, "free": 70 * GIB, "total": 250 * GIB, "why_not": None}


USES = ("current folder", "temporary files", "compiled kernels", "torch.compile", "hub cache")

CARD = {
    "name": "NVIDIA H200",
    "capability": "9.0",
    "total": 140 * GIB,
    "free": 139 * GIB,
    "has_bf16": True,
    "why_not": None,
}
NVIDIA = {"name": "NVIDIA H200", "driver": "580.1", "total_mib": "143771", "used_mib": "1"}

HEALTHY: dict[str, dict[str, Any]] = {
    "unimm": {"version": "0.1.0", "commit": "abc1234", "folder": "/src/unimm"},
    "system": {
        "name": "Debian GNU/Linux 12",
        "family": ["debian"],
        "kernel": "Linux 6.1.0",
        "architecture": "x86_64",
        "libc": "glibc 2.36",
        "is_container": False,
        "is_wsl": False,
    },
    "processor": {"name": "AMD EPYC", "instructions": {"AVX2": True, "AMX BF16": False}, "UNIMM_CPU": None},
    "threads": {
        "cores": 8,
        "allowed": 8,
        "quota": None,
        "usable": 8,
        "busy": 0.1,
        "settings": {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
        "set_by_unimm": ["KMP_BLOCKTIME", "OMP_WAIT_POLICY"],
    },
    "memory": {
        "total": 32 * GIB,
        "available": 20 * GIB,
        "swap": 0,
        "cgroup_limit": None,
        "cgroup_used": None,
        "address_space_limit": None,
        "shared": 16 * GIB,
    },
    "disks": {"TMPDIR": None, "folders": {use: folder(f"/{use.replace(' ', '-')}") for use in USES}},
    "gpus": {
        "nvidia_driver": None,
        "nvidia": None,
        "nvidia_failed": None,
        "has_amd": False,
        "CUDA_VISIBLE_DEVICES": None,
    },
    "python": {
        "version": "3.11.7",
        "implementation": "CPython",
        "executable": "/venv/bin/python",
        "is_virtual": True,
        "headers": "/usr/include/python3.11/Python.h",
        "has_headers": True,
    },
    "packages": {"versions": {"torch": "2.14.1", "numpy": "2.4.6", "xformers": None}, "unmet": []},
    "compiler": {"path": "/usr/bin/g++", "version": "g++ 12.2.0", "why_not": None, "CXX": None},
    "environment": {},
    "hub": {
        "cache": "/home/me/.cache/huggingface/hub",
        "exists": True,
        "bytes": 3 * GIB,
        "is_counted": True,
        "num_repos": 2,
        "is_offline": False,
        "token": None,
        "endpoint": "https://huggingface.co",
    },
    "kernels": {"kernels": {name: {"why_not": None, "seconds": 0.0} for name in ("convolution", "attention")}},
    "torch": {
        "version": "2.14.1+cpu",
        "cuda": None,
        "hip": None,
        "threads": 8,
        "kernels_for": "AVX2",
        "capabilities": {"avx2": True},
        "has_onednn": True,
        "why_no_numpy": None,
        "warnings": [],
    },
    "devices": {"has_cuda": False, "cards": [], "has_mps": False, "is_built_for_mps": False, "warnings": []},
    "speeds": {"cpu": {"float32": {"product": 300.0, "convolution": 200.0}, "float16": {"failed": "RuntimeError: no"}}},
    "choices": {
        "device": "cpu",
        "dtype": "float32",
        "dtype_large": "float32",
        "large": 200_000_000,
        "precision": "no",
        "has_bf16": False,
        "threads": 8,
        "keeps_memory": True,
        "trainer": "cpu",
        "workers": 0,
        "attention": "documents",
    },
    "demo": {"said": "A large red circle.", "expected": "large red circle", "seconds": 1.5},
    "compile": {"why_not": None, "seconds": 4.2},
    "quickstart": {"machine": "AMD EPYC, 8 threads", "plan": "preset 'usual'", "measured": {}, "planned": {"compile": True}},
}


def healthy(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A copy, with other entries of some readings."""
    readings = deepcopy(HEALTHY)
    for name, entries in changes.items():
        readings[name] = entries if "failed" in entries else {**readings[name], **entries}
    return readings
