"""Layers that are told what is wanted learn what `transformers`' own do."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from toys import make_mixture, make_model

from unimm.batch import PADDING, Batch, collate
from unimm.models.attention import mask_of
from unimm.models.unified import UnifiedModel
from unimm.sequence import Segment, Sequence

TRUNKS = {
    "llama, heads share keys": {"model_type": "llama", "num_key_value_heads": 2},
    "qwen2, with biases": {"model_type": "qwen2"},
    "qwen3, with norms": {"model_type": "qwen3", "head_dim": 16},
}


def make(trunk: dict) -> UnifiedModel:
    config = make_model().config
    torch.manual_seed(1)
    return UnifiedModel(replace(config, trunk={**config.trunk, **trunk})).double()


def as_transformers(model: UnifiedModel) -> UnifiedModel:
    """The same weights in a model whose layers work as they were made."""
    plain = make(model.config.trunk)
    plain.load_state_dict(model.state_dict())
    for layer in plain.trunk.layers:
        del layer.forward
    plain.spares_last_layer = False
    return plain


def learn(model: UnifiedModel, batch: Batch, way: str) -> dict[str, torch.Tensor]:
    model.set_attention(way)
    model.zero_grad()
    tallies = model(batch)
    torch.stack([tally.loss for tally in tallies.values()]).sum().backward()
    losses = {kind.name: tally.loss.detach() for kind, tally in tallies.items()}
    return losses | {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Rows of several documents, one in which nothing is learned, with padding; and a row of nothing."""
    mixture = make_mixture()
    samples = [mixture.sequence(sample) for sample in mixture.samples(0, 8)]
    silent = Sequence((Segment.text([5, 6, 7]),))
    return collate([[*samples[:3], silent], [], samples[3:]], num_positions=256)


@pytest.mark.parametrize("way", ["sdpa", "documents"])
@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS.keys())
def test_losses_and_gradients_are_the_same(trunk: dict, way: str, batch: Batch) -> None:
    model = make(trunk)
    expected, found = learn(as_transformers(model), batch, way), learn(model, batch, way)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9 * float(value.abs().max()) + 1e-12, msg=name)


@pytest.mark.parametrize("way", ["sdpa", "documents"])
@pytest.mark.parametrize("trunk", [TRUNKS["qwen3, with norms"], {"model_type": "olmo2"}], ids=["told", "not told"])
def test_what_is_wanted_is_what_would_be_there(trunk: dict, way: str, batch: Batch) -> None:
    """Also of a trunk of another shape, from which all of it is taken."""
    model = make(trunk).eval()
    assert model.spares_last_layer == (trunk["model_type"] == "qwen3")
    model.set_attention(way)
    wanted_M = (batch.target_kinds != PADDING).flatten().nonzero().squeeze(1)
    with torch.no_grad():
        embeddings, mask = model.embed(batch), mask_of(way, batch)
        everything = model.hidden(embeddings, mask, batch.positions)
        wanted = model.hidden(embeddings, mask, batch.positions, wanted_M=wanted_M)
    assert 0 < len(wanted) < everything.shape[0] * everything.shape[1]
    torch.testing.assert_close(wanted, everything.flatten(0, 1)[wanted_M], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("way", ["sdpa", "documents"])
def test_nothing_may_be_wanted(way: str) -> None:
    """A process whose rows teach nothing has gradients of zero, for others wait for them."""
    model = make(TRUNKS["qwen3, with norms"])
    model.set_attention(way)
    learned = learn(model, collate([[Sequence((Segment.text([5, 6, 7]),))]]), way)
    in_trunk = {name for name, _ in model.named_parameters() if name.startswith("trunk.")}
    assert in_trunk <= learned.keys()
    assert not any(learned[name].any() for name in in_trunk)


def test_a_copy_works_with_its_own_weights(batch: Batch) -> None:
    model = make(TRUNKS["qwen2, with biases"])
    copied = deepcopy(model)
    before = learn(model, batch, "documents")
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert learn(copied, batch, "documents")["TEXT"] != before["TEXT"]
    assert learn(model, batch, "documents")["TEXT"] == before["TEXT"]
