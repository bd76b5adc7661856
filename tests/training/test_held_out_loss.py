"""What is held out: the same records in every view, and a loss that depends neither on rows nor on processes."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from toy_trainings import halves
from toys import Squares, make_config, make_model

from unimm.batch import collate
from unimm.data.holdout import hold_out
from unimm.data.mixture import Source
from unimm.training.held_out_loss import HeldOut
from unimm.training.logbook import read_numbers
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.trainer import Trainer


def keys_of(source: Source) -> set[str]:
    return {source.dataset[index].key for index in range(len(source.dataset))}


def test_all_views_hold_out_the_same_records() -> None:
    learned, held = halves()
    assert len({frozenset(keys_of(source)) for source in held.sources}) == 1
    for ours, theirs in zip(learned.sources, held.sources, strict=True):
        assert len(keys_of(theirs)) == 3 and keys_of(ours) | keys_of(theirs) == {f"squares/{index}" for index in range(12)}
    with pytest.raises(ValueError, match="12 records cannot be held out of the 12 of 'toys': lower held_out"):
        hold_out({"toys": Squares()}, 12)


def test_the_loss_is_that_of_all_samples_one_by_one() -> None:
    """Whatever the rows; and of two processes each does its share, in as many passes as the other."""
    _, held = halves()
    objective = Likelihood(make_model()).eval()
    sums: dict[str, list[float]] = {}
    for number in range(len(held.sources)):
        for sample in ((number, n) for n in range(3)):
            with torch.no_grad():
                tallies = objective(collate([[held.sequence(sample)]]))
            for name, tally in tallies.items():
                sums.setdefault(name, [0.0, 0.0])
                sums[name] = [sums[name][0] + float(tally.loss), sums[name][1] + float(tally.count)]
    means = {f"loss_{name}": loss / count for name, (loss, count) in sums.items()}
    for num_rows in (1, 2, 50):
        told = HeldOut(held, 64, num_rows).losses(objective, {"codes": 0.5}, Accelerator(cpu=True), lambda: False)
        assert told == pytest.approx({**means, "loss": means["loss_text"] + 0.5 * means["loss_codes"]}, rel=1e-4)
    shares = [[batch for _, batch in HeldOut(held, 64, 2).batches(rank, 2)] for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    counted = sum(float(batch.weights.sum()) for share in shares for batch in share)
    assert counted == sum(float(batch.weights.sum()) for _, batch in HeldOut(held, 64, 2).batches(0, 1))


def test_the_processes_add_up_what_they_found() -> None:
    """Of two processes, played one after the other, with what each would send."""
    _, held = halves()
    objective = Likelihood(make_model()).eval()
    sent: list[torch.Tensor] = []

    def play(rank: int, others: torch.Tensor | None) -> Any:
        def reduce(own: torch.Tensor, how: str) -> torch.Tensor:
            sent.append(own)
            return own if others is None else own + others

        real = Accelerator(cpu=True)
        here = {"process_index": rank, "num_processes": 2, "device": real.device, "autocast": real.autocast, "reduce": reduce}
        return HeldOut(held, 64, 1).losses(objective, {}, SimpleNamespace(**here), lambda: False)  # pyright: ignore

    play(1, None)
    assert play(0, sent[0]) == pytest.approx(HeldOut(held, 64, 1).losses(objective, {}, Accelerator(cpu=True), lambda: False))


def make_trainer(folder: Path, max_steps: int, **changes: Any) -> Trainer:
    learned, held = halves()
    torch.manual_seed(0)
    config = make_config(max_steps, **{"validate_every": 2, "num_rows": 4, **changes})
    return Trainer(Likelihood(make_model()), learned, config, folder, "cpu", held_out=held)


def losses_of(folder: Path) -> dict[int, float]:
    lines = read_numbers(folder / "metrics.jsonl")
    return {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}


def test_it_leaves_no_trace_in_the_training(tmp_path: Path) -> None:
    """And needs nobody who scores."""
    with_it, without = make_trainer(tmp_path / "with", 6), make_trainer(tmp_path / "without", 6, validate_every=0)
    with_it.fit()
    without.fit()
    ours, theirs = with_it.model.state_dict(), without.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(losses_of(tmp_path / "with")) == [2, 4, 6] and not losses_of(tmp_path / "without")


def test_what_a_signal_cut_short_is_made_when_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_trainer(tmp_path / "whole", 4)
    whole.fit()
    trainer = make_trainer(tmp_path / "cut", 4)
    losses = HeldOut.losses

    def interrupted(self: HeldOut, *words: Any) -> Any:
        if trainer.step == 2:
            signal.raise_signal(signal.SIGUSR1)
        return losses(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "losses", interrupted)
        with pytest.raises(SystemExit):
            trainer.fit()
    assert not losses_of(tmp_path / "cut")
    make_trainer(tmp_path / "cut", 4).fit()
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
