"""Checkpoints in the background: of the step that they were begun at, one at a time, announced when they are whole."""

import threading
import time
from pathlib import Path

import pytest
import torch
from toy_trainings import assert_equal, weights_of
from toys import make_config, make_trainer

from unimm.runtime.rank_sync import Ranks
from unimm.training import checkpoint_writer
from unimm.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from unimm.training.checkpoint_writer import CheckpointConfig, CheckpointWriter


class Gate:
    """In place of what writes a file: it waits until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open, self.write, self.num_waiting = threading.Event(), checkpoint_writer.write_own, 0
        patch.setattr(checkpoint_writer, "write_own", self)

    def __call__(self, *words) -> str:
        self.num_waiting += 1
        assert self.open.wait(60) and self.num_waiting == 1, "one at a time"
        self.num_waiting -= 1
        return self.write(*words)


def test_what_is_written_is_of_the_step_that_it_was_begun_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer = Gate(monkeypatch), CheckpointWriter(tmp_path, Ranks())
    weights = torch.zeros(4)
    writer.begin(Checkpoint(3, {"a": weights, "tied": weights}, {"seconds": 1.0}))
    weights += 1  # the training goes on
    assert writer.is_writing and find_checkpoint(tmp_path) is None
    gate.open.set()
    saving = writer.wait()
    assert saving is not None and saving.error is None and saving.num_bytes == 32 and writer.wait() is None
    read = load_checkpoint(tmp_path)
    assert read is not None and read.step == 3
    assert [tensor.tolist() for tensor in read.tensors.values()] == [[0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_run_with_it_ends_as_one_that_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainers = {}
    for name, background in (("beside", True), ("waiting", False)):
        settings = CheckpointConfig(background=background, keep=3)
        trainers[name] = make_trainer(tmp_path / name, make_config(7, save_every=2, checkpoint=settings))
        trainers[name].fit()
        told = capsys.readouterr().out
        assert all(f"Saved step {step}: " in told for step in (2, 4, 6))
        steps = sorted(path.name[-1] for path in (tmp_path / name / "checkpoints").iterdir())
        assert steps == ["4", "6", "7"]
    assert_equal(weights_of(trainers["beside"]), weights_of(trainers["waiting"]))
    one, other = (load_checkpoint(tmp_path / name / "checkpoints") for name in trainers)
    assert one is not None and other is not None
    assert_equal(one.tensors, other.tensors)


def test_the_next_one_waits_for_the_last_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate, trainer = Gate(monkeypatch), make_trainer(tmp_path, make_config(4, save_every=1))
    say = trainer._say_waiting
    monkeypatch.setattr(trainer, "_say_waiting", lambda saving: (say(saving), gate.open.set()))
    trainer.fit()
    told = capsys.readouterr().out
    assert "Training waits: the checkpoint of step 1 is still being written." in told
    assert told.index("Training waits") < told.index("Saved step 1: ") < told.index("Saved step 3: ")
    assert find_checkpoint(tmp_path / "checkpoints") == 4


def test_without_room_for_a_copy_training_waits(tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(checkpoint_writer, "free_memory", lambda _: 100)
    writer = CheckpointWriter(tmp_path, Ranks())
    for step in (1, 2):
        writer.begin(Checkpoint(step, {"a": torch.zeros(1000)}, {}))
        assert not writer.is_writing and find_checkpoint(tmp_path) == step and writer.wait() is not None
    assert caplog.text.count("main memory has no room: training waits until its checkpoints are written") == 1


@pytest.mark.parametrize(("processes", "is_beside"), [("1", True), ("2", False)])
def test_processes_of_a_machine_share_its_memory(tmp_path: Path, monkeypatch, processes: str, is_beside: bool) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(checkpoint_writer, "free_memory", lambda _: 7000)
    writer, copied = CheckpointWriter(tmp_path, Ranks()), list[int]()
    copy = writer._copy
    monkeypatch.setattr(writer, "_copy", lambda parts: (copied.append(len(parts)), copy(parts))[1])
    writer.begin(Checkpoint(1, {"a": torch.zeros(1000)}, {}))
    assert writer.wait() is not None and bool(copied) == is_beside and find_checkpoint(tmp_path) == 1


def test_where_memory_cannot_be_had_training_waits(tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes\nand a trace")

    writer = CheckpointWriter(tmp_path, Ranks())
    monkeypatch.setattr(writer, "_copy", fail)
    writer.begin(Checkpoint(1, {"a": torch.zeros(10)}, {}))
    saving = writer.wait()
    assert saving is not None and saving.error is None and find_checkpoint(tmp_path) == 1
    assert "no room (can't allocate memory: you tried to allocate 9 bytes): training waits" in caplog.text


def test_the_state_is_of_the_step_that_it_was_begun_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer, state = Gate(monkeypatch), CheckpointWriter(tmp_path, Ranks()), {"watch": {"seen": [1.0]}, "说": "好"}
    writer.begin(Checkpoint(3, {"a": torch.zeros(4)}, state))
    state["watch"]["seen"].append(2.0)  # the training goes on
    gate.open.set()
    writer.wait()
    read = load_checkpoint(tmp_path)
    assert read is not None and read.state == {"watch": {"seen": [1.0]}, "说": "好"}


def test_a_mistake_in_the_thread_is_no_trouble_with_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "write_own", lambda *_: {}["no such key"])
    writer = CheckpointWriter(tmp_path, Ranks())
    writer.begin(Checkpoint(1, {"a": torch.zeros(2)}, {}))
    while writer.is_writing:
        time.sleep(0.01)
    assert writer.has_failed and not writer.has_finished
    with pytest.raises(KeyError, match="no such key"):
        writer.wait()
    assert not list(tmp_path.iterdir())


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="keep"):
        CheckpointConfig(keep=0)
    with pytest.raises(ValueError, match="background is true or false, not 'never'"):
        CheckpointConfig(background="never")  # pyright: ignore[reportArgumentType]


def test_a_second_ctrl_c_waits_for_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(model: object, step: int, logbook: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    gate = Gate(monkeypatch)
    trainer = make_trainer(tmp_path, make_config(4, save_every=1, sample_every=2), sample=sample)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.writer.is_writing and find_checkpoint(tmp_path / "checkpoints") is None
    gate.open.set()
    trainer.writer.close()
    assert make_trainer(tmp_path, make_config(4)).step == 1, "one that is written in time after all is as good as any"
