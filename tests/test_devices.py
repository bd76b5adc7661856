"""What a process keeps: large tensors that come and go do not cost fresh pages every time."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from unimm.devices import choose_device, choose_dtype

CHURN = """
import resource, torch
from unimm.devices import keep_memory
print(keep_memory())
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
before = faults()
for _ in range(20): torch.ones(2**24)
print(faults() - before)
"""


def churn(**environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and the pages that 20 tensors of 64 MiB cost, in a process of its own."""
    words = [sys.executable, "-c", CHURN]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_memory_is_kept_unless_told_otherwise() -> None:
    kept, pages = churn()
    assert kept
    kept, more_pages = churn(UNIMM_KEEP_MEMORY="0")
    assert not kept and more_pages > 2 * pages


def test_devices_and_dtypes_are_what_is_asked_for_or_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    for wrong in ("tpu", "cuda:x"):
        with pytest.raises(ValueError, match="cuda"):
            choose_device(wrong)
    with pytest.raises(ValueError, match="Unknown dtype 'int3'"):
        choose_dtype("int3", torch.device("cpu"))
