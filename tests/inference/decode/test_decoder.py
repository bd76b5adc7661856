"""The decode loop: batched = single = teacher forcing, token for token in float32, for text and codes side by side."""

import gc
import itertools

import numpy as np
import pytest
import torch

from unimm.batch import collate
from unimm.data.template import Turn
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampler, Sampling, guide
from unimm.inference.engine import Engine
from unimm.inference.kernels import llama_decode
from unimm.inference.kernels.cpu_decode import CpuDecode
from unimm.sequence import BLANK, Kind, Segment, Sequence

PROMPTS = ("a red circle", "two large blue squares and a small green triangle left of them", "cross", "一个小的红色圆形")


def drawing(engine: Engine, prompt: str, num_codes: int = 12) -> Sequence:
    return engine.template.draw(prompt, num_codes=num_codes)


def question(engine: Engine, text: str, limit: int, seed: int = 0) -> Sequence:
    image = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    sequence = engine.template.chat([Turn("user", (engine.template.look(image), text))], limit)
    # Without stop ids: the lengths of random answers would say little.
    return Sequence((*sequence.segments[:-1], Segment.blank(Kind.TEXT, limit)))


@pytest.fixture(scope="module")
def mixed(tiny_engine: Engine) -> list[Request]:
    """Text and codes, greedy and drawn, with and without guidance, all of different lengths."""
    return [
        Request(drawing(tiny_engine, PROMPTS[0]), Sampling(1.0, seed=3), 5.0),
        Request(question(tiny_engine, "What colour is the square?", 20), Sampling()),
        Request(drawing(tiny_engine, PROMPTS[1], 9), Sampling(0.7, top_k=5, seed=3, index=1), 2.0),
        Request(question(tiny_engine, "How many?", 5, seed=1), Sampling(1.3, top_p=0.8, seed=1)),
        Request(drawing(tiny_engine, PROMPTS[2], 15), Sampling()),
        Request(drawing(tiny_engine, PROMPTS[3], 1), Sampling(1.0, seed=9), 0.0),
    ]


def logits_by_teacher_forcing(engine: Engine, sequence: Sequence, kind: Kind, num_filled: int) -> torch.Tensor:
    """The logits (num_filled, V) that one forward over the whole, closed sequence gives for its last elements."""
    batch = collate([[sequence]])
    with torch.inference_mode():
        hidden = engine.model.hidden(engine.model.embed(batch), batch.attention_mask(), batch.positions)
        return engine.model.vocabulary_ports[kind].logits(hidden[0, -num_filled - 1 : -1])


def choices_by_teacher_forcing(engine: Engine, request: Request, ids: list[int]) -> list[int]:
    """What is chosen at every step when all earlier ids are given at once, without a cache."""
    closed, kind = request.sequence.fill(ids), request.blank.kind
    logits = logits_by_teacher_forcing(engine, closed, kind, len(ids))
    if request.guidance_scale != 1.0:
        null = closed.unconditioned(engine.tokenizer.special.pad)
        scale = torch.full((len(ids),), request.guidance_scale)
        logits = guide(logits, logits_by_teacher_forcing(engine, null, kind, len(ids)), scale)
    sampler = Sampler([request.sampling] * len(ids), torch.device("cpu"))
    return sampler(logits, torch.arange(len(ids))).tolist()


@pytest.fixture(scope="module")
def decoder(tiny_engine: Engine) -> Decoder:
    return Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad)


def test_a_batch_fills_what_each_request_fills_alone(decoder: Decoder, mixed: list[Request]) -> None:
    together = decoder.fill(mixed)
    assert [len(ids) for ids in together] == [request.blank.limit for request in mixed]
    assert together == [decoder.fill([request])[0] for request in mixed]


def test_the_order_of_requests_changes_nothing(decoder: Decoder, mixed: list[Request]) -> None:
    assert decoder.fill(mixed[::-1])[::-1] == decoder.fill(mixed)


def test_cached_decoding_is_teacher_forcing(tiny_engine: Engine, decoder: Decoder, mixed: list[Request]) -> None:
    for request, ids in zip(mixed, decoder.fill(mixed), strict=True):
        assert choices_by_teacher_forcing(tiny_engine, request, ids) == ids


def test_guidance_of_one_is_the_conditional_model(tiny_engine: Engine, decoder: Decoder) -> None:
    sequence, sampling = drawing(tiny_engine, PROMPTS[0]), Sampling(1.0, seed=5)
    plain = decoder.fill([Request(sequence, sampling, 1.0)])
    # 1 + 1e-9 goes through the guidance rows, and must come to the same.
    assert decoder.fill([Request(sequence, sampling, 1.0 + 1e-9)]) == plain
    assert decoder.fill([Request(sequence, sampling, 8.0)]) != plain


def test_guidance_of_zero_is_the_null_prompt(tiny_engine: Engine, decoder: Decoder) -> None:
    sequence, sampling = drawing(tiny_engine, PROMPTS[0]), Sampling(1.0, seed=5)
    null = sequence.unconditioned(tiny_engine.tokenizer.special.pad)
    assert decoder.fill([Request(sequence, sampling, 0.0)]) == decoder.fill([Request(null, sampling)])


def test_steps_give_one_id_of_every_unfinished_request(decoder: Decoder, mixed: list[Request]) -> None:
    steps = list(decoder.steps(mixed))
    limits = [request.blank.limit or 0 for request in mixed]
    assert len(steps) == max(limits)
    for number, new in enumerate(steps):
        assert sorted(new) == [index for index, limit in enumerate(limits) if limit > number]


def test_a_stop_id_ends_a_request_and_is_kept(tiny_engine: Engine, decoder: Decoder) -> None:
    open_end = question(tiny_engine, "How many circles?", 12)
    whole = decoder.fill([Request(open_end)])[0]
    stop = whole[4]
    stopping = Sequence((*open_end.segments[:-1], Segment.blank(Kind.TEXT, 12, stop=(stop,))))
    other = Request(drawing(tiny_engine, PROMPTS[1]), Sampling(1.0), 3.0)
    ids, drawn = decoder.fill([Request(stopping), other])
    assert ids == whole[: whole.index(stop) + 1]
    assert drawn == decoder.fill([other])[0]


def test_known_codes_are_kept_and_the_rest_follows_them(tiny_engine: Engine, decoder: Decoder) -> None:
    prompt = drawing(tiny_engine, PROMPTS[0], 6).segments[:-1]
    known = (7, BLANK, 30, BLANK)
    request = Request(Sequence((*prompt, Segment.blank(Kind.CODES, 6, known))), Sampling(1.0, seed=2), 4.0)
    ids = decoder.fill([request])[0]
    assert (ids[0], ids[2], len(ids)) == (7, 30, 6)
    chosen = choices_by_teacher_forcing(tiny_engine, request, ids)
    assert [chosen[place] for place in (1, 3, 4, 5)] == [ids[place] for place in (1, 3, 4, 5)]


def test_requests_that_cannot_be_filled_are_refused(tiny_engine: Engine, decoder: Decoder) -> None:
    with pytest.raises(ValueError, match=r"takes 3\d\d positions .* made for 256"):
        decoder.fill([Request(drawing(tiny_engine, PROMPTS[0], 300))])
    with pytest.raises(ValueError, match="no open segment"):
        decoder.fill([Request(drawing(tiny_engine, PROMPTS[0]).given)])
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="guidance_scale"):
            decoder.fill([Request(drawing(tiny_engine, PROMPTS[0]), guidance_scale=scale)])
    with pytest.raises(ValueError, match="given before"):
        decoder.fill([Request(Sequence((Segment.blank(Kind.TEXT, 4),)))])


def test_nothing_asked_is_nothing_given(decoder: Decoder) -> None:
    assert decoder.fill([]) == []


class _Holder:
    """Something in a reference cycle: only the garbage collector finds it."""


def test_a_stream_that_the_collector_drops_in_a_step_disturbs_nobody(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows must not move between two layers of somebody else's step."""
    decoder = Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad)
    dropped = Request(tiny_engine.template.draw("two large blue squares", num_codes=4), Sampling(1.0, seed=1))
    other = Request(tiny_engine.template.draw("a", num_codes=4), Sampling(1.0, seed=2))
    (alone,) = decoder.fill([other])
    calls = itertools.count()

    def collecting(plain):
        def layer(self, *words):
            if next(calls) == 1:
                gc.collect()
            return plain(self, *words)

        return layer

    gc.disable()
    try:
        holder = _Holder()
        holder.me = holder  # pyright: ignore[reportAttributeAccessIssue]
        holder.stream = decoder.steps([dropped])  # pyright: ignore[reportAttributeAccessIssue]
        next(holder.stream)  # pyright: ignore[reportAttributeAccessIssue]
        stream = decoder.steps([other])
        ids = [next(stream)[0]]
        del holder
        for owner, name in ((llama_decode._Layer, "__call__"), (CpuDecode, "_attend")):  # with a compiler, and without one
            monkeypatch.setattr(owner, name, collecting(getattr(owner, name)))
        ids += [new[0] for new in stream]
    finally:
        gc.enable()
    assert next(calls) > 2 and ids == alone
    assert decoder.stats().num_rows == 0
