"""`unimm average`: the mean of several models' weights as a model."""

import math
from pathlib import Path

import torch
from rich.console import Console

from unimm.checkpoints.folder import load_model
from unimm.checkpoints.model_soup import Average
from unimm.checkpoints.weight_files import CONFIG
from unimm.data.text import TextTokenizer
from unimm.inference.load import open_engine
from unimm.runtime.atomic_files import check_replaceable

status = Console(stderr=True, soft_wrap=True)


def average(sources: list[str], out: Path, weights: list[float] | None = None) -> None:
    """Write the mean of models as a model folder; all but the weights is the first one's.

    Args:
        weights: one for each model, positive; they count as shares of their sum. None: all alike.

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
        first = load_model(sources[0], cpu)
        engine = open_engine(first)
        mean = Average(first, shares[0])
        for source, share in zip(sources[1:], shares[1:], strict=True):
            shown.update(f"Adding {source}")
            other = load_model(source, cpu)
            if TextTokenizer.load(other.folder).tokenizer.get_vocab() != engine.tokenizer.tokenizer.get_vocab():
                raise ValueError(f"{source} and {sources[0]} have different text tokenizers: they have no mean.")
            mean.add(other, share)
        shown.update(f"Writing {out}")
        mean.put()
        engine.save(out)
    status.print(f"{out} is the mean of {len(sources)} models. Whether it is better than each is for `unimm eval` to say.")
