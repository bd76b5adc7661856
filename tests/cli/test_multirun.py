"""A sweep leaves what its runs write, and nothing of Hydra's; nor does a run that finds a mistake in its words."""

import tempfile
from pathlib import Path

import pytest
from omegaconf import DictConfig

from unimm.cli.compose import run_with_hydra


def leave_a_file(config: DictConfig) -> None:
    folder = Path(config.out)
    folder.mkdir(parents=True)
    (folder / "model").write_text(str(config.seed))


def files(folder: Path) -> dict[str, str]:
    """Files with what they hold, and folders that are empty."""
    found = (path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir()))
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "empty" for path in found}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which temporary files are made, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unimm"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("flag", ["--multirun", "-m", "hydra.mode=MULTIRUN"])
def test_a_sweep_leaves_its_arms_alone(flag: str, folder: Path) -> None:
    run_with_hydra("train_tokenizer", leave_a_file, [flag, "seed=3,4", "out=arms/lr${tokenizer_trainer.num_workers}-${seed}"])
    assert files(folder) == {"arms/lr1-3/model": "3", "arms/lr1-4/model": "4"}


def test_who_says_where_a_sweep_is_kept_finds_it_there(folder: Path) -> None:
    run_with_hydra("train_tokenizer", leave_a_file, ["-m", "seed=3,4", "out=arms/${seed}", "hydra.sweep.dir=kept"])
    left = files(folder)
    assert left.pop("kept/multirun.yaml") and left == {"arms/3/model": "3", "arms/4/model": "4"}


def test_a_run_that_finds_a_mistake_leaves_nothing(folder: Path) -> None:
    def refuse(config: DictConfig) -> None:
        raise ValueError("There is no such folder.")

    with pytest.raises(SystemExit):
        run_with_hydra("train_tokenizer", refuse, ["out=runs/new"])
    assert files(folder) == {}
