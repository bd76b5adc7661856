"""A run goes on with the data that it began with, or is told what differs."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import EVERYTHING, Squares, make_config, make_mixture, make_trainer

from unimm.data.holdout import hold_out
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.mixture import Mixture
from unimm.data.records import Record
from unimm.data.views import Conversation
from unimm.runtime import folder_lock
from unimm.runtime.folder_lock import LOCK
from unimm.training.checkpoint import load_checkpoint
from unimm.training.checkpoint_writer import save_checkpoint
from unimm.training.run_state import check_order, order_of_images, order_of_rows


class Renamed(Squares):
    """Other pictures, as many."""

    def __getitem__(self, index: int) -> Record:
        return replace(super().__getitem__(index), key=f"other/{index}")


def mixture(**changes: Any) -> Mixture:
    """The toy mixture; changes: of its first source, or its seed."""
    seed = changes.pop("seed", 0)
    plain = make_mixture()
    return Mixture([replace(plain.sources[0], **changes), *plain.sources[1:]], plain.template, seed)


HELD = hold_out({"talk": Squares()}, 3)[0]["talk"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"weight": 2.0}, r"weight of talk 5\.0, not 2\.0"),
        ({"dataset": HELD}, "held_out of talk 0, not 3"),
        ({"dataset": Renamed()}, "first_key of talk squares/0, not other/0"),
        ({"view": Conversation(num_turns=1)}, "num_turns of view of talk 2, not 1"),
        ({"weight": 0.0}, "sources talk, draw, text, not draw, text"),
        ({"name": "speak"}, "sources talk, draw, text, not speak, draw, text"),
    ],
)
def test_other_data_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    began, now = (order_of_rows(one, 64, 9) for one in (make_mixture(), mixture(**changes)))
    check_order(tmp_path, began, began)
    asked = "give what it began with, or begin another run"
    with pytest.raises(ValueError, match=f"began with {told}( and .*)?, and what .*: {asked}"):
        check_order(tmp_path, began, now)


def test_settings_of_views_that_have_another_name_now_are_compared(tmp_path: Path) -> None:
    now = order_of_rows(make_mixture(), 64, 9)
    assert now["sources"]["draw"]["view"] == {"name": "Drawing", "drop": 0.1, "prompt_share": None, "corrupted": 0.0}
    began = copy.deepcopy(now)
    began["sources"]["draw"]["view"]["decoys"] = began["sources"]["draw"]["view"].pop("corrupted")
    assert check_order(tmp_path, began, now) == []
    began["sources"]["draw"]["view"]["decoys"] = 0.5
    with pytest.raises(ValueError, match=r"corrupted of view of draw 0\.5, not 0\.0"):
        check_order(tmp_path, began, now)


def test_all_that_differs_is_told_at_once(tmp_path: Path) -> None:
    small = make_mixture()
    small.template.max_positions = 48
    began, now = order_of_rows(make_mixture(), 320, 20), order_of_rows(small, 1024, 6)
    with pytest.raises(ValueError, match="began with num_positions 320, not 1024 and num_rows 20, not 6, and what"):
        check_order(tmp_path, {key: value for key, value in began.items() if key != "max_positions"}, now)
    with pytest.raises(ValueError, match="not 6 and max_positions None, not 48, and what"):
        check_order(tmp_path, began, now)


def test_a_training_is_not_taken_up_with_other_rows(tmp_path: Path) -> None:
    """Not by one whose checkpoint is older than this rule, either; passes and workers change nothing."""
    make_trainer(tmp_path, make_config(2)).fit()
    for changes in ({"num_rows": 8}, {"num_positions": 80}):
        ((name, value),) = changes.items()
        with pytest.raises(ValueError, match=rf"began with {name} \d+, not {value}"):
            make_trainer(tmp_path, make_config(4, **changes))
    with pytest.raises(ValueError, match="began with seed 0, not 1"):
        make_trainer(tmp_path, make_config(4), make_mixture(seed=1))
    assert make_trainer(tmp_path, make_config(3, num_micro_batches=3, num_workers=1)).step == 2
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    del kept.state["order"]
    kept.state["plan"] |= {"num_positions": 64, "num_rows": 9}
    save_checkpoint(tmp_path / "old" / "checkpoints", kept)
    assert make_trainer(tmp_path / "old", make_config(3)).step == 2
    with pytest.raises(ValueError, match="began with num_rows 9, not 8"):
        make_trainer(tmp_path / "old", make_config(3, num_rows=8))
    kept.state["stage"] = "look"  # as the stage `vision` was called
    save_checkpoint(tmp_path / "older" / "checkpoints", kept)
    assert make_trainer(tmp_path / "older", make_config(3, stage=replace(EVERYTHING, name="vision"))).step == 2
    with pytest.raises(ValueError, match="holds a run of the stage 'vision', not 'everything'"):
        make_trainer(tmp_path / "older", make_config(3))


def test_images_have_an_order_too(tmp_path: Path) -> None:
    batches = ImageBatches([ImageSource(Squares())], 4, 16, seed=0)
    others = {
        "seed 0, not 1": ImageBatches([ImageSource(Squares())], 4, 16, seed=1),
        "batch_size 4, not 2": ImageBatches([ImageSource(Squares())], 2, 16),
        "last_key of 0 squares/11, not other/11": ImageBatches([ImageSource(Renamed())], 4, 16),
    }
    check_order(tmp_path, order_of_images(batches), order_of_images(batches.for_rank(1, 2)))
    for told, other in others.items():
        began = order_of_images(batches)
        if "last_key" in told:
            del began["sources"]["0"]["first_key"]  # what was not told then is not compared
        with pytest.raises(ValueError, match=f"began with {told}"):
            check_order(tmp_path, began, order_of_images(other))


class Some(Squares):
    """The records that are left when some were taken out."""

    def __init__(self, *removed: int) -> None:
        self.left = [index for index in range(12) if index not in removed]

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: int) -> Record:
        return super().__getitem__(self.left[index])


def test_a_run_goes_on_without_records_that_were_taken_out(tmp_path: Path) -> None:
    """Of the middle, or those that it could not use; others at the ends are other data, and so are more than before."""
    began = order_of_rows(mixture(), 64, 9)

    def notes(*removed: int) -> list[str]:
        return check_order(tmp_path, began, order_of_rows(mixture(dataset=Some(*removed)), 64, 9))

    (note,) = notes(4, 7)
    assert note.startswith("The source talk has 10 records now, and had 12: ") and "order is drawn anew" in note
    with pytest.raises(ValueError, match="last_key of talk squares/11, not squares/10"):
        notes(4, 11)
    (tmp_path / "bad_records.txt").write_text("squares/11\tits data is damaged\nsquares/0\tits data is damaged\n")
    assert len(notes(4, 11)) == len(notes(0, 11)) == 1 and notes() == []
    (tmp_path / "bad_records.txt").rename(tmp_path / "bad_records_found.txt")
    assert len(notes(4, 11)) == 1, "where some may be bad, those that were found at the end have a list of their own"
    with pytest.raises(ValueError, match="num_records of talk 10, not 12"):
        check_order(tmp_path, order_of_rows(mixture(dataset=Some(4, 7)), 64, 9), began)


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.0)
    trainer = make_trainer(tmp_path, make_config(1))
    code = "import fcntl, sys; own = open(sys.argv[1], 'r+'); fcntl.lockf(own, fcntl.LOCK_EX); print(flush=True); input()"
    trainer.fit()  # then it is free again
    command = [sys.executable, "-S", "-c", code, tmp_path / LOCK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(ValueError, match=r"is being written to by process .* name another folder"):
            make_trainer(tmp_path, make_config(2))
        other.kill()
    assert make_trainer(tmp_path, make_config(2)).step == 1
