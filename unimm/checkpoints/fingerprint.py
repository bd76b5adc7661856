"""Fingerprints: stored codes and stored features name the network that made them by one, so that another's are refused, and a
run names what it started from.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from unimm.models.vision.tower import VisionTower


def fingerprint_of(sizes: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """sha256 over sizes, and over tensors with their names, dtypes and shapes."""
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tower_fingerprint(tower: VisionTower) -> str:
    """sha256 over all that decides what a vision tower's features are: sizes and weights, with their dtypes."""
    return fingerprint_of(asdict(tower.config), dict(tower.named_parameters()))


def model_fingerprint(tensors: Iterable[tuple[str, Tensor]], per_tensor: int = 64) -> str:
    """sha256 over names, dtypes, shapes and some elements of each tensor: distinguishes a model from one that was trained
    on, and takes no time."""
    some = {f"{name} {tuple(t.shape)}": t.detach().flatten()[:: max(1, t.numel() // per_tensor)] for name, t in tensors}
    return fingerprint_of({}, some)


def vocabulary_fingerprint(vocabulary: dict[str, int]) -> str:
    """sha256 over the tokens of a text tokenizer and their ids."""
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()
