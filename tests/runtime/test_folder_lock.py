"""A folder that one process at a time writes to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unimm.runtime.folder_lock import LOCK, leave, occupy

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("process 7 of elsewhere", file=file, flush=True)
print("held", flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")


def test_another_process_is_waited_for_and_then_named(tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-S", "-c", HOLDER, folder / LOCK], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(ValueError, match=r"run is being written to by process 7 of elsewhere: wait .* or name another"):
            occupy(folder, said.append, patience=0.05)
        assert len(said) == 1 and "waiting for it" in said[0]
        occupy(shutil.copytree(folder, tmp_path / "copied"), said.append, patience=0.0)
        other.kill()
    occupy(folder, said.append, patience=5.0)
    assert len(said) == 1 and f"process {os.getpid()} of" in (folder / LOCK).read_text()
    occupy(folder, said.append)  # the same process once more
    leave(folder)
    leave(tmp_path / "copied")
    leave(folder)


def test_what_is_forked_does_not_hold_it(tmp_path: Path) -> None:
    occupy(tmp_path, print)
    sleeper = subprocess.Popen(["sleep", "600"], close_fds=False)
    leave(tmp_path)
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert subprocess.run([sys.executable, "-S", "-c", code, tmp_path / LOCK]).returncode == 0
    sleeper.kill()
    sleeper.wait()


def test_where_nothing_can_be_written_nothing_is_locked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    occupy(tmp_path / "file" / "run", print)
    leave(tmp_path / "file" / "run")
