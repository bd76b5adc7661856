"""What a trace tells is what the model does: its own logits, of every kind of trunk, and the attention of `transformers`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.batch import collate
from unimm.data.template import Turn
from unimm.inference import trace_plots
from unimm.inference.decode.sampling import guide
from unimm.inference.engine import Engine
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind, Sequence

TRUNKS = {
    "llama, grouped heads": {"model_type": "llama", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1},
    "olmo2": {"model_type": "olmo2", "num_key_value_heads": 2},
    "gpt_neox": {"model_type": "gpt_neox"},
}


def make_engine(tiny_engine: Engine, trunk: dict) -> Engine:
    config = tiny_engine.model.config
    torch.manual_seed(0)
    model = UnifiedModel(replace(config, trunk={**config.trunk, **trunk})).eval()
    return Engine(replace(tiny_engine.bundle, model=model))


@pytest.fixture
def answered(tiny_engine: Engine, picture: Image.Image) -> Sequence:
    turns = [Turn("user", (tiny_engine.template.look(picture), "How many? 两个")), Turn("assistant", ("two 红色 circles",))]
    return tiny_engine.template.chat(turns)


def plain_hidden(engine: Engine, sequence: Sequence) -> torch.Tensor:
    """(T, D): what the model gives as it always does."""
    batch = collate([[sequence.opened()]])
    with torch.inference_mode():
        return engine.model.hidden(engine.model.embed(batch), batch.attention_mask(), batch.positions)[0]


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS.keys())
def test_it_is_what_the_model_computes(trunk: dict, tiny_engine: Engine, answered: Sequence) -> None:
    engine = make_engine(tiny_engine, trunk)
    drawn = engine.template.draw("a red circle", num_codes=4)
    drawn = drawn.fill(engine.generate_codes("a red circle", seed=1)[0].numpy())
    for sequence, kind in ((answered, Kind.TEXT), (drawn, Kind.CODES)):
        trace = engine.trace(sequence, hidden=True, attention=True, logits=True)
        hidden, length = plain_hidden(engine, sequence), sequence.length
        assert trace.hidden is not None and trace.attention is not None and trace.logits is not None
        assert trace.hidden.shape == (3, length, 64) and trace.attention.shape == (2, 4, length, length)
        assert torch.allclose(trace.hidden[-1], hidden, atol=1e-4)
        before = [place - 1 for place in trace.predicted(kind)]
        assert torch.allclose(trace.logits[kind], engine.model.vocabulary_ports[kind].logits(hidden[before]), atol=1e-4)
        first, last = trace.lens(kind, 0), trace.lens(kind, 2)
        assert torch.allclose(last, trace.logits[kind], atol=1e-5) and not torch.allclose(first, last, atol=0.1)
        assert torch.allclose(trace.attention.sum(-1), torch.ones(2, 4, length), atol=1e-5)
        assert trace.attention.triu(1).abs().max() == 0 and trace.attention.min() >= 0
        mean = engine.trace(sequence, attention="mean").attention
        assert mean is not None and torch.allclose(mean, trace.attention.mean(1, keepdim=True), atol=1e-6)
    assert engine.model.trunk.config._attn_implementation == "sdpa", "as it was"


@pytest.mark.parametrize("name", ["llama, grouped heads", "qwen3", "qwen2"])
def test_attention_is_that_of_transformers(name: str, tiny_engine: Engine, answered: Sequence) -> None:
    """Of the trunks that are our own, against their eager one with the same weights."""
    from transformers import AutoModel

    engine = make_engine(tiny_engine, TRUNKS[name])
    theirs = AutoModel.from_config(engine.model.config.trunk_config(), attn_implementation="eager").eval()
    theirs.set_input_embeddings(None)
    theirs.load_state_dict(engine.model.trunk.state_dict())
    batch = collate([[answered.opened()]])
    with torch.inference_mode():
        output = theirs(inputs_embeds=engine.model.embed(batch), output_attentions=True, output_hidden_states=True)
    trace = engine.trace(answered, hidden=True, attention=True)
    assert trace.attention is not None and trace.hidden is not None
    assert torch.allclose(trace.attention, torch.cat(output.attentions), atol=1e-5)
    assert torch.allclose(trace.hidden, torch.cat(output.hidden_states), atol=1e-4)


def test_it_names_what_stands_where(tiny_engine: Engine, answered: Sequence) -> None:
    trace = tiny_engine.trace(answered, attention=True)
    assert len(trace.tokens) == answered.length and trace.hidden is None and trace.logits is None
    (image,) = trace.images
    assert (image.height, image.width, trace.tokens[image.start + 3]) == (2, 2, "<pixels 1,1>")
    assert [word.text for word in trace.words()] == ["two", "红", "色", "circles"]
    assert [word.text for word in trace.words_of("How many? 两个")] == ["How", "many?", "两", "个"]
    covered = [place for word in trace.words() for place in word.positions]
    assert covered == sorted(set(covered)) and covered[-1] == answered.length - 2  # the last one ends the turn
    looked = trace.looked_at(covered, image.positions, slice(1, 2))
    assert trace.attention is not None
    assert torch.allclose(looked[0], trace.attention[1, :, covered[0] - 1, image.start : image.start + 4].mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="does not stand in the sequence"):
        trace.words_of("How few?")
    with pytest.raises(ValueError, match="make it with hidden=True"):
        trace.lens(Kind.TEXT, 0)
    with pytest.raises(ValueError, match="looked at nothing"):
        trace.looked_at([0], [0])


def test_what_cannot_be_traced_is_refused(tiny_engine: Engine, answered: Sequence) -> None:
    with pytest.raises(ValueError, match="fill it first"):
        tiny_engine.trace(tiny_engine.template.draw("a", num_codes=4))
    with pytest.raises(ValueError, match='attention is True, False or "mean"'):
        tiny_engine.trace(answered, attention="all")
    with pytest.raises(ValueError, match=r"takes \d+ positions, and the model was made for 256"):
        tiny_engine.trace(Sequence(answered.segments * 20))
    with pytest.raises(ValueError, match=r"A drawing has codes \(4,\), not \(1, 4\)"):
        tiny_engine.trace_drawing("a", torch.zeros(1, 4, dtype=torch.long))


def test_guidance_is_what_codes_are_chosen_from(tiny_engine: Engine) -> None:
    codes = tiny_engine.generate_codes("a red circle", seed=3, temperature=0.0, guidance_scale=4.0)[0]
    found = tiny_engine.trace_guidance("a red circle", codes, 4.0)
    assert found.guided.shape == (4, 32) and torch.equal(found.guided.argmax(-1), codes)
    assert torch.equal(found.guided, guide(found.conditional, found.unconditional, torch.full((4,), 4.0)))


def test_plots_are_pictures(tiny_engine: Engine, picture: Image.Image) -> None:
    """Also from another thread, and without pyplot."""
    asked = tiny_engine.trace_answer(picture, "How many circles?", max_new_tokens=12, temperature=1.0, seed=1)
    codes = tiny_engine.generate_codes("a red circle", seed=1)[0]
    drawn = tiny_engine.trace_drawing("a red $circle", codes)
    plots = [
        trace_plots.plot_looks(asked),
        trace_plots.plot_prompt_words(drawn, "a red $circle", tiny_engine.decode_codes(codes)[0]),
        trace_plots.plot_code_lens(drawn, tiny_engine.coder),
        trace_plots.plot_guidance(tiny_engine.trace_guidance("a red circle", codes), 2),
    ]
    for plot in plots:
        assert plot.mode == "RGB" and min(plot.size) > 100 and np.asarray(plot).std() > 5
    with pytest.raises(ValueError, match="places 0 to 3, not 9"):
        trace_plots.plot_guidance(tiny_engine.trace_guidance("a red circle", codes), 9)
    with pytest.raises(ValueError, match="has 1 images, so there is no image 1"):
        trace_plots.plot_looks(asked, image=1)
