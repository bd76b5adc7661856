"""Trials of benchmarks in forks of the tests' process, which need not import torch and transformers again."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from forks import run_fork

from unimm.bench import subprocess_trials


@pytest.fixture
def forked_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial still has a process of its own. That `python -m` starts them is shown by tests that do without this."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return run_fork(command, tmp_path)

    monkeypatch.setattr(subprocess_trials, "subprocess", SimpleNamespace(run=run))
