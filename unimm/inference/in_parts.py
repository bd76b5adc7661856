"""The images of a data set through a frozen network, part by part: what stored codes and stored features share.

A part is a file of so many rows, an image a row. It is computed by itself, in batches that begin with it, so that its bytes
depend neither on how many processes share the work nor on where it was interrupted. Process r of n makes parts r, r + n, ...
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from unimm.ranks import Ranks
from unimm.unfinished import Unfinished


@dataclass(frozen=True)
class Work:
    """How it is gone about.

    batch_size: images at a time; others round otherwise.
    num_workers: processes that prepare images ahead, for each of `ranks`.
    ranks: who shares the work; all of them are called with the same words.
    quiet: no progress bar.
    """

    batch_size: int = 64
    num_workers: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    quiet: bool = False


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In here a network is in eval mode, without gradients; after it in the mode that it was in, also where this raises."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def see_in_parts(
    see: Callable[[torch.Tensor], torch.Tensor],
    pixels: Dataset,
    images: np.ndarray,
    part_rows: int,
    unfinished: Unfinished,
    key: str,
    work: Work,
) -> int:
    """Make what is missing of this process' parts, each a safetensors file with one tensor under `key`.

    Args:
        see: pixels (N, 3, H, W) on the CPU -> what is stored of them, (N, ...) on the CPU.
        pixels: (3, H, W) float32 by index.
        images: (num_rows,) the index of each row's image.

    Returns:
        The number of parts, of all processes together.
    """
    num_parts = -(-len(images) // part_rows)
    own = range(work.ranks.number, num_parts, work.ranks.count)
    missing = unfinished.missing(own)
    quiet = work.quiet or work.ranks.number > 0
    if len(missing) < len(own) and not quiet:
        _say(f"{unfinished.final}: {len(own) - len(missing)} of {len(own)} parts are there already.")
    batches = {number: _batches(images[number * part_rows :][:part_rows], work.batch_size) for number in missing}
    order = [batch for number in missing for batch in batches[number]]
    loaded = iter(DataLoader(pixels, batch_sampler=order, num_workers=work.num_workers))
    for number in track(missing, description=f"looking at {len(images):,} images, in parts", disable=quiet):
        seen = torch.cat([see(next(loaded)) for _ in batches[number]])
        unfinished.save(number, lambda path, seen=seen: save_file({key: seen.contiguous()}, path))
    return num_parts


def say_kept(unfinished: Unfinished, work: Work) -> None:
    """The first process says that there is nothing to do, and how there would be."""
    if work.ranks.number == 0:
        unfinished.drop()
        if not work.quiet:
            _say(f"{unfinished.final} is there already, of the same images: it is kept. To make it again, remove it.")


def _say(sentence: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(sentence)


def _batches(images: np.ndarray, batch_size: int) -> list[list[int]]:
    return [images[start : start + batch_size].tolist() for start in range(0, len(images), batch_size)]
