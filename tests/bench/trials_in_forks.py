"""Trials of benchmarks in forks of the tests' process, which need not import torch and transformers again."""

import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from unimm.bench import subprocess_trials


def _run_as(words: list[str], folder: Path) -> NoReturn:
    """In the child: what `python WORDS` does, and no more; what it says goes into files."""
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        is_module = words[0] == "-m"
        sys.argv = words[is_module:]
        (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the tests' own process ends with it


@pytest.fixture
def forked_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial still has a process of its own. That `python -m` starts them is shown by tests that do without this."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        child = os.fork()
        if child == 0:
            _run_as(command[1:], tmp_path)
        _, status = os.waitpid(child, 0)
        said = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), *said)

    monkeypatch.setattr(subprocess_trials, "subprocess", SimpleNamespace(run=run))
