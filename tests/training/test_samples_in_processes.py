"""Samples of two sequences stay together in two processes with two micro-batches each: they learn what one process learns."""

import os
import subprocess
from pathlib import Path

import pytest
from launching import torchrun
from pairs import make_pairs
from toys import make_config, make_trainer
from train_pairs import Pairing

from unimm.training.held_out_loss import HeldOut
from unimm.training.logbook import read_numbers

SCRIPT = str(Path(__file__).with_name("train_pairs.py"))
NAMES = ("loss/text", "loss/codes", "loss/pairs")
STEPS = 4


def losses(folder: Path) -> list[list[float]]:
    return [[line.get(name, 0.0) for name in NAMES] for line in read_numbers(folder / "metrics.jsonl")]


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """`loss/pairs` is the mean over samples of what their sequences give together: torn apart, they would give another."""
    make_trainer(tmp_path / "alone", make_config(STEPS, num_positions=40, num_rows=8), make_pairs(), Pairing).fit()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*torchrun(2), SCRIPT, str(tmp_path / "two"), str(STEPS), "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "two/processes").read_text() == "2"
    alone, together = losses(tmp_path / "alone"), losses(tmp_path / "two")
    assert len(alone) == len(together) == STEPS and alone[0][2] > 100
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=1e-5)


def test_held_out_samples_stay_together_too(tmp_path: Path) -> None:
    """Every sample once, with all of its sequences in one batch of one rank; ranks have as many batches as each other."""
    mixture = make_pairs()
    found = []
    for num_ranks in (1, 2, 3):
        shares = [list(HeldOut(mixture, 40, 2)._batches(rank, num_ranks)) for rank in range(num_ranks)]
        assert len({len(share) for share in shares}) == 1
        objective = Pairing.__new__(Pairing)
        batches = [batch for share in shares for batch in share if batch.documents.any()]
        found.append(sorted(value for batch in batches for value in Pairing.together(objective, batch).tolist()))
        assert all({place for _, place in batch.samples.tolist()} <= {0, 1} for batch in batches)
    assert found[0] == found[1] == found[2] and len(found[0]) == 2 * 12
