"""What a run computes in: chosen once, written down, kept on other machines, and never emulated."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import make_config, make_trainer

from unimm.runtime import environment
from unimm.runtime.rank_sync import Ranks
from unimm.training import acceleration
from unimm.training.acceleration import settle_precision
from unimm.training.checkpoint import Checkpoint, load_checkpoint
from unimm.training.checkpoint_writer import save_checkpoint
from unimm.training.optimizers import Budget

CPU = torch.device("cpu")


def on(monkeypatch: pytest.MonkeyPatch, chosen: str, has_bf16: bool = True) -> None:
    """A machine on which `auto` chooses so."""
    monkeypatch.setattr(acceleration, "choose_precision", lambda asked, device: chosen if asked == "auto" else asked)
    monkeypatch.setattr(acceleration, "has_bf16", lambda device: has_bf16)


def begun(folder: Path, kept: str | None) -> Path:
    """A run's folder whose checkpoint tells so."""
    state = {} if kept is None else {"precision": kept}
    save_checkpoint(folder / "checkpoints", Checkpoint(3, {"weights/a": torch.zeros(1)}, state))
    return folder


@pytest.mark.parametrize(
    ("kept", "here", "has_bf16", "goes_on_in", "said"),
    [
        ("bf16", "bf16", True, "bf16", None),
        ("no", "no", False, "no", None),
        ("no", "bf16", True, "no", "goes on in float32, as it began on another machine; precision=bf16 goes on in bf16, which"),
        ("bf16", "no", True, "bf16", "goes on in bf16, as it began on another machine; precision=no goes on in float32, which"),
        ("bf16", "no", False, "no", "began in bf16, which this machine could only emulate: it goes on in float32"),
        (None, "bf16", True, "bf16", "precision=auto takes bf16 on this cpu device"),
    ],
)
def test_what_was_chosen_is_kept_and_another_machine_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: str | None,
    here: str,
    has_bf16: bool,
    goes_on_in: str,
    said: str | None,
) -> None:
    folder = begun(tmp_path, kept)
    on(monkeypatch, here, has_bf16)
    chosen, lines = settle_precision("auto", CPU, folder, Ranks())
    assert chosen == goes_on_in and len(lines) == (said is not None) and all(str(said) in line for line in lines)
    assert settle_precision("bf16", CPU, folder, Ranks()) == ("bf16", [])  # what is asked for is followed


def test_the_first_process_decides_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "no")
    second = Ranks()
    second.number = 1
    monkeypatch.setattr(second, "broadcast", lambda number: 1.0)  # the first one says bf16
    assert settle_precision("auto", CPU, tmp_path, second) == ("bf16", [])


def test_checkpoints_tell_and_a_run_goes_on_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(monkeypatch, "bf16")
    config = make_config(1, precision="auto")
    trainer = make_trainer(tmp_path, config)
    trainer.fit()
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert trainer.precision == "bf16" and kept is not None and kept.state["precision"] == "bf16"
    assert "precision=auto takes bf16" in capsys.readouterr().out
    on(monkeypatch, "no")
    again = make_trainer(tmp_path, replace(config, budget=Budget(max_steps=2)))
    assert again.precision == again.accelerator.mixed_precision == "bf16"
    assert "goes on in bf16, as it began on another machine" in " ".join(capsys.readouterr().out.split())


def test_a_run_keeps_its_threads_where_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other data loading processes, too: other numbers of threads round otherwise. Another machine has its own."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(acceleration, "usable_cores", lambda: 16)
    monkeypatch.setattr(environment, "usable_cores", lambda: 16)
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    for steps, num_workers, kept in ((1, 1, [15, 16]), (2, 2, [15, 16]), (3, 0, [15, 16])):
        trainer = make_trainer(tmp_path, make_config(steps, num_workers=num_workers))
        trainer.fit()
        assert trainer.threads == kept
    assert used == 3 * [15, before]
    assert acceleration.settle_threads([1, 2], 2, torch.device("cpu")) == [14, 16]
    assert acceleration.settle_threads([15, 16], 2, torch.device("cuda")) is None
