"""Checkpoints written beside the training: each process copies its part, and a thread of it writes the copy while steps go on.

    training   copies its parts .... steps ...... steps .... may begin the next one, when this one is done
    thread     makes the folder | writes and hashes its file | the first: manifest, rename, prune | what came of it
                                ^ all are here               ^ all have their file on the disk    ^ all know

The threads meet over a gloo group of their own (`^`), so no step waits and nothing passes through the devices' exchanges; where
a process is gone, its closed connection ends the meeting at once. The first process renames the folder when every file is on
the disk, and only then is a checkpoint called saved. A process that is killed anywhere leaves a folder under another name, that
nothing reads; of a run of several processes it bears a random number, so that one of an earlier start that is still alive
cannot write into it.
"""

import copy
import logging
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from unimm.checkpoints.tensor_shards import Part, StoredTensors
from unimm.runtime.atomic_files import temporary_folder
from unimm.runtime.devices import free_memory
from unimm.runtime.environment import local_processes
from unimm.runtime.number_checks import check_whole
from unimm.runtime.rank_sync import Ranks
from unimm.training.checkpoint import KEPT, Checkpoint, SaveError, apart, commit, file_of, folder_of, is_whole, prune, write_own
from unimm.training.own_parts import own_parts

NICENESS = 10
"""Of the thread, where the system knows that: on a CPU, steps come first."""

SPARE = 1.5
"""So many times what it copies must be free in main memory, with what other processes of this machine copy at the same time."""

PATIENCE = 90.0
"""Seconds in which the files of others must be seen: NFS may believe for 60 what it knew of a folder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointConfig:
    """How checkpoints are written. When: `save_every` and `save_minutes` of `LoopConfig`.

    background: while training goes on, from a copy in main memory; false: training waits until it is written.
    keep: so many of the newest stay.
    """

    background: bool = True
    keep: int = KEPT

    def __post_init__(self) -> None:
        check_whole(self, 1, "keep")
        if not isinstance(self.background, bool):
            raise ValueError(f"trainer.checkpoint.background is true or false, not {self.background!r}.")


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = KEPT) -> Path:
    """Write a checkpoint below `folder` at once, by this process alone, atomically; then keep the newest `keep`. A whole one of
    that step stays as it is.

    Returns:
        The checkpoint's own folder.

    Raises:
        SaveError: there is no room, or no right to write.
    """
    writer = CheckpointWriter(folder, Ranks(), CheckpointConfig(keep=keep))
    writer.write(checkpoint)
    saving = writer.wait()
    if saving is not None and saving.error is not None:
        raise saving.error
    return folder_of(folder, checkpoint.step)


@dataclass
class Saving:
    """One checkpoint on its way. seconds_copying: that training stood still for. error: why it was not written."""

    step: int
    num_bytes: int
    seconds_copying: float
    seconds: float = 0.0
    error: Exception | None = None


class CheckpointWriter:
    """Writes the checkpoints of a run below a folder, one at a time. All processes of the run call it at the same step."""

    def __init__(self, folder: Path, ranks: Ranks, config: CheckpointConfig | None = None) -> None:
        self.folder, self.config = folder, config or CheckpointConfig()
        self._ranks = Ranks(ranks.number, ranks.count)  # the threads' own group
        self._token = f"{int(ranks.broadcast(random.SystemRandom().getrandbits(32))):08x}" if ranks.count > 1 else ""
        self._buffers: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._saving: Saving | None = None
        self._has_told = False

    @property
    def is_writing(self) -> bool:
        """Whether one is still on its way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether the last one could not be written, and nobody has asked yet what came of it."""
        return self._saving is not None and not self.is_writing and self._saving.error is not None

    @property
    def has_finished(self) -> bool:
        """Whether the last one was written, and nobody has asked yet what came of it."""
        return self._saving is not None and not self.is_writing and self._saving.error is None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Begin to write a checkpoint, after `wait` was asked for the last one. Its tensors may change as soon as this returns.
        Where main memory has no room for a copy, it is written now."""
        assert self._saving is None, "one at a time"
        started = time.monotonic()
        parts = own_parts(checkpoint.tensors, self._ranks.number, self._ranks.count)
        num_bytes = sum(part.tensor.nbytes for part in parts.values())
        if not self.config.background or not self._has_room(parts, num_bytes):
            self.write(checkpoint)
            return
        try:
            copies = self._copy(parts)
        except (MemoryError, RuntimeError) as error:  # PyTorch's, where memory cannot be had, or not pinned
            self._buffers.clear()
            self._say_no_room(num_bytes, f" ({_first_line(error)})")
            self.write(checkpoint)
            return
        saving = self._saving = Saving(checkpoint.step, num_bytes, time.monotonic() - started)
        words = (saving, copies, replace(checkpoint, state=copy.deepcopy(checkpoint.state)))
        self._thread = threading.Thread(target=self._run, args=words, name="checkpoint", daemon=True)
        self._thread.start()

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint at once, without a copy of what is in main memory; `wait` tells what came of it."""
        assert self._saving is None, "one at a time"
        parts = apart(own_parts(checkpoint.tensors, self._ranks.number, self._ranks.count))
        saving = self._saving = Saving(checkpoint.step, sum(part.tensor.nbytes for part in parts.values()), 0.0)
        self._write(saving, parts, checkpoint)
        saving.seconds_copying = saving.seconds

    def wait(self, on_waiting: Callable[[Saving], None] = lambda saving: None) -> Saving | None:
        """What came of the last one, when it is done; None: nothing was begun since this was asked. on_waiting: called where
        that takes more than a moment.

        Raises whatever else than trouble with the disk or another process came to the thread.
        """
        saving, self._saving = self._saving, None
        if self._thread is not None and saving is not None:
            self._thread.join(1.0)
            if self._thread.is_alive():
                on_waiting(saving)
                self._thread.join()
        self._thread = None
        if saving is not None and saving.error is not None and not isinstance(saving.error, SaveError):
            raise saving.error
        return saving

    def close(self) -> None:
        """Wait for the thread, where the run ends by an error; one that does not finish then is not read."""
        if self._thread is not None:
            self._thread.join()

    def _has_room(self, parts: Mapping[str, Part], num_bytes: int) -> bool:
        missing = num_bytes - sum(buffer.nbytes for buffer in self._buffers.values())
        is_enough = SPARE * missing * local_processes() <= free_memory(torch.device("cpu"))
        if not is_enough:
            self._say_no_room(num_bytes)
        return is_enough

    def _say_no_room(self, num_bytes: int, why: str = "") -> None:
        """Once a run."""
        if not self._has_told:
            self._has_told = True
            logger.warning(
                f"A copy of what process {self._ranks.number} saves takes {num_bytes / 1e9:.1f} GB, for which main memory has "
                f"no room{why}: training waits until its checkpoints are written."
            )

    def _copy(self, parts: Mapping[str, Part]) -> dict[str, Part]:
        """In main memory. What comes from a GPU goes to pages that stay and are pinned, which is many times as fast."""
        copies, devices = {}, {part.tensor.device for part in parts.values() if part.tensor.is_cuda}
        for name, part in parts.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != part.tensor.shape or buffer.dtype != part.tensor.dtype:
                buffer = torch.empty(part.tensor.shape, dtype=part.tensor.dtype, pin_memory=part.tensor.is_cuda)
            if part.tensor.is_cuda:
                self._buffers[name] = buffer
            copies[name] = Part(buffer.copy_(part.tensor, non_blocking=True), part.begins, part.shape)
        for device in devices:
            torch.cuda.synchronize(device)
        return copies

    def _run(self, saving: Saving, parts: Mapping[str, Part], checkpoint: Checkpoint) -> None:
        """The thread."""
        if sys.platform == "linux":  # elsewhere this is about the whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        self._write(saving, parts, checkpoint)

    def _write(self, saving: Saving, parts: Mapping[str, Part], checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        try:
            self._write_together(checkpoint, parts)
        except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: another process is gone
            saving.error = error if isinstance(error, SaveError) else SaveError.of(error, self.folder, saving.step)
        except Exception as error:  # the training's thread raises it
            saving.error = error
        saving.seconds = time.monotonic() - started

    def _write_together(self, checkpoint: Checkpoint, parts: Mapping[str, Part]) -> None:
        final, is_first = folder_of(self.folder, checkpoint.step), self._ranks.number == 0
        temporary = final.with_name(f".{final.name}.{self._token}.tmp" if self._token else f".{final.name}.tmp")
        try:
            with self._all_or_none(checkpoint.step):
                is_there = is_first and is_whole(final)
                if is_first and not is_there:
                    temporary_folder(final, temporary.name)
            if not self._ranks.any(is_there):
                self._fill(temporary, final, checkpoint, parts)
        except BaseException:
            if is_first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if is_first:
            prune(self.folder, checkpoint.step, self.config.keep)

    def _fill(self, temporary: Path, final: Path, checkpoint: Checkpoint, parts: Mapping[str, Part]) -> None:
        """Write what belongs into the temporary folder, and give it its name."""
        ranks, digest = self._ranks, ""
        with self._all_or_none(checkpoint.step):
            temporary.mkdir(exist_ok=True)  # a shared disk may show it late
            digest = write_own(temporary / file_of(ranks.number, ranks.count), parts)
        told = [one.decode() for one in ranks.gather(digest.encode())]
        with self._all_or_none(checkpoint.step):
            if ranks.number == 0:
                digests = {file_of(number, ranks.count): digest for number, digest in enumerate(told)}
                _check(temporary, digests, checkpoint.tensors)
                commit(temporary, final, {"step": checkpoint.step, **checkpoint.state}, digests)

    @contextmanager
    def _all_or_none(self, step: int) -> Iterator[None]:
        """The processes leave this together, and where one fails all do."""
        failure: Exception | None = None
        try:
            yield
        except (OSError, SafetensorError) as error:
            failure = error
        if self._ranks.any(failure is not None):
            raise failure or SaveError(
                f"Another process could not write its part of the checkpoint of step {step}, and says why; older ones stay."
            )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check(temporary: Path, names: Collection[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """That every file is to be seen, and that together they hold all tensors. OSError: a file is not to be seen."""
    deadline = time.monotonic() + PATIENCE
    while unseen := [name for name in names if not (temporary / name).is_file()]:
        if time.monotonic() > deadline:
            raise OSError(f"the first process does not see {unseen[0]}, which another wrote: they must share this folder")
        time.sleep(0.1)
    stored = StoredTensors([temporary / name for name in names])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert stored.shapes == shapes, "the processes did not agree who writes what"
