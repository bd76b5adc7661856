"""Fingerprints: stored codes and stored features name the network that made them by one, so that another's are refused."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from unimm.models.vision import VisionTower


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
