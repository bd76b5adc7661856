"""Every notebook runs from its first cell to its last, as someone who opens it would run it."""

import os
import signal
import time
from pathlib import Path

import nbformat
import pytest
from forks import begin_again
from launching import FORKS
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
MAX_SECONDS = 900
"""Of a cell: ends one that hangs. They take less than one minute on two idle cores, and much longer on busy ones."""


LONG = {"4_train_tiny": 50}
"""Those that take longer than most, and their seconds."""


class ForkedKernel:
    """As much of `subprocess.Popen` as the manager of a kernel uses: a fork of a process that has imported what notebooks do.

    What it says lies beside what the notebook writes."""

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], env: dict[str, str], cwd: str, **_: object) -> None:
        words = command[command.index("-m") :]
        self._process = FORKS.Process(target=begin_again, args=(words, f"{cwd}/kernel.log", cwd, env))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        while self._process.is_alive() and os.getpgid(self.pid) != self.pid:  # signals go to its group
            time.sleep(0.01)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=pytest.mark.slow(seconds=LONG.get(path.stem, 15))) for path in NOTEBOOKS],
)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first in a kernel that is started as Jupyter starts them; the kernels of the others are forks."""
    if path != NOTEBOOKS[0]:
        monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", ForkedKernel)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=MAX_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml", "text/html"}, "there is nothing to look at"


def test_notebooks_are_stored_without_what_they_gave() -> None:
    assert len(NOTEBOOKS) == 8
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert len(cells) <= 20
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells if cell.cell_type == "code"), (
            path.name
        )
