"""Texts as they are written: stop strings, pieces, and what is told of them."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unimm.batch import collate
from unimm.data.template import Turn
from unimm.inference.decode.request import Job, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine
from unimm.inference.text_stream import TextStream

MESSAGES = [{"role": "user", "content": "How many circles?"}]


def write_all(engine: Engine, text: str, stop: tuple[str, ...]) -> tuple[list[str], TextStream]:
    """A writer that is given the tokens of a text, until it is over."""
    writer = TextStream(engine.tokenizer, stop)
    pieces = []
    for token in engine.tokenizer.encode(text):
        pieces.append(writer.push(token))
        if writer.is_over:
            break
    pieces.append(writer.finish())
    return pieces, writer


@given(text=st.text("abc 圆", max_size=30), stop=st.lists(st.text("abc 圆", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_its_first_stop_string(text: str, stop: list[str], tiny_engine: Engine) -> None:
    pieces, writer = write_all(tiny_engine, text, tuple(stop))
    begun, shown = text.lstrip(), "".join(pieces)
    assert writer.text == shown.strip()
    assert writer.is_over == any(one in begun for one in stop)
    if writer.is_over:
        assert not any(one in shown for one in stop)
        assert any((begun + "\0").startswith(shown + one) for one in stop)
    else:
        assert shown == begun


def test_pieces_come_as_soon_as_they_are_certain(tiny_engine: Engine) -> None:
    pieces, _ = write_all(tiny_engine, "a red circle", ("circus",))
    assert any(pieces[:-1])
    assert "".join(pieces) == "a red circle"


def test_what_a_stop_string_cuts_is_cut_everywhere(tiny_engine: Engine, picture: Image.Image) -> None:
    whole = tiny_engine.chat(MESSAGES, max_new_tokens=30, temperature=1.0, seed=2)
    assert isinstance(whole, str)
    stop = whole[6:9]
    cut = whole[: whole.index(stop)].rstrip()
    words = {"max_new_tokens": 30, "temperature": 1.0, "seed": 2, "stop": stop}
    assert tiny_engine.chat(MESSAGES, **words) == cut
    assert "".join(tiny_engine.chat(MESSAGES, stream=True, **words)).strip() == cut
    assert tiny_engine.decoder.stats().num_rows == 0
    caption = tiny_engine.caption(picture, max_new_tokens=30)
    assert (
        tiny_engine.caption([picture, picture], max_new_tokens=30, stop=[caption[4:6], "no such"])
        == [caption[: caption.index(caption[4:6])].rstrip()] * 2
    )


def test_a_completion_tells_how_it_ended(tiny_engine: Engine) -> None:
    long = tiny_engine.complete(MESSAGES, max_new_tokens=12, logprobs=True)
    assert (long.finish_reason, len(long.ids)) == ("length", 12)
    assert long.logprobs is not None and len(long.logprobs) == 12 and max(long.logprobs) < 0
    assert long.text == tiny_engine.chat(MESSAGES, max_new_tokens=12)
    short = tiny_engine.complete(MESSAGES, max_new_tokens=12, stop=long.text[2:5], logprobs=True)
    assert short.finish_reason == "stop" and short.ids == long.ids[: len(short.ids)]
    assert short.logprobs == long.logprobs[: len(short.ids)]
    assert tiny_engine.complete(MESSAGES, max_new_tokens=3).logprobs is None
    asked = tiny_engine.template.chat([Turn("user", ("How many circles?",))], 12)
    assert long.num_prompt_positions == asked.given.length


def test_a_penalty_forbids_what_it_should(tiny_engine: Engine) -> None:
    ids = tiny_engine.complete(MESSAGES, max_new_tokens=40, repetition_penalty=1e9).ids
    assert len(set(ids)) == len(ids)
    with pytest.raises(ValueError, match="repetition_penalty is for text"):
        tiny_engine.fill([tiny_engine.template.draw("a", num_codes=4)], Sampling(repetition_penalty=2.0))


@pytest.mark.parametrize("stop", ["", ["a", ""], [3]])
def test_stop_strings_that_are_none(stop, tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match="stop is a string"):
        tiny_engine.chat(MESSAGES, stop=stop)


def test_new_weights_are_used_from_then_on(tiny_engine: Engine) -> None:
    model = tiny_model(len(tiny_engine.tokenizer))
    engine = Engine(replace(tiny_engine.bundle, model=model))
    before = engine.generate_codes("a red circle", seed=3)
    new = {"codes.head.2.bias": torch.full((32,), -50.0).index_fill(0, torch.tensor([9]), 50.0)}
    with pytest.raises(ValueError, match=r"'codes.head.2.bias' are \(4,\), but the model has \(32,\)"):
        engine.update_weights([*new.items(), ("codes.head.2.bias", torch.zeros(4))])
    with pytest.raises(ValueError, match="no such parameter"):
        engine.update_weights([("codes.head.9.bias", torch.zeros(4))])
    assert torch.equal(engine.generate_codes("a red circle", seed=3), before)
    steps = engine.stream_images("a red circle", seed=3)
    next(steps)
    engine.update_weights(new.items())
    assert [state.codes.tolist() for state in steps][-1] == [[int(before[0, 0]), 9, 9, 9]]
    assert engine.generate_codes("a red circle", seed=3).tolist() == [[9, 9, 9, 9]]


def test_the_likeliest_tokens_are_those_of_the_logits(tiny_engine: Engine, picture: Image.Image) -> None:
    """Equal to one pass over the whole text, with text and bytes of every token; images count as prompt."""
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]}]
    told = tiny_engine.complete(messages, max_new_tokens=6, temperature=1.0, seed=4, top_logprobs=3)
    assert told.tokens is not None and told.top_logprobs is not None and told.logprobs is not None
    assert told.num_image_positions == 4 < told.num_prompt_positions
    asked = tiny_engine.template.chat([Turn("user", (tiny_engine.template.look(picture), "What is it?"))], 6)
    batch = collate([[asked.fill(told.ids)]])
    with torch.inference_mode():
        hidden = tiny_engine.model.hidden(tiny_engine.model.embed(batch), batch.attention_mask(), batch.positions)
        expected = tiny_engine.model.text.logits(hidden[0, -7:-1]).log_softmax(-1)
    top = expected.topk(3)
    assert [[one.id for one in place] for place in told.top_logprobs] == top.indices.tolist()
    found = torch.tensor([[one.logprob for one in place] for place in told.top_logprobs])
    assert torch.allclose(found, top.values, atol=1e-4)
    assert torch.allclose(torch.tensor(told.logprobs), expected.gather(1, torch.tensor(told.ids)[:, None])[:, 0], atol=1e-4)
    assert [token.id for token in told.tokens] == list(told.ids)
    assert b"".join(token.bytes for token in told.tokens).decode(errors="replace").strip() == told.text
    assert tiny_engine.complete(messages, max_new_tokens=6, temperature=1.0, seed=4).ids == told.ids
    with pytest.raises(ValueError, match="top_logprobs is at most 20, not 21"):
        tiny_engine.complete(messages, top_logprobs=21)


def test_others_in_the_batch_change_no_top_logprobs(tiny_engine: Engine) -> None:
    template = tiny_engine.template
    ask = [Request(template.chat([Turn("user", (text,))], 5), top_logprobs=k) for text, k in (("How many?", 2), ("Red?", 0))]
    requests = [*ask, Request(template.draw("a", num_codes=4), Sampling(1.0), 3.0, top_logprobs=5)]
    together: list[Job] = []
    for _ in tiny_engine.decoder.steps(requests, jobs=together):
        pass
    assert [len(job.likeliest) for job in together] == [len(together[0].filled), 0, 4]
    assert {len(place) for place in together[0].likeliest} == {2} and {len(place) for place in together[2].likeliest} == {5}
    for job in together:
        alone: list[Job] = []
        for _ in tiny_engine.decoder.steps([job.request], jobs=alone):
            pass
        assert [[one for one, _ in place] for place in alone[0].likeliest] == [[o for o, _ in place] for place in job.likeliest]


def test_chunks_join_to_the_completion(tiny_engine: Engine) -> None:
    words = {"max_new_tokens": 30, "temperature": 1.0, "seed": 2, "logprobs": True, "top_logprobs": 2}
    whole = tiny_engine.complete(MESSAGES, **words)
    for stop in (None, whole.text[6:9]):
        expected = tiny_engine.complete(MESSAGES, stop=stop, **words)
        chunks = list(tiny_engine.stream_complete(MESSAGES, stop=stop, **words))
        assert [chunk.completion for chunk in chunks] == [None] * (len(chunks) - 1) + [expected]
        assert "".join(chunk.text for chunk in chunks).strip() == expected.text
        assert sum((chunk.tokens for chunk in chunks), ()) == expected.tokens
    assert all(chunk.tokens == () for chunk in tiny_engine.stream_complete(MESSAGES, max_new_tokens=3))


@given(text=st.text(max_size=20))
def test_bytes_of_tokens_are_those_of_their_text(text: str, tiny_engine: Engine) -> None:
    tokenizer = tiny_engine.tokenizer
    assert b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode(text)) == text.encode()
