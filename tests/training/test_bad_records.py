"""Records that a run cannot use: what was learned is saved, all of them are named at once, and it goes on without them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_tokenizers import SIZES
from toy_tokenizers import make_config as make_tokenizer_config
from toys import Squares, make_config, make_mixture, make_steps, make_trainer

from unimm.cli.errors import explain
from unimm.data.bad_records import BadRecord
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.mixture import Mixture, Source
from unimm.data.records import Record
from unimm.data.views import Conversation, PlainText
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.runtime.rank_sync import Ranks
from unimm.training.bad_records import BadBudget, DataError, find_bad_records, lost_step
from unimm.training.checkpoint import load_checkpoint
from unimm.training.image_tokenizer.trainer import TokenizerTrainer
from unimm.training.logbook import read_numbers


class Damaged(Squares):
    """Pictures of which some are bytes that are none, and of which others are gone; how many were taken out."""

    def __init__(self, *bad: int, removed: tuple[int, ...] = ()) -> None:
        self.bad, self.left = bad, [index for index in range(12) if index not in removed]

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(self.left[index])
        return replace(record, image=b"\x89PNG") if self.left[index] in self.bad else record


def mixture(dataset: Squares) -> Mixture:
    """Few pictures among many texts."""
    sources = [Source("talk", dataset, Conversation(num_turns=1), 0.5), Source("text", Squares(), PlainText(), 3.0)]
    return Mixture(sources, make_mixture().template, 0)


def newest(folder: Path) -> int:
    checkpoint = load_checkpoint(folder / "checkpoints")
    return -1 if checkpoint is None else checkpoint.step


def first_bad_step(dataset: Damaged) -> int:
    """Which step, from 1 on, shows a damaged picture first: rows of 64 positions, one a step."""
    steps = make_steps(mixture(Squares()), num_rows=1)
    bad = {f"squares/{index}" for index in dataset.bad}
    names = (" ".join(steps.plan.mixture.name(one) for one in steps[number].samples if one[0] == 0) for number in range(99))
    return 1 + next(number for number, text in enumerate(names) if bad & set(re.findall(r"squares/\d+", text)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_saves_names_all_and_goes_on_without(
    tmp_path: Path, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Damaged(5, 11)
    stops_at = first_bad_step(dataset)
    config = make_config(stops_at + 4, num_rows=1, num_workers=num_workers)
    trainer = make_trainer(tmp_path, config, mixture(dataset))
    with pytest.raises(DataError) as told:
        trainer.fit()
    sentence = str(told.value)
    assert f"Step {stops_at} cannot be made, since 2 of 24 records cannot be used: squares/5, squares/11 (" in sentence
    assert "give the same line again" in sentence and explain(told.value) == sentence
    assert newest(tmp_path) == stops_at - 1 > 0 and f"the {stops_at - 1} steps before it are saved" in sentence
    assert [line.split("\t")[0] for line in (tmp_path / "bad_records.txt").read_text().splitlines()] == [
        "squares/5",
        "squares/11",
    ]
    again = make_trainer(tmp_path, config, mixture(Damaged(removed=(5, 11))))
    assert again.step == stops_at - 1
    assert "The source talk has 10 records now, and had 12" in " ".join(capsys.readouterr().out.split())
    again.fit()
    assert [line["step"] for line in read_numbers(tmp_path / "metrics.jsonl")] == list(range(1, stops_at + 5))
    assert make_trainer(tmp_path, config, mixture(Damaged(removed=(5, 11)))).step == stops_at + 4


def test_a_mended_record_is_no_change(tmp_path: Path) -> None:
    config = make_config(20, num_rows=1)
    with pytest.raises(DataError):
        make_trainer(tmp_path, config, mixture(Damaged(5, 11))).fit()
    trainer = make_trainer(tmp_path, replace(config, max_skipped_steps=0), mixture(Damaged()))
    trainer.fit()
    whole = make_trainer(tmp_path / "whole", config, mixture(Damaged()))
    whole.fit()
    lines = [
        [line["loss/text"] for line in read_numbers(folder / "metrics.jsonl")] for folder in (tmp_path, tmp_path / "whole")
    ]
    assert lines[0] == lines[1]


def test_what_fails_beside_the_steps_loses_nothing(tmp_path: Path) -> None:
    """A validation that meets a damaged picture."""

    def sample(*_: Any) -> None:
        raise ValueError("Cannot read it.")

    with pytest.raises(ValueError, match="Cannot read it"):
        make_trainer(tmp_path, make_config(5, sample_every=3), sample=sample).fit()
    assert newest(tmp_path) == 3


def test_a_worker_that_is_gone_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no mistake of the data keeps its own words."""
    trainer = make_trainer(tmp_path, make_config(5))
    steps = trainer.data()

    class Gone:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, number: int):
            if number == 2:
                raise RuntimeError("DataLoader worker is killed")
            return steps[number]

    trainer.data = Gone
    with pytest.raises(RuntimeError, match="worker is killed"):
        trainer.fit()
    assert newest(tmp_path) == 2


def test_an_image_tokenizer_s_run_does_the_same(tmp_path: Path) -> None:
    batches = ImageBatches([ImageSource(Damaged(5))], 2, SIZES.image_size, seed=3)
    trainer = TokenizerTrainer(
        ImageTokenizer(SIZES), batches, make_tokenizer_config(30, report_every=0), tmp_path, device="cpu"
    )
    with pytest.raises(DataError, match="since 1 of 12 records cannot be used: squares/5") as told:
        trainer.fit()
    assert newest(tmp_path) == trainer.step >= 1 and f"Step {trainer.step + 1} cannot" in str(told.value)
    batches = ImageBatches([ImageSource(Damaged(removed=(5,)))], 2, SIZES.image_size, seed=3)
    again = TokenizerTrainer(ImageTokenizer(SIZES), batches, make_tokenizer_config(trainer.step + 1), tmp_path, device="cpu")
    again.fit()
    assert again.step == trainer.step + 1


def test_a_search_ends_in_time_and_looks_at_an_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr("unimm.training.bad_records.decode_image", looked.append)

    class Files(Squares):
        def __getitem__(self, index: int) -> Record:
            return replace(super().__getitem__(index), image=f"{index}.png")

    assert find_bad_records([Files(), Files()]) == ([], 24, 24) and len(looked) == 12
    assert find_bad_records([Files()], seconds=-1) == ([], 0, 12)
    monkeypatch.undo()
    assert [one.key for one in find_bad_records([Files()]).bad] == [f"squares/{index}" for index in range(12)]
    assert np.all([one.reason.endswith("there is no such file") for one in find_bad_records([Files()]).bad])


def test_a_search_leaves_the_list_of_what_the_run_has_met(tmp_path: Path) -> None:
    """Where some may be bad; that list is counted when the run goes on."""
    met = "squares/3\tit is empty\ttalk\n"
    (tmp_path / "bad_records.txt").write_text(met)
    told = str(lost_step(ValueError("No."), 3, [Damaged(5, 11)], tmp_path, is_saved=True, max_bad=0.1))
    assert f"all are listed in {tmp_path / 'bad_records_found.txt'}" in told
    assert (tmp_path / "bad_records.txt").read_text() == met
    listed = (tmp_path / "bad_records_found.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["squares/5", "squares/11"]


def test_names_of_any_bytes_are_listed_once(tmp_path: Path) -> None:
    """Not UTF-8, with tabs and line breaks; also after a resume."""
    found = [BadRecord("caf\udce9.png", "caf\udce9.png is empty", "talk"), BadRecord("a\tb\nc\u2028.png", "It is.", "talk")]
    for _ in range(2):
        budget = BadBudget(tmp_path, mixture(Damaged()), Ranks(), kept=None)
        budget.add(found)
        assert len(budget.bad) == 2
    lines = (tmp_path / "bad_records.txt").read_bytes().splitlines()
    assert lines == [rb"caf\udce9.png" b"\t" rb"caf\udce9.png is empty" b"\ttalk", rb"a\tb\nc\u2028.png" b"\tIt is.\ttalk"]
