"""How fast a checkpoint opens and how much memory that takes, here and in `transformers`, side by side.

Each trial is a process of its own, in turns. Weights that are mapped from disk are touched once after loading, so that pages
which were only promised count as well. Memory is the peak of the process above what it took before (libraries), as a multiple
of the weights.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from unimm.bench.subprocess_trials import peak_bytes

GIB = 2**30
PAGE = 1024
"""Elements between those that are touched: at least one a page of memory."""


@dataclass(frozen=True)
class Trial:
    """One load. who: a peer."""

    who: str
    folder: str
    device: str
    dtype: str


def run_trial(trial: Trial) -> dict[str, float]:
    """Load once, in this process.

    Returns:
        `seconds` of loading, `touch_seconds`, `weights_gib`, `peak` (host memory over weights), and on a GPU `device_peak`.
    """
    load = _loader(trial.who)
    is_cuda = torch.device(trial.device).type == "cuda"
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    parameters = load(trial.folder, torch.device(trial.device), getattr(torch, trial.dtype))
    if is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    for parameter in parameters:
        parameter.detach().flatten()[::PAGE].sum().item()
    weights = sum(parameter.nbytes for parameter in parameters)
    measured = {"seconds": seconds, "touch_seconds": time.perf_counter() - started, "weights_gib": weights / GIB}
    measured["peak"] = (peak_bytes() - before) / weights
    if is_cuda:
        measured["device_peak"] = torch.cuda.max_memory_allocated() / weights
    return measured


def _loader(who: str) -> Callable[[str, torch.device, torch.dtype], list[torch.Tensor]]:
    """A function that loads, with everything imported that it needs."""
    if who == "unimm":
        from unimm.inference.engine import load

        def load_ours(folder: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
            engine = load(folder, device, dtype)
            return [*engine.model.parameters(), *engine.image_tokenizer.parameters()]

        return load_ours
    from transformers import AutoTokenizer, JanusForConditionalGeneration

    def load_theirs(folder: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        AutoTokenizer.from_pretrained(folder)
        return list(JanusForConditionalGeneration.from_pretrained(folder, dtype=dtype, device_map=device).parameters())

    return load_theirs


def main() -> None:
    """One trial: JSON in, JSON out."""
    print(json.dumps(run_trial(Trial(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
