"""`unimm average`: the mean of several models' weights as a model."""

import math
from pathlib import Path

import torch
from rich.console import Console

from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.model_soup import Average
from unimm.checkpoints.weight_files import CONFIG
from unimm.runtime.atomic_files import check_replaceable

status = Console(stderr=True, soft_wrap=True)


def average(sources: list[str], out: Path, weights: list[float] | None = None) -> None:
    """Write the mean of models as a model folder; everything but the unified model's weights is the first one's.

    Args:
        weights: one for each model, positive; divided by their sum. None: all alike.

    Raises:
        ValueError: there are fewer than two models or other than as many weights, one cannot be read, they do not resemble each
            other, or `out` holds something else than a model.
    """
    if len(sources) < 2:
        raise ValueError("A mean is of two models or more: name them, one after the other.")
    shares = [1.0] * len(sources) if weights is None else weights
    if len(shares) != len(sources):
        raise ValueError(f"{len(sources)} models and {len(shares)} weights: give --weight once for each model.")
    if not all(0 < share < math.inf for share in shares):
        raise ValueError(f"Weights are positive numbers, not {', '.join(map(str, shares))}.")
    check_replaceable(out.resolve(), CONFIG, "a model folder")
    cpu = torch.device("cpu")
    with status.status(f"Reading {sources[0]}") as shown:
        first = ModelBundle.load(sources[0], cpu)
        mean = Average(sources[0], first, shares[0])
        for source, share in zip(sources[1:], shares[1:], strict=True):
            shown.update(f"Adding {source}")
            mean.add(source, ModelBundle.load(source, cpu), share)
        shown.update(f"Writing {out}")
        mean.put()
        first.save(out)
    status.print(f"{out} is the mean of {len(sources)} models. Whether it is better than each is for `unimm eval` to say.")
