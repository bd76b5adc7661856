"""What comes to one of two processes (a signal, a full disk, a loss that is none) is answered by both after the same step."""

import json
import re
from pathlib import Path

import pytest
from launching import run_ranks

from unimm.training.checkpoint import load_checkpoint
from unimm.training.logbook import read_numbers

SCRIPT = Path(__file__).with_name("train_toy_troubled.py")
GATHERED = {"all_gather_into_tensor", "reduce_scatter_tensor"}
OUTCOMES = {
    "signal": ("exit 138, step 3, skipped 0", 3),
    "disk": ("SaveError, step [34], skipped 0", None),
    "data": ("DataError, step 2, skipped 0", 2),
    "stop": ("NotFiniteError, step 2, skipped 0", 2),
    "skip": ("finished, step 6, skipped 1", 6),
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every trouble, one after the other: two processes as a launcher starts them, without one that would end the other."""
    folder = tmp_path_factory.mktemp("troubles")
    others = ("leave", "goes_on", "shards", "shards_go_on", "apart", "exchanges", "shards_exchange")
    run_ranks(SCRIPT, folder, *OUTCOMES, *others, seconds=300)
    return folder


@pytest.mark.parametrize("trouble", OUTCOMES)
def test_both_do_the_same(room: Path, trouble: str) -> None:
    outcome, saved = OUTCOMES[trouble]
    first, second = ((room / trouble / f"outcome-{rank}").read_text() for rank in range(2))
    assert first == second, "the same step and the same weights"
    assert re.match(outcome, first)
    checkpoint = load_checkpoint(room / trouble / "checkpoints")
    assert (checkpoint and checkpoint.step) == saved
    assert not list((room / trouble / "checkpoints").glob(".step-*"))


@pytest.mark.parametrize(("run", "again"), [("leave", "goes_on"), ("shards", "shards_go_on")])
def test_the_first_validates_while_the_other_waits_and_makes_up_for_what_it_left(room: Path, run: str, again: str) -> None:
    first, second = ((room / run / f"outcome-{rank}").read_text() for rank in range(2))
    assert first == second, "the same steps and the same weights"
    ends = [line.rpartition(",")[0] for line in first.splitlines()]
    assert ends == ["exit 138, step 3, skipped 0", "finished, step 6, skipped 0"]
    assert (room / run / "validated-0").read_text().splitlines() == [f"3 {run}", f"3 {again}", f"6 {again}"]
    assert not (room / run / "validated-1").exists()
    lines = read_numbers(room / run / "metrics.jsonl")
    assert [line["step"] for line in lines if "validation/mean" in line] == [3, 6]
    checkpoint = load_checkpoint(room / run / "checkpoints")
    assert checkpoint is not None and checkpoint.state["ema"] == {"num_updates": 6}


@pytest.mark.parametrize(("run", "of_shards"), [("exchanges", set()), ("shards_exchange", GATHERED)])
def test_a_step_has_one_exchange_beside_what_the_gradient_needs(room: Path, run: str, of_shards: set[str]) -> None:
    """Counts, signals, lost data, clocks and losses that are not finite, in one sum of a small tensor."""
    calls = [json.loads((room / run / f"exchanges-{rank}").read_text()) for rank in range(2)]
    assert calls[0] == calls[1]
    for of_step in calls[0][1:5]:  # the first sets up, and the last is saved
        assert set(of_step) - of_shards == {"all_reduce"} and of_step.count("all_reduce") == 1


def test_neither_goes_on_where_one_finds_no_checkpoint(room: Path) -> None:
    for rank in range(2):
        assert "Not every process finds the checkpoint of step 6" in (room / f"apart-{rank}").read_text()
