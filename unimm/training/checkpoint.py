"""A training checkpoint on disk: written whole or not at all; tensors in safetensors, the rest in JSON, a manifest with
hashes. What goes into it: `run_state`; who writes it, and when: `checkpoint_writer`.

    run/checkpoints/step-00000500/{tensors.safetensors, state.json, manifest.json}
    run/checkpoints/step-00000500/{tensors-00000-of-00002.safetensors, tensors-00001-of-00002.safetensors, ...}

The second is what several processes write, each a file with its parts of the tensors (`unimm.checkpoints.tensor_shards`).

A checkpoint is written to a temporary folder, flushed to disk, and renamed; only then are older ones pruned, and what a killed
process left half-written. Where it cannot be written, what was there stays. Reading takes the newest one whose files agree with
its manifest, and says so when it had to pass over a newer one. Nothing is ever pickled.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimm.checkpoints.tensor_shards import Part, StoredTensors, write_parts
from unimm.runtime.atomic_files import flush, read_json, replace_folder, write_json
from unimm.runtime.format_version import FORMAT_VERSION, check_format, stamped
from unimm.training.own_parts import read_like

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FORMAT = 2
"""The newest version of checkpoints that is read. 1: one file of tensors, as one process still writes it; 2: several."""

CHECKPOINTS = "checkpoints"
"""The folder of a run that they lie in."""

KEPT = 2
"""So many checkpoints stay, where nothing else is said."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: named tensors and a JSON-able state, after `step` finished steps."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    state: dict[str, Any]


class SaveError(OSError):
    """A checkpoint could not be written; older ones are as they were."""

    @classmethod
    def of(cls, error: Exception, folder: Path, step: int) -> "SaveError":
        """What to tell of an error that kept a checkpoint from being written below a folder."""
        reason = getattr(error, "strerror", None) or str(error)
        return cls(
            f"The checkpoint of step {step} cannot be written to {folder} ({reason}); older ones there stay whole: "
            f"make room or let the folder be written to, and give the same command to go on."
        )


def write_own(path: Path, parts: Mapping[str, Part]) -> str:
    """Write one process' file of a checkpoint, and have it on the disk; gives its SHA-256."""
    write_parts(path, parts)
    flush(path)
    return _digest(path)


def commit(temporary: Path, final: Path, state: dict[str, Any], digests: dict[str, str]) -> None:
    """Make a checkpoint of a folder in which the tensors lie: state, manifest, and its name.

    digests: of the files of tensors.
    """
    write_json(temporary / STATE, state)
    digests = {STATE: _digest(temporary / STATE), **digests}
    write_json(temporary / MANIFEST, stamped(1 if TENSORS in digests else FORMAT, dict(sorted(digests.items()))))
    replace_folder(temporary, final)


def apart(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Parts in main memory. safetensors refuses those that share memory (tied weights), so all but the first of these are
    copied; a copy of everything would be as much memory again.
    """
    separate, places = {}, set()
    for name, part in parts.items():
        tensor = part.tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        separate[name] = Part(tensor.clone() if place in places else tensor, part.begins, part.shape)
        places.add(place)
    return separate


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove what the checkpoint of a step makes superfluous. What cannot be removed now is tried again after the next one."""
    # Newer ones than this are what loading passed over as damaged; they must not push whole ones out.
    steps = checkpoint_steps(folder)
    newer, older = ([folder_of(folder, one) for one in steps if test(one)] for test in (lambda s: s > step, lambda s: s < step))
    unfinished = [path for path in folder.glob(".step-*") if path.suffix in (".tmp", ".old")]
    for superfluous in [*unfinished, *newer, *older[: len(older) - keep + 1]]:
        try:
            shutil.rmtree(superfluous)
        except OSError as error:
            logger.warning(f"{superfluous} cannot be removed ({error.strerror}).")


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint below `folder` whose manifest holds, with its tensors in one piece each, or None."""
    step = find_checkpoint(folder)
    found = None if step is None else open_checkpoint(folder, step)
    return found and Checkpoint(found.step, dict(found.tensors), found.state)


def find_checkpoint(folder: Path) -> int | None:
    """The step of the newest checkpoint below `folder` whose manifest holds, or None. Reads every byte of it.

    Raises:
        ValueError: a newer unimm wrote it.
    """
    for step in reversed(checkpoint_steps(folder)):
        if passes(folder, step):
            return step
    return None


def passes(folder: Path, step: int, number: int = 0, count: int = 1) -> bool:
    """Whether the manifest of a checkpoint holds; where it does not, the log says why. Of `count` processes that look at it
    together, this is `number`: each reads its share of the files.

    Raises:
        ValueError: a newer unimm wrote it.
    """
    problem = _problem(folder_of(folder, step), number, count)
    if problem is not None:
        logger.warning(f"Passing over checkpoint {folder_of(folder, step).name}: {problem}.")
    return problem is None


def open_checkpoint(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step that `find_checkpoint` gave, here or in another process. Tensors are mapped from the files: what
    is not used is not read, and processes of a machine share what is.
    """
    path = folder_of(folder, step)
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return Checkpoint(state.pop("step"), StoredTensors(_tensor_files(path)), state)


def peek(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint below `folder`, unproved and without its tensors, for what has to be known before a
    model is built; None where there is none."""
    for step in reversed(checkpoint_steps(folder)):
        try:
            state = read_json(folder_of(folder, step) / STATE)
        except ValueError:
            continue  # damaged: what opens the checkpoint says so
        if state is not None:
            return state
    return None


def weights_of(checkpoint: Checkpoint, prefix: str) -> Mapping[str, torch.Tensor]:
    """The tensors of a checkpoint under `prefix/`, without it."""
    if isinstance(checkpoint.tensors, StoredTensors):
        return checkpoint.tensors.under(f"{prefix}/")
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
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], names: dict[int, str], prefix: str
) -> None:
    """The inverse of `optimizer_tensors`, into an optimizer over the same parameters."""
    parameters = {names[id(p)]: (p, group) for group in optimizer.param_groups for p in group["params"]}
    for name in tensors:
        if not name.startswith(f"{prefix}/"):
            continue
        parameter_name, key = name.removeprefix(f"{prefix}/").rsplit("/", 1)
        parameter, group = parameters[parameter_name]
        shape = tensors.shapes[name] if isinstance(tensors, StoredTensors) else tensors[name].shape
        own = (read_like(tensors, name, parameter) if shape else tensors[name]).clone()
        # Step counters are scalars and stay on the CPU, but where a fused optimizer reads them on the device.
        optimizer.state[parameter][key] = own.to(parameter.device) if shape or group.get("fused") else own


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, or will."""
    return folder / f"step-{step:08d}"


def file_of(number: int, count: int) -> str:
    """The name of the file that process `number` of `count` writes."""
    return TENSORS if count == 1 else f"tensors-{number:05d}-of-{count:05d}.safetensors"


def checkpoint_steps(folder: Path) -> list[int]:
    """Of all checkpoints below a folder, whole or damaged, the oldest first."""
    found = (re.fullmatch(r"step-(\d+)", path.name) for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def is_whole(final: Path) -> bool:
    """Whether there is such a checkpoint and its manifest holds."""
    return final.is_dir() and _problem(final) is None


def _tensor_files(folder: Path) -> list[Path]:
    """The files of tensors that a manifest names."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return [folder / name for name in manifest if name not in (STATE, FORMAT_VERSION)]


def _problem(folder: Path, number: int = 0, count: int = 1) -> str | None:
    """Why a checkpoint cannot be trusted, or None; of its files each of `count` looks at its share. ValueError: a newer unimm
    wrote it, which is no damage to pass over."""
    if not (folder / MANIFEST).is_file():
        return "it has no manifest"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: str(digest) for name, digest in manifest.items() if name != FORMAT_VERSION}
    except (ValueError, AttributeError):
        return "its manifest cannot be read"
    check_format(manifest, FORMAT, folder / MANIFEST)
    tensors = files.keys() - {STATE}
    if STATE not in files or tensors != {file_of(one, len(tensors)) for one in range(len(tensors))} or not tensors:
        return "its manifest does not name all of its files"
    for name, digest in list(files.items())[number::count]:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} does not match its manifest"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
