"""The unified model: packing changes nothing, empty ports have gradients too, mismatches are told with both numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import make_mixture, make_model

from unimm.batch import collate
from unimm.data.mixture import Mixture
from unimm.models.unified import UnifiedModel
from unimm.models.vision.tower import VisionConfig
from unimm.sequence import Kind, Segment, Sequence

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
IMAGE = np.zeros((3, 16, 16), dtype=np.float32)


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return make_model()


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return make_mixture()


@pytest.fixture
def samples(mixture: Mixture) -> list[Sequence]:
    """Talk, a drawing, a plain text."""
    return [mixture.sequence(sample) for sample in mixture.samples(0, 8)[2:]]


def hidden(model: UnifiedModel, rows: list[list[Sequence]], num_positions: int | None = None) -> torch.Tensor:
    batch = collate(rows, num_positions)
    with torch.no_grad():
        return model.hidden(model.embed(batch), batch.attention_mask(), batch.positions)


def test_a_packed_row_is_its_sequences_alone(model: UnifiedModel, samples: list[Sequence]) -> None:
    packed = hidden(model, [samples], num_positions=256)[0]
    start = 0
    for sequence in samples:
        alone = hidden(model, [[sequence]])[0]
        torch.testing.assert_close(packed[start : start + sequence.length], alone, **CLOSE)
        start += sequence.length


def test_losses_do_not_depend_on_packing_or_order(model: UnifiedModel, samples: list[Sequence]) -> None:
    ways = [[samples], [[sequence] for sequence in samples], [samples[::-1]], [samples[3:], [], samples[:3]]]
    with torch.no_grad():
        tallies = [model(collate(rows, num_positions=256)) for rows in ways]
    for kind in (Kind.TEXT, Kind.CODES):
        first = tallies[0][kind]
        assert first.count > 0
        for other in tallies[1:]:
            torch.testing.assert_close(other[kind].loss, first.loss, **CLOSE)
            assert (other[kind].count, other[kind].correct) == (first.count, first.correct)


def test_loss_is_the_likelihood_of_the_next_element(model: UnifiedModel) -> None:
    """By hand: the head is chosen by the kind of the next element, at the position before it."""
    sequence = Sequence((Segment.text([0, 20]), Segment.codes([3, 7], learn=True), Segment.text([30], learn=True)))
    states = hidden(model, [[sequence]])[0]
    with torch.no_grad():
        tallies = model(collate([[sequence]]))
        codes = [-model.codes.logits(states[t]).log_softmax(-1)[code] for t, code in ((1, 3), (2, 7))]
        text = -model.text.logits(states[3]).log_softmax(-1)[30]
    torch.testing.assert_close(tallies[Kind.CODES].loss, torch.stack(codes).sum(), **CLOSE)
    torch.testing.assert_close(tallies[Kind.TEXT].loss, text, **CLOSE)
    assert (tallies[Kind.CODES].count, tallies[Kind.TEXT].count) == (2, 1)


@pytest.mark.parametrize(
    ("sequence", "idle"),
    [
        (Sequence((Segment.text([1]), Segment.text([2, 3], learn=True))), ("pixels.", "codes.")),
        (Sequence((Segment.text([1]), Segment.codes([2, 3, 4, 5], learn=True))), ("pixels.", "text.head")),
        (Sequence((Segment.look(IMAGE, 4), Segment.text([2], learn=True))), ("codes.",)),
        (Sequence((Segment.text([1]), Segment.text([2, 3]))), ("pixels.", "codes.", "text.", "trunk.")),
    ],
    ids=["text alone", "codes alone", "pixels alone", "nothing learned"],
)
def test_empty_ports_have_zero_gradients(sequence: Sequence, idle: tuple[str, ...]) -> None:
    """Not None: else a rank without images would make DDP wait forever, and optimizers skip what others move."""
    model = make_model().train()
    tallies = model(collate([[sequence]]))
    sum(tally.loss for tally in tallies.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name.startswith(idle):
            assert not parameter.grad.any(), name


def test_the_model_does_not_change_its_batch(model: UnifiedModel, samples: list[Sequence]) -> None:
    batch = collate([samples])
    tensors = [batch.tokens, batch.targets, batch.weights, batch.positions, batch.images.pixels]
    before = [tensor.clone() for tensor in tensors]
    model(batch)
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))


def test_mismatches_are_told_with_both_numbers(model: UnifiedModel) -> None:
    text = Segment.text([1])
    with pytest.raises(ValueError, match=r"\b5\b.*\b4\b"):
        model(collate([[Sequence((Segment.look(IMAGE, 5), text))]]))
    with pytest.raises(ValueError, match=r"16.*24"):
        model(collate([[Sequence((Segment.look(np.zeros((3, 24, 24), np.float32), 4), text))]]))
    with pytest.raises(ValueError, match=r"\b20\b.*\b8\b"):
        VisionConfig(image_size=20, patch_size=8, width=32, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="model_type"):
        replace(model.config, trunk={"hidden_size": 64}).trunk_config()


@pytest.mark.parametrize("tied", [False, True])
def test_parts_hold_every_parameter_once(model: UnifiedModel, tied: bool) -> None:
    config = replace(model.config, trunk={**model.config.trunk, "tie_word_embeddings": tied})
    other = UnifiedModel(config)
    ids = [id(p) for part in other.parts().values() for p in part.parameters()]
    assert set(ids) == {id(p) for p in other.parameters()}
    assert len(ids) - len(set(ids)) == int(tied)
    assert (other.text.head.weight is other.text.embedding.weight) == tied
