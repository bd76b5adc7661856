"""Every notebook runs from its first cell to its last, as someone who opens it would run it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
MAX_SECONDS = 900
"""Of a cell: ends one that hangs. They take less than one minute on two idle cores, and much longer on busy ones."""


LONG = {"4_train_tiny": 50}
"""Those that take longer than most, and their seconds."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=pytest.mark.slow(seconds=LONG.get(path.stem, 15))) for path in NOTEBOOKS],
)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
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
