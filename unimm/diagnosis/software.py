"""Readings of what is installed and how it is set up, without torch: Python, packages, compiler, hub, environment."""

import os
import platform
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

import unimm
from unimm.diagnosis.readings import Reading
from unimm.native import find_compiler

SHOWN = (
    *("torch", "torchvision", "triton", "transformers", "tokenizers", "huggingface_hub", "safetensors", "accelerate"),
    *("numpy", "pillow", "einops", "vector-quantize-pytorch", "torchmetrics", "scikit-learn", "hydra-core", "typer", "rich"),
    *("timm", "peft", "torchao", "datasets", "pyarrow", "bitsandbytes", "flash-attn", "xformers"),
)
"""What bug reports hang on; the last ones are no need of ours, but change what others do."""

SETTINGS = (
    *("UNIMM_MODEL", "UNIMM_CPU", "UNIMM_DEBUG", "UNIMM_KEEP_MEMORY", "CXX", "CC", "TMPDIR", "XDG_CACHE_HOME", "LD_PRELOAD"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_HUB_DISABLE_XET"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK"),
    *("TORCH_LOGS", "TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE", "TORCHINDUCTOR_CACHE_DIR", "NCCL_DEBUG", "PYTHONPATH"),
    *("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MALLOC_CONF"),
)
PRIVATE_SETTINGS = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
"""Of these only whether they are set is reported."""

HUB_SECONDS = 1.0
"""For counting what is in the hub's cache: there may be a million files."""


def read_python() -> Reading:
    """The interpreter, and whether C++ can be compiled against it."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "is_virtual": sys.prefix != sys.base_prefix,
        "headers": str(headers),
        "has_headers": headers.is_file(),
    }


def read_unimm() -> Reading:
    """Version, place, and commit of a checkout."""
    try:
        version = metadata.version("unimm")
    except metadata.PackageNotFoundError:
        version = None
    return {"version": version, "commit": git_commit(), "folder": str(Path(unimm.__file__).resolve().parent)}


def git_commit() -> str | None:
    """Of the checkout that the package lies in, with a plus if something is changed there; None of an installed one."""
    root = Path(unimm.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root)]
    try:
        named = subprocess.run([*command, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git
        return None
    return None if named.returncode else named.stdout.strip() + ("+" if changed.stdout.strip() else "")


def read_packages() -> Reading:
    """Versions, and what packages ask of each other that is not so.

    "unmet": of unimm and of what is shown, as `pip check` does it: {"package", "needs", "has"}; has: None is not installed.
    """
    versions = {name: _version(name) for name in SHOWN}
    unmet = [problem for name in ("unimm", *(name for name in SHOWN if versions[name])) for problem in _unmet(name)]
    return {"versions": versions, "unmet": unmet}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unmet(name: str) -> list[Reading]:
    from packaging.requirements import Requirement

    try:
        asked = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, asked):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        has = _version(requirement.name)
        if has is None or not requirement.specifier.contains(has, prereleases=True):
            needs = f"{requirement.name}{requirement.specifier}"
            found.append({"package": name, "needs": needs, "has": has})
    return found


def read_compiler() -> Reading:
    """The C++ compiler of our kernels and of torch.compile."""
    try:
        command = find_compiler()
    except OSError as error:
        return {"path": None, "version": None, "why_not": str(error), "CXX": os.environ.get("CXX")}
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace", timeout=20)
    lines = said.stdout.splitlines() or [""]
    why_not = None if said.returncode == 0 else f"{command[0]} --version ends with exit code {said.returncode}"
    return {"path": " ".join(command), "version": lines[0].strip() or None, "why_not": why_not, "CXX": os.environ.get("CXX")}


def read_hub() -> Reading:
    """The Hugging Face hub's cache, and whether there is a token: never which."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    token = next((name for name in names if os.environ.get(name)), None)
    if token is None and Path(constants.HF_TOKEN_PATH).is_file():
        token = "a file"
    return {
        "cache": str(cache),
        **_sizes(cache),
        "is_offline": bool(constants.HF_HUB_OFFLINE),
        "token": token,
        "endpoint": constants.ENDPOINT,
    }


def _sizes(cache: Path) -> Reading:
    """Bytes of the cache, at least, and how many models and data sets are there."""
    if not cache.is_dir():
        return {"exists": False, "bytes": 0, "is_counted": True, "num_repos": 0}
    deadline, total = time.monotonic() + HUB_SECONDS, 0
    for folder, _, files in os.walk(cache):
        for file in files:
            path = Path(folder, file)
            if not path.is_symlink():
                total += path.lstat().st_size if path.exists() else 0
            if time.monotonic() > deadline:
                return {"exists": True, "bytes": total, "is_counted": False, "num_repos": _num_repos(cache)}
    return {"exists": True, "bytes": total, "is_counted": True, "num_repos": _num_repos(cache)}


def _num_repos(cache: Path) -> int:
    return sum(path.name.startswith(("models--", "datasets--", "spaces--")) for path in cache.iterdir())


def read_environment() -> Reading:
    """Variables that change what happens, where they are set."""
    plain = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return plain | {name: "(set)" for name in PRIVATE_SETTINGS if name in os.environ}
