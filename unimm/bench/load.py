"""How fast a checkpoint opens and how much memory that takes, here and in `transformers`, side by side.

Each trial is a process of its own, in turns. Weights that are mapped from disk are touched once after loading, so that pages
which were only promised count as well. Memory is the peak of the process above what it took before (libraries), as a multiple
of the weights.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

PEERS = ("unimm", "transformers")
GIB = 2**30
PAGE = 1024
"""Elements between those that are touched: at least one a page of memory."""


def bench_load(
    folder: Path, device: str, dtype: str, repeats: int, progress: Callable[[str], None] = lambda who: None
) -> dict[str, dict[str, float]]:
    """Median seconds and peaks of each peer. `progress` is told who is next.

    Returns:
        By peer: `seconds` of loading, `touch_seconds`, `weights_gib`, `peak` (host memory over weights), and on a GPU
        `device_peak`.
    """
    trials: dict[str, list[dict[str, float]]] = {who: [] for who in PEERS}
    for _ in range(repeats):
        for who in PEERS:
            progress(who)
            words = [sys.executable, "-m", "unimm.bench.load", who, str(folder), device, dtype]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"{who} cannot load {folder}: {done.stderr.strip().splitlines()[-1]}")
            trials[who].append(json.loads(done.stdout.splitlines()[-1]))
    return {who: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for who, runs in trials.items()}


def trial(who: str, folder: str, device: str, dtype: str) -> dict[str, float]:
    """Load once, in this process, and measure."""
    load = _loader(who)
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    parameters = load(folder, torch.device(device), getattr(torch, dtype))
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    for parameter in parameters:
        parameter.detach().flatten()[::PAGE].sum().item()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    measured = {"seconds": seconds, "touch_seconds": time.perf_counter() - started, "weights_gib": weights / GIB}
    measured["peak"] = (_peak_bytes() - before) / weights
    if device != "cpu":
        measured["device_peak"] = torch.cuda.max_memory_allocated() / weights
    return measured


def _loader(who: str) -> Callable[[str, torch.device, torch.dtype], list[torch.Tensor]]:
    """A function that loads, with everything imported that it needs."""
    if who == "unimm":
        from unimm.inference.load import load

        def load_ours(folder: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
            engine = load(folder, device, dtype)
            return [*engine.model.parameters(), *engine.image_tokenizer.parameters()]

        return load_ours
    from transformers import AutoTokenizer, JanusForConditionalGeneration

    def load_theirs(folder: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        AutoTokenizer.from_pretrained(folder)
        return list(JanusForConditionalGeneration.from_pretrained(folder, dtype=dtype, device_map=device).parameters())

    return load_theirs


def _peak_bytes() -> int:
    """The largest memory that this process ever had; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """One trial, told as a line of JSON: PEER FOLDER DEVICE DTYPE."""
    measured: dict[str, Any] = trial(*sys.argv[1:])
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
