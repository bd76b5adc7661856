"""The log-likelihood of a sequence is what a plain pass over it gives, of text and codes, alone and in any batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.batch import collate
from unimm.data.template import Turn
from unimm.inference import loglikelihood
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind, Segment, Sequence


@pytest.fixture(scope="module")
def sequences(tiny_engine: Engine) -> list[Sequence]:
    """Texts and drawings of many lengths, learned; the last one is text and codes, with weights that leave some out."""
    template, tokenizer = tiny_engine.template, tiny_engine.tokenizer
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    answers = ["two 红色 circles", "no", "a large blue square left of a small cross, and three more below it"]
    asked = [Turn("user", (template.look(picture), "How many? 两个"))]
    texts = [template.chat([*asked, Turn("assistant", (answer,))]) for answer in answers]
    draw = template.draw("a red circle", num_codes=4)
    mixed = (Segment.text([5, 6, 7], learn=True), Segment.codes([3, 1, 2], weight=np.float32([0.5, 0.0, 2.0])))
    plain = Sequence(
        (Segment.text(tokenizer.encode("What colour is it?")), Segment.text(tokenizer.encode(" a blue square"), learn=True))
    )
    return [*texts, draw.fill([3, 31, 0, 7], learn=True), plain, Sequence(mixed)]


def plainly(engine: Engine, sequence: Sequence) -> tuple[float, int, bool]:
    """The same by hand: hidden states of one pass, and the head of each target's kind at the position before it."""
    batch = collate([[sequence.opened()]])
    with torch.inference_mode():
        hidden_TD = engine.model.hidden(engine.model.embed(batch), batch.attention_mask(), batch.positions)[0]
        total, count, is_greedy = 0.0, 0, True
        for segment, start, _ in sequence.spans():
            weights = np.broadcast_to(segment.weight, segment.length)
            for place, (one, weight) in enumerate(zip(segment.ids, weights, strict=False), start):
                if weight and place:
                    logits = engine.model.vocabulary_ports[segment.kind].logits(hidden_TD[place - 1])
                    total, count = total + float(logits.log_softmax(-1)[one]), count + 1
                    is_greedy &= int(logits.argmax()) == one
    return total, count, is_greedy


@pytest.mark.parametrize("trunk", [{}, {"model_type": "qwen2", "num_key_value_heads": 1}])
def test_it_is_what_a_plain_pass_gives(
    trunk: dict, tiny_engine: Engine, sequences: list[Sequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine
    if trunk:
        torch.manual_seed(0)
        config = replace(engine.model.config, trunk={**engine.model.config.trunk, **trunk})
        engine = Engine(replace(engine.bundle, model=UnifiedModel(config).eval()))
    expected = [plainly(engine, sequence) for sequence in sequences]
    assert min(count for _, count, _ in expected) >= 2 and len({count for _, count, _ in expected}) > 3
    together = engine.loglikelihood(sequences)
    assert [(one.num_targets, one.is_greedy) for one in together] == [one[1:] for one in expected]
    assert [one.logprob for one in together] == pytest.approx([one[0] for one in expected], abs=1e-3)
    alone = [engine.loglikelihood([sequence])[0] for sequence in sequences]
    assert [one.logprob for one in alone] == pytest.approx([one.logprob for one in together], abs=1e-3)
    monkeypatch.setattr(loglikelihood, "CHUNK_LOGITS", 900)  # two positions at once
    monkeypatch.setitem(loglikelihood.POSITIONS_A_PASS, "cpu", 80)
    in_parts = engine.loglikelihood(sequences[::-1])[::-1]
    assert [one.logprob for one in in_parts] == pytest.approx([one.logprob for one in together], abs=1e-3)
    assert engine.loglikelihood([]) == []


def test_it_is_the_loss_of_a_packed_row(tiny_engine: Engine, sequences: list[Sequence]) -> None:
    learned = sequences[:-1]
    with torch.inference_mode():
        sums = tiny_engine.model(collate([[sequence.opened() for sequence in learned]]))
    together = tiny_engine.loglikelihood(learned)
    assert sum(one.logprob for one in together) == pytest.approx(-sum(float(one.loss) for one in sums.values()), abs=1e-3)
    assert sum(one.num_targets for one in together) == sum(float(one.count) for one in sums.values())
    assert {Kind.TEXT, Kind.CODES} == {*sums}


def test_greedy_decoding_says_what_is_greedy(tiny_engine: Engine) -> None:
    template = tiny_engine.template
    opened = template.chat([Turn("user", ("What colour is it?",))], 6)
    (text,) = tiny_engine.decoder.fill(_requests(opened))
    draw = template.draw("a red circle", num_codes=4)
    (codes,) = tiny_engine.decoder.fill(_requests(draw))
    other = [*codes[:-1], (codes[-1] + 1) % 32]
    asked = [opened.fill(text, learn=True), draw.fill(codes, learn=True), draw.fill(other, learn=True)]
    assert [one.is_greedy for one in tiny_engine.loglikelihood(asked)] == [True, True, False]


def _requests(sequence: Sequence) -> list:
    from unimm.inference.decode.request import Request

    return [Request(sequence, Sampling())]


def test_one_at_a_time_where_batches_must_not_matter(tiny_engine: Engine, sequences: list[Sequence]) -> None:
    engine = Engine(tiny_engine.bundle, deterministic=True)
    assert engine.loglikelihood(sequences) == [engine.loglikelihood([sequence])[0] for sequence in sequences]


def test_what_has_no_likelihood_is_refused(tiny_engine: Engine) -> None:
    given, learned = Segment.text([5, 6]), Segment.text([7], learn=True)
    for sequence, told in (
        (Sequence((given, Segment.blank(Kind.TEXT, 4))), r"is open|An open sequence has no likelihood yet"),
        (Sequence((given,)), "Nothing is learned in this sequence: mark what is to be scored"),
        (Sequence((learned,)), "Nothing is learned"),
        (Sequence((given, Segment.text([99_999], learn=True))), "no element 99999 of TEXT"),
        (Sequence((given, Segment.text([7] * 300, learn=True))), "takes 302 positions, and the model was made for 256"),
    ):
        with pytest.raises(ValueError, match=told):
            tiny_engine.loglikelihood([sequence])
