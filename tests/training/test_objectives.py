"""Objectives: sums that agree with their counts, and words found at the right image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import Squares, make_config, make_mixture, make_model, make_steps, make_template, make_trainer

from unimm.batch import collate
from unimm.data.mixture import Mixture, Source
from unimm.data.views import Description
from unimm.models.unified import UnifiedModel
from unimm.sequence import Segment, Sequence
from unimm.training.logbook import read_numbers
from unimm.training.objectives.likelihood import Likelihood, Objective
from unimm.training.objectives.vision_pretraining import VisionPretraining, image_documents, patch_labels, word_labels
from unimm.training.optimizers import OptimizerConfig
from unimm.training.trainable_parts import Stage


def look(value: float) -> Segment:
    return Segment.look(np.full((3, 16, 16), value, np.float32), 4)


@pytest.mark.parametrize("make", [Likelihood, VisionPretraining])
def test_sums_come_with_the_counts_that_were_told_before(make: type[Objective]) -> None:
    objective = make(make_model())
    described = Mixture([Source("squares", Squares(), Description())], make_template())
    (batch,) = make_steps(described if make is VisionPretraining else make_mixture())[0].batches
    tallies, counts = objective(batch), objective.counts(batch)
    assert tallies.keys() == counts.keys()
    for name, tally in tallies.items():
        assert tally.count == counts[name] > 0 and tally.loss > 0 and 0 <= tally.correct <= tally.count


@pytest.mark.parametrize("make", [Likelihood, VisionPretraining])
def test_parts_hold_every_parameter_once(make: type[Objective]) -> None:
    objective = make(make_model())
    ids = [id(p) for part in objective.parts().values() for p in part.parameters()]
    assert sorted(ids) == sorted(id(p) for p in objective.parameters())


def test_words_belong_to_the_image_of_their_document() -> None:
    """Packed or not, before or after other documents, two images in one: each image gets its own document's learned text."""
    given, learned = Segment.text([9]), Segment.text([5, 6, 5], learn=True)
    one = Sequence((look(0.1), given, learned))
    two = Sequence((look(0.2), look(0.3), Segment.text([7], learn=True)))
    text, drawing = Sequence((Segment.text([1]), learned)), Sequence((Segment.text([1]), Segment.codes([8, 8], learn=True)))
    expected = {0.1: {5, 6}, 0.2: {7}, 0.3: {7}}
    for rows in ([[one, two]], [[text, two, drawing], [drawing, one]], [[two], [one]], [[text], [one, two]]):
        batch = collate(rows, num_positions=40)
        labels = word_labels(batch, image_documents(batch), vocabulary_size=12)
        found = [set(row.nonzero().flatten().tolist()) for row in labels]
        assert found == [expected[round(float(pixels[0, 0, 0]), 1)] for pixels in batch.images.pixels]


def test_patches_belong_to_the_image_of_their_document() -> None:
    """Packed or not, beside drawings and images without codes: each image gets its own document's codes, in raster order."""
    one = Sequence((look(0.1), Segment.text([5], learn=True), Segment.codes([1, 2, 3, 4], learn=True)))
    two = Sequence((look(0.2), Segment.codes([5, 6, 7, 8], learn=True)))
    without = Sequence((look(0.3), Segment.text([7], learn=True)))
    expected = {0.1: [1, 2, 3, 4], 0.2: [5, 6, 7, 8]}
    for rows in ([[one, two]], [[without, two], [one]], [[two], [without], [one]], [[without, without]]):
        batch = collate(rows, num_positions=40)
        images, codes = patch_labels(batch, image_documents(batch), num_patches=4)
        values = [round(float(pixels[0, 0, 0]), 1) for pixels in batch.images.pixels[images]]
        assert {value: row.tolist() for value, row in zip(values, codes, strict=True)} == {
            value: expected[value] for value in values
        }
        assert len(values) == sum(len(row) - row.count(without) for row in rows)


@pytest.mark.parametrize("num_codes", [3, 8])
def test_codes_on_another_grid_are_refused(num_codes: int) -> None:
    batch = collate([[Sequence((look(0.1), Segment.codes(range(num_codes), learn=True)))]])
    with pytest.raises(ValueError, match="same grid"):
        patch_labels(batch, image_documents(batch), num_patches=4)


def test_codes_of_no_image_are_nothing_to_look_for_and_of_two_are_refused() -> None:
    codes = Segment.codes([1, 2, 3, 4], learn=True)
    batch = collate([[Sequence((Segment.text([1]), codes)), Sequence((look(0.3), codes))]])
    assert patch_labels(batch, image_documents(batch), num_patches=4)[0].tolist() == [0]
    batch = collate([[Sequence((look(0.1), look(0.2), codes))]])
    with pytest.raises(ValueError, match="one for each"):
        patch_labels(batch, image_documents(batch), num_patches=4)


def test_a_batch_without_images_has_zero_gradients() -> None:
    """Not None: a rank without images must not stop the others."""
    objective = VisionPretraining(make_model())
    tallies = objective(collate([[Sequence((Segment.text([1]), Segment.text([2], learn=True)))]]))
    for tally in tallies.values():
        assert (tally.loss, tally.correct, tally.count) == (0, 0, 0)
    sum(tally.loss for tally in tallies.values()).backward()
    for part in (objective.word_head, objective.patch_head, objective.place_head, objective.model.pixels.tower):
        for parameter in part.parameters():
            assert parameter.grad is not None and not parameter.grad.any()


def test_the_sums_of_a_batch_are_those_of_its_parts() -> None:
    objective = VisionPretraining(make_model())
    parts = [Segment.text([3], learn=True), Segment.codes([1, 2, 3, 4], learn=True)]
    sequences = [Sequence((look(v), Segment.text([i], learn=True), *parts)) for i, v in enumerate((0.1, 0.5, 0.9))]
    with torch.no_grad():
        whole = objective(collate([sequences]))
        single = [objective(collate([[sequence]])) for sequence in sequences]
    for name, tally in whole.items():
        for sum_of_whole, sums in zip(tally, zip(*(one[name] for one in single), strict=True), strict=True):
            torch.testing.assert_close(sum_of_whole, torch.stack(sums).sum(), rtol=1e-5, atol=1e-5)


def test_words_patches_and_places_are_learned(tmp_path: Path) -> None:
    """The vision tower alone learns which words belong to which of the 12 pictures, their codes, and where is where."""
    mixture = Mixture([Source("squares", Squares(), Description())], make_template(), 12)
    stage = Stage("look", {"vision": 1.0, "word_head": 1.0, "patch_head": 1.0, "place_head": 1.0})
    trainer = make_trainer(
        tmp_path, make_config(150, stage=stage, optimizer=OptimizerConfig(lr=1e-2)), mixture, VisionPretraining
    )
    trainer.fit()
    lines = read_numbers(tmp_path / "metrics.jsonl")
    for name in ("words", "patches", "places"):
        assert lines[-1][f"loss/{name}"] < 0.1 * lines[0][f"loss/{name}"]
        assert lines[-1][f"accuracy/{name}"] > 0.9
    assert all(name not in lines[-1] for name in ("loss/text", "loss/codes"))


def test_what_the_model_was_not_made_for_is_refused(tmp_path: Path) -> None:
    """Longer sequences than its own conversations may be, which an engine would refuse."""

    def limited(model: UnifiedModel) -> Likelihood:
        objective = Likelihood(model)
        objective.max_positions = 12
        return objective

    trainer = make_trainer(tmp_path, make_config(2), objective=limited)
    with pytest.raises(ValueError, match="positions, and the model was made for 12: cut texts"):
        trainer.fit()
    looking = make_trainer(tmp_path / "look", make_config(1), objective=VisionPretraining).objective
    looking.check(make_steps(make_mixture())[0].batches[0])  # nothing of it goes through the Transformer
