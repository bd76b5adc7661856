"""Training that cannot be lost: full disks, signals for a whole job, steps that are not finite, logs that are gone."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from toy_trainings import ADAMW, Poisoned, PoisonedOnce, assert_equal, interrupt_at, numbers, weights_of
from toys import make_config, make_steps, make_trainer

from unimm.cli.errors import explain
from unimm.models.unified import UnifiedModel
from unimm.runtime import atomic_files
from unimm.training import checkpoint as checkpoints
from unimm.training import checkpoint_writer
from unimm.training.checkpoint import Checkpoint, SaveError, load_checkpoint
from unimm.training.checkpoint_writer import save_checkpoint
from unimm.training.finite import NotFiniteError
from unimm.training.logbook import Logbook, read_numbers
from unimm.training.optimizers import Budget
from unimm.training.run_state import MAX_FAILED_SAVES
from unimm.training.signals import ECHO_SECONDS, StopRequest, init_worker, signals_blocked
from unimm.training.trainer import Trainer


def small(step: int, size: int = 4) -> Checkpoint:
    return Checkpoint(step, {"weights/a": torch.full((size,), float(step))}, {"seconds": 1.0})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path) -> int:
    checkpoint = load_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint.step


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


# -- checkpoints ----------------------------------------------------------------------------------------------------------


SEAMS = {
    "the folder": lambda patch: patch.setattr(checkpoint_writer, "temporary_folder", no_room),
    "the tensors": lambda patch: patch.setattr(checkpoints, "write_parts", no_room),
    "the state": lambda patch: patch.setattr(checkpoints, "write_json", no_room),
    "the flush": lambda patch: patch.setattr(atomic_files.os, "fsync", no_room),
    "the rename": lambda patch: patch.setattr(Path, "rename", no_room),
}


@pytest.mark.parametrize("seam", SEAMS.values(), ids=SEAMS.keys())
def test_where_there_is_no_room_the_older_one_stays_and_nothing_else(tmp_path: Path, seam) -> None:
    save_checkpoint(tmp_path, small(1))
    with pytest.MonkeyPatch.context() as patch:
        seam(patch)
        with pytest.raises(SaveError, match=r"step 2 .*No space left") as raised:
            save_checkpoint(tmp_path, small(2), keep=1)
    assert explain(raised.value) == str(raised.value) and "\n" not in str(raised.value)
    assert names(tmp_path) == ["step-00000001"]
    read = load_checkpoint(tmp_path)
    assert read is not None and read.step == 1
    save_checkpoint(tmp_path, small(2), keep=1)
    assert names(tmp_path) == ["step-00000002"]


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The system's own refusal, in the middle of the tensors."""
    save_checkpoint(tmp_path, small(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(SaveError, match="too large"):
            save_checkpoint(tmp_path, small(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step-00000001"]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A real one of 1 MB, where mounting is allowed; then a real one that may only be read."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("this user may not mount")
    try:
        save_checkpoint(disk / "run", small(1, size=50_000))
        with pytest.raises(SaveError, match="No space left"):
            save_checkpoint(disk / "run", small(2, size=500_000))
        assert names(disk / "run") == ["step-00000001"]
        subprocess.run(["mount", "-o", "remount,ro,size=1m", str(disk)], check=True, capture_output=True)
        with pytest.raises(SaveError, match="Read-only file system"):
            save_checkpoint(disk / "run", small(2))
        assert checkpoints._problem(disk / "run" / "step-00000001") is None
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_a_kill_left_is_removed_after_the_next_one(tmp_path: Path) -> None:
    for left in (".step-00000007.tmp", ".step-00000003.old"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "tensors.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, small(5))
    assert names(tmp_path) == ["step-00000005"]


def test_files_and_folders_are_flushed_before_older_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and the temporary folder, then the rename, then the folder that holds it, then the pruning."""
    told: list[str] = []
    flush, rename, remove = atomic_files.flush, Path.rename, shutil.rmtree
    monkeypatch.setattr(atomic_files, "flush", lambda path: (told.append(f"flush {path.name}"), flush(path)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (told.append(f"rename {self.name}"), rename(self, to))[1])
    monkeypatch.setattr(shutil, "rmtree", lambda path, **words: (told.append(f"remove {path.name}"), remove(path, **words)))
    folder = tmp_path / "run" / "checkpoints"
    save_checkpoint(folder, small(1), keep=1)
    made = [one for one in told if one.startswith("flush")][:2]
    assert made == [f"flush {tmp_path.name}", "flush run"], "the folders above it are new too"
    told.clear()
    save_checkpoint(folder, small(2), keep=1)
    written = ["manifest.json", "state.json", "tensors.safetensors"]
    place = told.index("rename .step-00000002.tmp")
    assert {f"flush {name}" for name in [*written, ".step-00000002.tmp"]} <= set(told[:place])
    assert told.index("flush checkpoints") > place
    assert told.index("remove step-00000001") > told.index("flush checkpoints")


def test_a_whole_one_is_not_written_again(tmp_path: Path) -> None:
    """Between two renames there would be a moment with none."""
    folder = save_checkpoint(tmp_path, small(1))
    before = (folder / "manifest.json").stat().st_mtime_ns
    save_checkpoint(tmp_path, small(1))
    assert (folder / "manifest.json").stat().st_mtime_ns == before


# -- runs whose disk is full ----------------------------------------------------------------------------------------------


def failing_saves(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Checkpoints of these steps find no room."""
    commit = checkpoint_writer.commit

    def commit_if_room(temporary: Path, final: Path, state: dict[str, Any], digests: dict[str, str]) -> None:
        no_room() if state["step"] in steps else commit(temporary, final, state, digests)

    monkeypatch.setattr(checkpoint_writer, "commit", commit_if_room)


def test_a_run_goes_on_where_a_checkpoint_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(10, save_every=2)
    whole = make_trainer(tmp_path / "whole", config)
    whole.fit()
    failing_saves(monkeypatch, {4, 6})
    trainer = make_trainer(tmp_path / "run", config)
    trainer.fit()
    assert caplog.text.count("No space left") == MAX_FAILED_SAVES - 1
    assert newest(tmp_path / "run") == 10
    assert_equal(weights_of(trainer), weights_of(whole))


def test_the_third_in_a_row_ends_a_run_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(12, save_every=2)
    with monkeypatch.context() as patch:
        failing_saves(patch, set(range(3, 20)))
        trainer = make_trainer(tmp_path, config)
        with pytest.raises(SaveError, match="step 8 cannot be written"):
            trainer.fit()
    assert newest(tmp_path) == 2 and names(tmp_path / "checkpoints") == ["step-00000002"]
    make_trainer(tmp_path, config).fit()
    assert newest(tmp_path) == 12
    assert [line[0] for line in numbers(tmp_path)] == list(range(1, 13))


def test_the_last_checkpoint_of_a_run_must_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_saves(monkeypatch, {3})
    with pytest.raises(SaveError, match="step 3"):
        make_trainer(tmp_path, make_config(3)).fit()


# -- signals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_scheduler_is_told_by_the_exit_code(tmp_path: Path, number: signal.Signals, code: int) -> None:
    trainer = make_trainer(tmp_path, make_config(12, sample_every=1), sample=interrupt_at(4, number))
    with pytest.raises(SystemExit) as stopped:
        trainer.fit()
    assert stopped.value.code == code and newest(tmp_path) == 4


def test_long_work_between_steps_can_leave_early(tmp_path: Path) -> None:
    seen: list[bool] = []

    def sample(model: UnifiedModel, step: int, logbook: Logbook) -> None:
        seen.append(trainer.stop.made)
        signal.raise_signal(signal.SIGUSR1)
        seen.append(trainer.stop.made)

    trainer: Trainer = make_trainer(tmp_path, make_config(12, sample_every=2), sample=sample)
    with pytest.raises(SystemExit):
        trainer.fit()
    assert seen == [False, True] and newest(tmp_path) == 2


def test_a_signal_that_comes_while_the_processes_agree_is_not_lost(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_config(12))
    all_sum, sent = trainer.ranks.all_sum, []

    def interrupted(numbers: list[float]) -> list[float]:
        agreed = all_sum(numbers)
        if trainer.step == 3 and not sent:
            sent.append(0)
            signal.raise_signal(signal.SIGUSR1)
        return agreed

    trainer.ranks.all_sum = interrupted
    with pytest.raises(SystemExit):
        trainer.fit()
    assert sent == [0] and newest(tmp_path) == trainer.step == 4


@pytest.mark.parametrize(
    ("number", "ends_with", "at_once"),
    [
        (signal.SIGINT, KeyboardInterrupt, "Ctrl-C: finishing step 2, then saving; again to stop at once."),
        (signal.SIGTERM, SystemExit, "SIGTERM: finishing step 2, then saving; Ctrl-C (SIGINT) to stop at once."),
    ],
)
def test_a_signal_is_answered_at_once_and_in_the_end_it_is_said_what_is_saved(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    ends_with: type[BaseException],
    at_once: str,
) -> None:
    trainer, answers = make_trainer(tmp_path, make_config(5)), []
    update = trainer.update

    def interrupted(batch, meter, totals) -> None:
        if trainer.step == 1:
            signal.raise_signal(number)
            answers.append(capfd.readouterr().err)  # before the step goes on
        update(batch, meter, totals)

    trainer.update = interrupted
    with pytest.raises(ends_with):
        trainer.fit()
    assert answers == [f"\n{at_once}\n"] and newest(tmp_path) == 2
    told = " ".join(capfd.readouterr().out.split())
    assert f"Step 2 is saved in {tmp_path / 'checkpoints'}: the same line goes on from there." in told


def test_copies_of_a_signal_do_not_end_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher passes on what a terminal has sent to all; only a later Ctrl-C is meant."""
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.number == signal.SIGUSR1
        now = time.monotonic()
        monkeypatch.setattr("unimm.training.signals.time.monotonic", lambda: now + ECHO_SECONDS + 1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_outlive_a_signal_for_the_whole_job(number: signal.Signals) -> None:
    """The parent still has a step to finish, with batches of theirs; and they end when it does."""
    loader = DataLoader(list(range(1000)), batch_size=None, num_workers=2, worker_init_fn=init_worker)
    with signals_blocked():
        batches = iter(loader)
    workers = batches._workers
    before = signal.signal(signal.SIGCHLD, signal.getsignal(signal.SIGCHLD))
    assert before is not None
    for worker in workers:
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {int(number)})"], check=True)
    assert [next(batches) for _ in range(200)] == list(range(200))
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()
    workers[0].join(10)
    assert workers[0].exitcode == 0
    del batches


def test_workers_end_where_their_parent_was_killed(tmp_path: Path) -> None:
    """Also with batches too large for a pipe, and one that begins when the parent is gone."""
    parent = (
        "import os, signal, time, torch\n"
        "from torch.utils.data import DataLoader\n"
        "from unimm.training import signals\n"
        "signals.SECONDS_BETWEEN_LOOKS = 0.1\n"
        "data = [b'x' * 300_000] * 50\n"
        "def begin(worker):\n"
        "    time.sleep(2 * worker)\n"
        "    signals.init_worker(worker)\n"
        "batches = iter(DataLoader(data, batch_size=None, num_workers=2, worker_init_fn=begin))\n"
        "next(batches)\n"
        "print(*(worker.pid for worker in batches._workers), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    workers = [Path(f"/proc/{pid}/cmdline") for pid in done.stdout.split()]
    while any(worker.exists() and worker.read_bytes() for worker in workers):
        assert time.monotonic() < deadline, "a worker waits for ever"
        time.sleep(0.05)


# -- steps that are not finite --------------------------------------------------------------------------------------------


def test_a_run_may_skip_so_many_steps_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(8, max_skipped_steps=2)
    trainer = make_trainer(tmp_path / "two", config, objective=PoisonedOnce)
    trainer.fit()
    assert trainer.step == 8 and trainer.guard.num_skipped == 2
    assert "step 3 is not finite" in caplog.text and "2 of at most 2" in caplog.text
    kept = load_checkpoint(tmp_path / "two" / "checkpoints")
    assert kept is not None and kept.state["skipped"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())
    assert read_numbers(tmp_path / "two" / "metrics.jsonl")[-1]["optim/skipped_steps"] == 2
    again = make_trainer(tmp_path / "two", replace(config, budget=Budget(max_steps=9)), objective=Poisoned)
    again.objective.left = 0
    with pytest.raises(NotFiniteError, match=r"step 9 is not finite.*2 steps were skipped before"):
        again.fit()
    with pytest.raises(NotFiniteError, match=r"step 5 is not finite.*1 steps were skipped before"):
        make_trainer(tmp_path / "one", replace(config, max_skipped_steps=1), objective=PoisonedOnce).fit()


def test_a_step_that_is_not_finite_ends_the_run_with_what_was_learned_saved(tmp_path: Path) -> None:
    good = make_trainer(tmp_path / "good", make_config(2, optimizer=ADAMW))
    good.fit()
    bad = make_trainer(tmp_path / "bad", make_config(5, optimizer=ADAMW), objective=Poisoned)
    with pytest.raises(NotFiniteError, match="step 3") as told:
        bad.fit()
    for sample in make_steps(bad.mixture)[2].samples:
        assert bad.mixture.name(sample) in str(told.value)
    assert newest(tmp_path / "bad") == 2
    assert_equal(weights_of(make_trainer(tmp_path / "bad", good.config, objective=Poisoned)), weights_of(good))


# -- logs that cannot be written ------------------------------------------------------------------------------------------


def test_a_full_disk_costs_the_log_its_lines_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, make_config(6, sample_every=1), sample=lambda model, step, book: book.text(step, "a", "b"))
    written = Path.open

    def open_if_room(self: Path, *words, **more):
        if self.name == "metrics.jsonl" and 2 <= trainer.step <= 4 and "a" in str(words):
            with written(self, "ab") as file:
                file.write(b'{"step": ')  # a full disk takes half of a line
            no_room()
        return written(self, *words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_if_room)
        patch.setattr(Path, "write_text", no_room_for(Path.write_text, ".txt"))
        trainer.fit()
    assert newest(tmp_path) == 6
    assert caplog.text.count("metrics.jsonl of") == 1 and caplog.text.count("samples of") == 1
    assert [line["step"] for line in read_numbers(tmp_path / "metrics.jsonl")] == [1, 5, 6]
    resumed = make_trainer(tmp_path, make_config(7))
    resumed.fit()
    assert [line["step"] for line in read_numbers(tmp_path / "metrics.jsonl")] == [1, 5, 6, 7]


def no_room_for(write, suffix: str):
    return lambda self, *words, **more: no_room() if self.suffix == suffix else write(self, *words, **more)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_folder_that_is_gone_is_made_again(tmp_path: Path) -> None:
    def remove(model: UnifiedModel, step: int, logbook: Logbook) -> None:
        if step == 2:
            (tmp_path / "run").rename(tmp_path / "gone")  # at once: TensorBoard's thread writes whenever it likes
        logbook.text(step, "captions", "a cat")

    trainer = make_trainer(tmp_path / "run", make_config(5, sample_every=1, save_every=1), sample=remove)
    trainer.fit()
    assert newest(tmp_path / "run") == 5
    assert [line["step"] for line in read_numbers(tmp_path / "run" / "metrics.jsonl")] == [3, 4, 5]
    assert (tmp_path / "run" / "samples" / "00000002-captions.txt").is_file()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tracker_that_is_lost_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, make_config(6))
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("unimm.training.logbook.SummaryWriter.add_scalar", no_room)
        patch.setattr("unimm.training.logbook.SummaryWriter.close", no_room)
        trainer.fit()
    assert caplog.text.count("TensorBoard of") == 1
    assert newest(tmp_path) == 6 and len(numbers(tmp_path)) == 6


# -- chance ---------------------------------------------------------------------------------------------------------------


def test_dropout_goes_on_to_the_bit(tmp_path: Path) -> None:
    def with_dropout(folder: Path, steps: int) -> Trainer:
        trainer = make_trainer(folder, make_config(steps))
        attentions = [module for module in trainer.model.modules() if hasattr(module, "attention_dropout")]
        assert attentions
        for module in attentions:
            module.attention_dropout = 0.3
        return trainer

    whole = with_dropout(tmp_path / "whole", 6)
    whole.fit()
    with_dropout(tmp_path / "parts", 3).fit()
    torch.manual_seed(os.getpid())
    resumed = with_dropout(tmp_path / "parts", 6)
    assert resumed.step == 3
    resumed.fit()
    assert_equal(weights_of(resumed), weights_of(whole))
    dry = make_trainer(tmp_path / "dry", make_config(6))
    dry.fit()
    assert numbers(tmp_path / "dry") != numbers(tmp_path / "whole"), "there was dropout"
