"""Where a figure comes from: machine, versions, commit and command, to be written beside it."""

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

import unimm
from unimm.diagnosis.software import git_commit
from unimm.runtime.environment import processor_name

LIBRARIES = ("torch", "transformers", "safetensors", "accelerate")


def provenance(device: torch.device) -> dict[str, Any]:
    """What must be known to judge a figure, or to measure it again."""
    return {
        "command": " ".join(["unimm", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        **(_gpu(device) if device.type == "cuda" else {}),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "unimm": unimm.__version__,
        **{library: version(library) for library in LIBRARIES},
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    """What else a GPU's figures hang on; the driver is None where nvidia-smi is not at hand."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True) if shutil.which(asked[0]) else None
    versions = said.stdout.split() if said is not None and said.returncode == 0 else []
    return {
        "gpu_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        "compute_capability": ".".join(str(number) for number in torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
        "driver": versions[0] if versions else None,
    }
