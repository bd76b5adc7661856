"""Folders that one process at a time writes to, such as a run's: a second one waits, and then is refused by name.

The lock is the system's, on a file in the folder: it ends with the process that holds it, however that ends, and a folder that
was copied has none. It is by process and not by file, so what a process forks does not hold it, and a folder that is used twice
in one process is no mistake. Where a system or a disk has no such locks, nothing is locked.
"""

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from unimm.runtime.rank_sync import Ranks

LOCK = ".lock"

PATIENCE = 100.0
"""Seconds to wait: what was told to stop may be saving, and a shared disk takes a while to know that a machine is gone."""

_held: dict[Path, int] = {}
"""Of folders, an open file each: to close any other of the same file would end the lock."""


def occupy(folder: Path, say: Callable[[str], None], patience: float | None = None) -> None:
    """Make this process the only one that writes to a folder, which is made if need be, until `leave`.

    Args:
        say: called with a sentence when this has to wait. patience: seconds, 0: do not wait; None: PATIENCE.

    Raises:
        ValueError: another process still writes to it; says which.
    """
    folder = folder.resolve()
    if os.name != "posix" or folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return  # nothing can be written here: what writes says so
    patience = PATIENCE if patience is None else patience
    deadline = time.monotonic() + patience
    is_told = False
    while not _lock(descriptor):
        who = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
        if not patience or time.monotonic() > deadline:
            os.close(descriptor)
            raise ValueError(f"{folder} is being written to by {who}: wait until it has ended, or name another folder.")
        if not is_told:
            is_told = True
            say(f"{folder} is being written to by {who}: waiting for it for up to {patience:.0f} seconds.")
        time.sleep(min(1.0, patience))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} of {socket.gethostname()}\n".encode(), 0)
    _held[folder] = descriptor


def occupy_together(folder: Path, ranks: Ranks, say: Callable[[str], None], patience: float | None = None) -> None:
    """`occupy` for the processes of a run, of which the first one holds it; raises in all of them."""
    failure: ValueError | None = None
    try:
        if ranks.number == 0:
            occupy(folder, say, patience)
    except ValueError as error:
        failure = error
    if ranks.any(failure is not None):
        raise failure or ValueError(f"{folder} is being written to by another run: wait, or name another folder.")


def leave(folder: Path) -> None:
    """Let others write to a folder."""
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock is ours; also where there are no locks."""
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
