"""Layers that are told what is wanted learn what `transformers`' own do."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from toys import make_mixture, make_model
from transformers import AutoConfig, AutoModel, DynamicCache, PreTrainedConfig

from unimm.batch import PADDING, Batch, collate
from unimm.models.attention import cache_keyword, mask_of
from unimm.models.llama import LlamaTrunk
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
    """The same weights in a model whose trunk is theirs."""
    plain = make(model.config.trunk)
    plain.trunk = theirs(plain.config.trunk_config()).double()
    plain.load_state_dict(model.state_dict())
    plain.skips_unused_positions, plain._cache_keyword = False, cache_keyword(plain.trunk)
    return plain


def theirs(config: PreTrainedConfig) -> Any:
    trunk = AutoModel.from_config(config, attn_implementation="sdpa")
    trunk.set_input_embeddings(None)
    return trunk


SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 32,
}
SHORT = {"original_max_position_embeddings": 16, "rope_theta": 1e4}
SHAPES = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "llama3": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SHORT},
    },
    "dynamic": {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    "qwen2": {"model_type": "qwen2", "rope_parameters": {"rope_type": "yarn", "factor": 2.0, **SHORT}},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_seed_gives_the_trunk_that_transformers_makes_of_it(shape: dict) -> None:
    """The same names, first values and next random number; the same hidden states, with a cache and without, beyond the
    length that it was made for."""
    config = AutoConfig.for_model(**{**SIZES, **shape})
    torch.manual_seed(5)
    expected, next_number = theirs(config).eval(), torch.rand(1)
    torch.manual_seed(5)
    trunk = LlamaTrunk(AutoConfig.for_model(**{**SIZES, **shape})).eval()
    assert torch.rand(1) == next_number
    state = expected.state_dict()
    assert trunk.state_dict().keys() == state.keys()
    for name, value in trunk.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, msg=name)
    embeddings, positions = torch.randn(2, 40, 48), torch.arange(40).expand(2, -1)
    mask = torch.ones(40, 40, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    caches = [DynamicCache(), DynamicCache()]
    words = {cache_keyword(expected): caches[0], "use_cache": True}
    with torch.no_grad():
        for start, stop in ((0, 24), (24, 40)):
            now, seen = (embeddings[:, start:stop], positions[:, start:stop]), mask[:, :, start:stop, :stop]
            found = trunk(now[0], seen, now[1], caches[1])
            wanted = expected(inputs_embeds=now[0], attention_mask=seen, position_ids=now[1], **words).last_hidden_state
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        found = trunk(embeddings, mask, positions)
        wanted = expected(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_way_to_attend_that_is_none(batch: Batch) -> None:
    with pytest.raises(ValueError, match="eager"):
        make(TRUNKS["qwen2, with biases"]).set_attention("eager")


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
    assert model.skips_unused_positions == (trunk["model_type"] == "qwen3")
    model.set_attention(way)
    loss_positions_M = (batch.target_kinds != PADDING).flatten().nonzero().squeeze(1)
    with torch.no_grad():
        embeddings, mask = model.embed(batch), mask_of(way, batch)
        everything = model.hidden(embeddings, mask, batch.positions)
        wanted = model.hidden(embeddings, mask, batch.positions, loss_positions_M=loss_positions_M)
    assert 0 < len(wanted) < everything.shape[0] * everything.shape[1]
    torch.testing.assert_close(wanted, everything.flatten(0, 1)[loss_positions_M], rtol=1e-9, atol=1e-9)


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
