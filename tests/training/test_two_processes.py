"""Two processes learn what one learns: the same global batch, cut differently, gives the same losses, by either launcher."""

import os
import subprocess
from pathlib import Path

import pytest
from launching import accelerate, torchrun
from toys import make_config, make_mixture, make_trainer

from unimm.training.checkpoint import load_checkpoint
from unimm.training.logbook import read_numbers

SCRIPT = str(Path(__file__).with_name("train_toy.py"))
STEPS, HALF = 50, 24
TOLERANCE = 1e-4


def launch(launcher: list[str], *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """more: of the environment."""
    command = [*launcher, SCRIPT, *(str(word) for word in words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def losses(folder: Path) -> list[tuple[float, float]]:
    lines = read_numbers(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [(line["loss/text"], line["loss/codes"]) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    """The losses of one process."""
    folder = tmp_path_factory.mktemp("alone")
    make_trainer(folder, make_config(STEPS), make_mixture(), device="cpu").fit()
    return losses(folder)


def test_two_processes_learn_what_one_learns_and_go_on_by_another_launcher(alone, tmp_path: Path) -> None:
    """9 rows a step are 5 and 4: ranks, and micro-batches of ranks, hold different numbers of targets. An interrupt of one rank
    stops both after the same step."""
    result = launch(accelerate(2), tmp_path, STEPS, 1, "interrupt", HALF)
    assert result.returncode != 0
    assert (tmp_path / "processes").read_text() == "2"
    checkpoint = load_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.step == HALF
    assert len(losses(tmp_path)) == HALF
    (tmp_path / "processes").unlink()
    result = launch(torchrun(2), tmp_path, STEPS, 2)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "processes").read_text() == "2"
    together = losses(tmp_path)
    assert len(together) == len(alone) == STEPS
    assert alone[-1][0] < 0.5 * alone[0][0]
    worst = max(abs(a - b) for one, two in zip(alone, together, strict=True) for a, b in zip(one, two, strict=True))
    print(f"worst difference of a loss in {STEPS} steps: {worst:.2e}")
    assert worst < TOLERANCE


@pytest.mark.slow
def test_a_launcher_restarts_what_was_killed_and_it_ends_as_if_nothing_had_been(alone, tmp_path: Path) -> None:
    """As recipes/slurm.sbatch and a Kubernetes job start it: one process is killed at step 9, before its checkpoint, and both
    begin again from that of step 6."""
    steps = 15
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    result = launch(torchrun(2, max_restarts=1), tmp_path, steps, 1, "kill", 9, **own_store)
    assert result.returncode == 0, result.stderr
    assert "SIGKILL" in result.stderr or "-9" in result.stderr
    together = losses(tmp_path)
    assert len(together) == steps
    worst = max(abs(a - b) for one, two in zip(alone, together, strict=False) for a, b in zip(one, two, strict=True))
    assert worst < TOLERANCE
