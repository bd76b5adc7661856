"""Samples of two sequences stay together in two processes with two micro-batches each: they learn what one process learns, and
objectives that compare sequences have the gradients of a plain loop (`test_joint_objectives` has the loop)."""

from pathlib import Path

import pytest
from joint_toys import CASES, make_objective
from launching import run_ranks
from pairs import make_pairs
from safetensors.torch import load_file
from test_joint_objectives import assert_close, plain_gradients
from toy_trainings import assert_equal
from toys import make_config, make_trainer
from train_pairs import Pairing

from unimm.training.held_out_loss import HeldOut
from unimm.training.logbook import read_numbers

SCRIPT = Path(__file__).with_name("train_pairs.py")
NAMES = ("loss/text", "loss/codes", "loss/pairs")
STEPS = 4


def losses(folder: Path) -> list[list[float]]:
    return [[line.get(name, 0.0) for name in NAMES] for line in read_numbers(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, and the first step's gradients of every case of `joint_toys`."""
    folder = tmp_path_factory.mktemp("processes")
    run_ranks(SCRIPT, folder, STEPS, 2)
    return folder


def test_two_processes_learn_what_one_learns(two: Path, tmp_path: Path) -> None:
    """`loss/pairs` is the mean over samples of what their sequences give together: torn apart, they would give another."""
    make_trainer(tmp_path / "alone", make_config(STEPS, num_positions=40, num_rows=8), make_pairs(), Pairing).fit()
    assert (two / "processes").read_text() == "2"
    alone, together = losses(tmp_path / "alone"), losses(two)
    assert len(alone) == len(together) == STEPS and alone[0][2] > 100
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_a_plain_loop(two: Path, name: str) -> None:
    """Whole and in shards; the negatives of contrastive losses are all others of the step, of both processes."""
    assert_close(load_file(two / name / "gradients.safetensors"), plain_gradients(name))


def test_heads_are_put_together_from_shards(two: Path) -> None:
    for name in ("softmax", "sigmoid", "qformer"):
        expected = {f"{own}.{k}": v for own, head in make_objective(name).heads().items() for k, v in head.state_dict().items()}
        assert_equal(load_file(two / name / "heads.safetensors"), expected)


def test_held_out_samples_stay_together_too(tmp_path: Path) -> None:
    """Every sample once, with all of its sequences in one batch of one rank; ranks have as many batches as each other."""
    mixture = make_pairs()
    found = []
    for num_ranks in (1, 2, 3):
        shares = [[one for _, one in HeldOut(mixture, 40, 2).batches(rank, num_ranks)] for rank in range(num_ranks)]
        assert len({len(share) for share in shares}) == 1
        objective = Pairing.__new__(Pairing)
        batches = [batch for share in shares for batch in share if batch.documents.any()]
        found.append(sorted(value for batch in batches for value in Pairing.together(objective, batch).tolist()))
        assert all({place for _, place in batch.samples.tolist()} <= {0, 1} for batch in batches)
    assert found[0] == found[1] == found[2] and len(found[0]) == 2 * 12
