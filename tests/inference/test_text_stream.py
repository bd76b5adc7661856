"""Texts as they are written: stop strings, pieces, and what is told of them."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unimm.data.template import Turn
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
