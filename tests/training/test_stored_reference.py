"""What a frozen reference says, stored: a run learns what it learns beside a copy of the model, and nothing is computed twice.
(`test_joint_objectives` and `test_samples_in_processes` compare gradients.)"""

from pathlib import Path

import pytest
import torch
from joint_toys import Preferred, make_mixture_of
from toys import make_config, make_model, make_template, make_trainer

from unimm.batch import Batch, collate
from unimm.data.mixture import Mixture, Source
from unimm.data.plan import Plan, Steps
from unimm.data.preferences import Preference
from unimm.data.records import Record
from unimm.models.unified import UnifiedModel
from unimm.training.logbook import read_numbers
from unimm.training.objectives.preferences import DPO
from unimm.training.objectives.sequences import num_learned
from unimm.training.stored_reference import MANIFEST, digest_of, places_of
from unimm.training.trainer import Trainer


def start(folder: Path, max_steps: int, reference: str = "stored", mixture: Mixture | None = None, seed: int = 0) -> Trainer:
    def objective(model: UnifiedModel) -> DPO:
        with torch.no_grad():
            for parameter in model.parameters() if seed else ():
                parameter += 0.01
        return DPO(model, beta=0.5, anchor=0.5, reference=reference)

    config = make_config(max_steps, num_rows=4)
    return make_trainer(folder, config, mixture or make_mixture_of("dpo"), objective)


def test_a_run_learns_what_it_learns_beside_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it goes on: its reference is where it began, and no second model is there."""
    start(tmp_path / "copy", 4, "copy").fit()
    start(tmp_path / "stored", 2).fit()
    trainer = start(tmp_path / "stored", 4)
    assert trainer.step == 2 and not trainer.objective.frozen and (tmp_path / "stored" / "reference" / MANIFEST).is_file()
    trainer.fit()
    told = [read_numbers(tmp_path / name / "metrics.jsonl") for name in ("copy", "stored")]
    names = [name for name in told[0][0] if name.startswith(("loss/", "preference/"))]
    assert len(told[0]) == len(told[1]) == 4 and len(names) > 8
    for one, other in zip(*told, strict=True):
        assert [other.get(name, 0.0) for name in names] == pytest.approx(
            [one.get(name, 0.0) for name in names], rel=1e-5, abs=1e-5
        )  # other rows round otherwise

    def forget(self: UnifiedModel, batch: Batch) -> torch.Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(UnifiedModel, "log_probs", forget)
    start(tmp_path / "other", 1, f"stored:{tmp_path / 'stored' / 'reference'}")


def test_what_was_stored_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, told = [], UnifiedModel.log_probs

    def until(most: int) -> None:
        def counted(self: UnifiedModel, batch: Batch) -> torch.Tensor:
            calls.append(len(batch.samples))
            if len(calls) > most:
                raise KeyboardInterrupt
            return told(self, batch)

        monkeypatch.setattr(UnifiedModel, "log_probs", counted)

    monkeypatch.setattr("unimm.training.stored_reference.SECONDS_BETWEEN_FILES", -1.0)
    until(2)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, 1)
    first = sum(calls[:2])
    calls.clear()
    until(100)
    trainer = start(tmp_path, 1)
    objective = trainer.objective
    assert isinstance(objective, DPO) and objective.store is not None
    assert first and sum(calls) + first >= len(objective.store) == 2 * len(Preferred()) and len(calls) >= 1
    again = len(list((tmp_path / "reference").glob("*.safetensors")))
    assert again == 2 + len(calls)  # nothing was written twice


class Changed(Preferred):
    """The same records; one of them may have another answer."""

    changed = False

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        if self.changed and index == 3:
            vars(record.questions[-1])["answer"] = "purple"
        return record


def test_what_is_stale_is_one_sentence(tmp_path: Path) -> None:
    dataset = Changed()
    mixture = Mixture([Source("prefer", dataset, Preference(0.0))], make_template(), 0)
    start(tmp_path, 1, mixture=mixture)
    with pytest.raises(ValueError, match=r"are of another model \(.* than the reference of this run .*remove this one"):
        start(tmp_path, 1, mixture=mixture, seed=1)
    dataset.changed = True
    trainer = start(tmp_path, 20, mixture=mixture)
    with pytest.raises(ValueError, match=r"its record has changed since they were stored.*Remove the folder"):
        trainer.fit()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no stored log-probabilities"):
        start(tmp_path, 1, f"stored:{tmp_path / 'full'}", mixture)
    with pytest.raises(ValueError, match="Unknown reference 'stored:'"):
        start(tmp_path, 1, "stored:", mixture)


def test_a_sequence_is_found_wherever_it_lies() -> None:
    """The digests of a step do not depend on its rows, and no two sequences have one."""
    mixture, objective = make_mixture_of("dpo"), DPO(make_model())
    alone = [collate([[one]]) for number in range(12) for one in mixture.sample((0, number)).sequences[:2]]
    own = {digest_of(one, *places_of(one, [0])) for one in alone}
    assert len(own) == 2 * len(Preferred())  # an epoch
    for width, num_rows in ((64, 12), (160, 6)):
        batches = Steps(Plan(mixture, width, num_rows), 2)[0].batches
        found = [digest_of(one, place) for one in batches for place in places_of(one, objective.compared(one))]
        assert len(found) >= 12 and set(found) <= own


def test_rows_of_padding_hold_nothing() -> None:
    """What a process gets where others have the last rows."""
    batch = collate([[]], 16)
    assert DPO(make_model()).compared(batch) == [] and len(num_learned(batch)) == 0
