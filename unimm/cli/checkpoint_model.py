"""A training's checkpoint as a model, without the processes and the GPUs that wrote it: what `unimm convert RUN OUT` writes.

The run's config.yaml says what model it is, so what the run began from has to be where it was (data, image tokenizer, the model
of `init_from`). Weights are mapped from the checkpoint's files; those that lie there in parts, or are to have another dtype,
are put together in a scratch folder, and mapped from there. So main memory holds next to nothing of them, but for adapters,
which are merged, and the system may drop what it has of the files.
"""

import errno
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.init_from import lengthen
from unimm.checkpoints.tensor_shards import StoredTensors
from unimm.cli.compose import build, give_sizes
from unimm.cli.learner import PARTS_OF, open_learner
from unimm.models.lora import adapted_layers, merge
from unimm.training.checkpoint import CHECKPOINTS, Checkpoint, find_checkpoint, open_checkpoint, passes
from unimm.training.objectives.likelihood import Objective


def is_checkpoint(source: str | Path) -> bool:
    """Whether this is a run's folder, or that of one of its checkpoints."""
    path = Path(source)
    return (path / CHECKPOINTS).is_dir() or (path.parent.name == CHECKPOINTS and path.is_dir())


def open_as_bundle(source: str | Path, scratch: Path, dtype: torch.dtype | None = None) -> ModelBundle:
    """The model of a run's newest whole checkpoint, or of the one that is named: its averaged weights where it has some,
    adapters merged.

    Args:
        source: the run's folder, or the checkpoint's.
        scratch: a folder for tensors that are put together; the bundle needs it as long as it is used.
        dtype: of the weights; None: as they are.

    Raises:
        ValueError: there is no whole checkpoint, or it does not fit its config.yaml.
    """
    run, checkpoint = _open(Path(source))
    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    if "trainer" not in config:
        raise ValueError(f"{run} holds no unified model but an image tokenizer, which its training writes to {run / 'model'}.")
    config.device, config.out = "cpu", str(run)
    fresh = {*(config.get("fresh_parts") or ())}  # the sizes of these are not those of the model that the run began from
    give_sizes(config, [f"model.{group}" for group, parts in PARTS_OF.items() if parts & fresh])
    learner = open_learner(config, with_weights=False)
    longest = (config.model.get("trunk") or {}).get("max_position_embeddings") or 0
    if longest > learner.bundle.model.config.max_positions:
        lengthen(learner.bundle.model, longest)
    with torch.device("meta"):
        objective: Objective = build(config.objective, model=learner.bundle.model)
    has_adapters = bool(adapted_layers(objective.model))
    # What adapters are merged into is rounded after it, once; and heads by themselves, for not all of them is.
    names = [name for name, _ in objective.named_parameters(remove_duplicate=False) if name.startswith("model.")]
    rounded = set[str]() if has_adapters else set(names)
    weights = {
        name: _prepared(checkpoint.tensors, name, scratch, dtype if name in rounded else None)
        for name in objective.state_dict()
        if f"weights/{name}" in checkpoint.tensors
    }
    try:
        objective.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"The checkpoint in {source} does not fit {run / 'config.yaml'}: {error}") from error
    model = objective.model.eval().requires_grad_(False)
    if model.config.trunk_config().tie_word_embeddings:
        model.text.head.weight = model.text.embedding.weight
    if has_adapters:
        merge(model)
    bundle = replace(learner.bundle, model=model, heads={**learner.bundle.heads, **objective.heads()})
    return bundle if dtype is None else bundle.change_dtype(dtype)


def _open(source: Path) -> tuple[Path, Checkpoint]:
    """The run's folder, and its checkpoint."""
    if (source / CHECKPOINTS).is_dir():
        step, run = find_checkpoint(source / CHECKPOINTS), source
    else:
        match, run = re.fullmatch(r"step-(\d+)", source.resolve().name), source.resolve().parent.parent
        step = int(match[1]) if match and passes(run / CHECKPOINTS, int(match[1])) else None
    if step is None:
        raise ValueError(f"There is no whole checkpoint in {source}: name a run's folder, or one of its checkpoints.")
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} lacks config.yaml, which says what model its checkpoints are of: copy the run's whole folder.")
    return run, open_checkpoint(run / CHECKPOINTS, step)


def _prepared(tensors: Mapping[str, torch.Tensor], name: str, scratch: Path, dtype: torch.dtype | None) -> torch.Tensor:
    """One weight, by its average where there is one: mapped from the checkpoint, or from a file of its own in the scratch
    folder."""
    assert isinstance(tensors, StoredTensors)
    stored = f"ema/{name}" if f"ema/{name}" in tensors else f"weights/{name}"
    shape, kept = tensors.shapes[stored], tensors.dtype(stored)
    if tensors.is_mapped(stored) and dtype in (None, kept):
        return tensors[stored]
    path = scratch / str(sum(1 for _ in scratch.iterdir()))
    _reserve(path, math.prod(shape) * (dtype or kept).itemsize)
    copy = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype or kept).view(shape)
    tensors.copy_to(stored, copy)
    return copy


def _reserve(path: Path, num_bytes: int) -> None:
    """A file of so many bytes that the disk has: where a mapped one grows as it is written to, a full disk kills the process.

    Raises:
        ValueError: there is no room.
    """
    with path.open("wb") as file:
        try:
            if num_bytes and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # else the disk only cannot reserve
                told = f"{path.parent.parent} has no room for the weights ({error.strerror})"
                raise ValueError(f"{told}: make some, or convert to another disk.") from error
