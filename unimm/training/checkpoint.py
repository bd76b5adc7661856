"""A training checkpoint on disk: written whole or not at all; tensors in safetensors, the rest in JSON, a manifest with
hashes. What goes into it: `run_state`.

    run/checkpoints/step-00000500/{tensors.safetensors, state.json, manifest.json}

A checkpoint is written to a temporary folder, flushed to disk, and renamed; only then are older ones pruned, and what a killed
process left half-written. Where it cannot be written, what was there stays. Reading takes the newest one whose files agree with
its manifest, and says so when it had to pass over a newer one. Nothing is ever pickled.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unimm.runtime.atomic_files import read_json, replace_folder, temporary_folder, write_json
from unimm.runtime.format_version import check_format, stamped
from unimm.training.sharding import like

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FORMAT = 1
"""The newest version of checkpoints that is read, and the one that is written."""

CHECKPOINTS = "checkpoints"
"""The folder of a run that they lie in."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: named tensors and a JSON-able state, after `step` finished steps."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class SaveError(OSError):
    """A checkpoint could not be written; older ones are as they were."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint below `folder`, atomically, then keep the newest `keep`. A whole one of that step stays as it is.

    Returns:
        The checkpoint's own folder.

    Raises:
        SaveError: there is no room, or no right to write.
    """
    final = _folder(folder, checkpoint.step)
    try:
        if not final.is_dir() or _problem(final) is not None:
            _write(final, checkpoint)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SaveError(
            f"The checkpoint of step {checkpoint.step} cannot be written to {folder} ({reason}); older ones there stay whole: "
            f"make room or let the folder be written to, and give the same command to go on."
        ) from error
    _prune(folder, final, keep)
    return final


def _write(final: Path, checkpoint: Checkpoint) -> None:
    temporary = temporary_folder(final)
    try:
        save_file(_apart(checkpoint.tensors), temporary / TENSORS)
        write_json(temporary / STATE, {"step": checkpoint.step, **checkpoint.state})
        digests = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, stamped(FORMAT, digests))
        replace_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU. safetensors refuses those that share memory (tied weights), so all but the first of these are
    copied; a copy of everything would be as much memory again.
    """
    apart, places = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return apart


def _prune(folder: Path, final: Path, keep: int) -> None:
    """Remove what `final` makes superfluous. What cannot be removed now is tried again after the next one."""
    # Newer ones than this are what loading passed over as damaged; they must not push whole ones out.
    newer = [path for path in _folders(folder) if path.name > final.name]
    older = [path for path in _folders(folder) if path.name < final.name]
    unfinished = [path for path in folder.glob(".step-*") if path.suffix in (".tmp", ".old")]
    for superfluous in [*unfinished, *newer, *older[: len(older) - keep + 1]]:
        try:
            shutil.rmtree(superfluous)
        except OSError as error:
            logger.warning(f"{superfluous} cannot be removed ({error.strerror}).")


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint below `folder` whose manifest holds, or None."""
    step = find_checkpoint(folder)
    return None if step is None else open_checkpoint(folder, step)


def find_checkpoint(folder: Path) -> int | None:
    """The step of the newest checkpoint below `folder` whose manifest holds, or None. Reads every byte of it.

    Raises:
        ValueError: a newer unimm wrote it.
    """
    for candidate in reversed(_folders(folder)):
        problem = _problem(candidate)
        if problem is None:
            return json.loads((candidate / STATE).read_text())["step"]
        logger.warning(f"Passing over checkpoint {candidate.name}: {problem}.")
    return None


def open_checkpoint(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of a step that `find_checkpoint` gave, here or in another process; None where it is not there. Tensors are
    mapped from the file: what is not used is not read, and processes of a machine share what is.
    """
    path = _folder(folder, step)
    if not path.is_dir():
        return None
    state = json.loads((path / STATE).read_text())
    return Checkpoint(state.pop("step"), load_file(path / TENSORS), state)


def peek(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint below `folder`, unproved and without its tensors, for what has to be known before a
    model is built; None where there is none."""
    for candidate in reversed(_folders(folder)):
        try:
            state = read_json(candidate / STATE)
        except ValueError:
            continue  # damaged: what opens the checkpoint says so
        if state is not None:
            return state
    return None


def weights_of(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under `prefix/`, without it."""
    return {n.removeprefix(f"{prefix}/"): t for n, t in checkpoint.tensors.items() if n.startswith(f"{prefix}/")}


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str], prefix: str) -> dict[str, torch.Tensor]:
    """An optimizer's state as named tensors, `prefix/parameter/key`; `names` maps id(parameter) to its name."""
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensor = value if torch.is_tensor(value) else torch.tensor(value)
            tensors[f"{prefix}/{names[id(parameter)]}/{key}"] = tensor
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], names: dict[int, str], prefix: str
) -> None:
    """The inverse of `optimizer_tensors`, into an optimizer over the same parameters."""
    parameters = {names[id(p)]: (p, group) for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in tensors.items():
        if not name.startswith(f"{prefix}/"):
            continue
        parameter_name, key = name.removeprefix(f"{prefix}/").rsplit("/", 1)
        parameter, group = parameters[parameter_name]
        # Step counters are scalars and stay on the CPU, but where a fused optimizer reads them on the device.
        device = parameter.device if tensor.dim() or group.get("fused") else tensor.device
        own = tensor.clone().to(device)
        optimizer.state[parameter][key] = like(own, parameter) if tensor.dim() else own


def _folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None. ValueError: a newer unimm wrote it, which is no damage to pass over."""
    if not (folder / MANIFEST).is_file():
        return "it has no manifest"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {name: manifest[name] for name in (TENSORS, STATE)}
    except (ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    check_format(manifest, FORMAT, folder / MANIFEST)
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} does not match its manifest"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
