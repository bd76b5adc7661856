"""Blanks that are filled in all at once, beside texts and drawings: each is what plain passes of the model make of it."""

import asyncio
import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from test_paged_cache import BlockKernels
from torch import Tensor, nn

import unimm.inference.decode.running_batch as running_batch_module
from unimm.batch import Elements, collate
from unimm.data.template import Turn
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.kv_cache import BUCKET, cache_bytes
from unimm.inference.decode.request import Branch, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.models.ports.base import Filler, PredictedPort
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind, Segment, Sequence

HEAT = Kind("HEAT")
BRANCHES = (Branch(weight=3.0), Branch(frozenset({"text"}), -0.5), Branch(frozenset({"text", "image"}), -1.5))


@dataclass(frozen=True)
class HeatConfig:
    """num_passes: that a blank takes."""

    num_passes: int = 3

    def build(self, width: int) -> "HeatPort":
        return HeatPort(self.num_passes, width)


class HeatPort(PredictedPort):
    """Two numbers a position, filled in from noise by steps of a flow along what a linear layer says of the hidden states."""

    kind, element_shape = HEAT, (2,)

    def __init__(self, num_passes: int, width: int) -> None:
        super().__init__()
        self.num_passes = num_passes
        self.reader, self.velocity = nn.Linear(2, width), nn.Linear(width, 2)

    def embed(self, content: Elements) -> Tensor:
        return self.reader(content.values.to(self.reader.weight.dtype))

    def parts(self) -> dict[str, nn.Module]:
        return {"heat_in": self.reader, "heat_out": self.velocity}

    def filler(self, blank: Segment, key: tuple[int, int]) -> "Flow":
        if blank.limit == 13:
            raise ValueError("thirteen brings bad luck")
        return Flow(self, blank.length, key)


class Flow:
    def __init__(self, port: HeatPort, length: int, key: tuple[int, int]) -> None:
        self.port, self.left = port, port.num_passes
        self.x_nC = torch.from_numpy(np.random.default_rng(key).normal(size=(length, 2)).astype(np.float32))

    @property
    def is_done(self) -> bool:
        return self.left == 0

    @property
    def content(self) -> np.ndarray:
        return self.x_nC.numpy()

    def inputs(self) -> Tensor:
        if len(self.x_nC) == 11:
            raise RuntimeError("eleven does not work")
        return self.port.reader(self.x_nC.to(self.port.reader.weight.dtype))

    def advance(self, hidden_GnD: Tensor, weights_G: Tensor) -> None:
        velocity_GnC = self.port.velocity(hidden_GnD).float()
        self.x_nC = self.x_nC + (weights_G[:, None, None] * velocity_GnC).sum(0) / self.port.num_passes
        self.left -= 1


@pytest.fixture(scope="module")
def model(tiny_engine: Engine) -> UnifiedModel:
    config = tiny_model(len(tiny_engine.tokenizer)).config
    torch.manual_seed(0)
    return UnifiedModel(replace(config, ports={"heat": HeatConfig()})).eval()


@pytest.fixture(scope="module")
def engine(tiny_engine: Engine, model: UnifiedModel) -> Engine:
    return Engine(replace(tiny_engine.bundle, model=model))


def warming(engine: Engine, prompt: str = "a red circle", length: int = 6, seed: int = 1, **more: Any) -> Request:
    """An image and a text, then a blank of numbers."""
    special = engine.tokenizer.special
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    image, text = Segment.look(pixels, 4, condition="image"), Segment.text(engine.tokenizer.encode(prompt), condition="text")
    given = (Segment.text([special.bos]), image, text, Segment.text([special.begin_of_image]))
    return Request(Sequence((*given, Segment.blank(HEAT, length))), Sampling(seed=seed), **more)


def tokens(engine: Engine) -> list[Request]:
    """A text and drawings, one by one."""
    return [
        Request(engine.template.draw("a red circle", num_codes=7), Sampling(1.0, seed=1), 5.0),
        Request(engine.template.chat([Turn("user", ("How many?",))], 9), Sampling(1.0, seed=2)),
        Request(engine.template.draw("a", num_codes=14), Sampling(1.0, seed=4)),
    ]


def mix(engine: Engine) -> list[Request]:
    """Tokens, and blanks of one length and of others, with one, two and three branches."""
    token = tokens(engine)
    return [
        warming(engine),
        token[0],
        warming(engine, "two large blue squares left of a cross", seed=2, guidance_scale=4.0),
        warming(engine, "a", 9, seed=3),
        token[1],
        warming(engine, "a", seed=3, branches=BRANCHES),
        warming(engine, seed=1, guidance_scale=2.0),
        token[2],
    ]


def make_decoder(engine: Engine, deterministic: bool = False, **limits: Any) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, Limits(**limits), deterministic=deterministic)


@torch.inference_mode()
def by_plain_passes(engine: Engine, request: Request) -> np.ndarray:
    """Every pass over prompt and blank together, each branch in a forward of its own, without a cache."""
    model, pad = engine.model, engine.tokenizer.special.pad
    filler: Filler = model.predicted_ports[HEAT].filler(request.blank, (request.sampling.seed, 0))
    while not filler.is_done:
        hidden = []
        for branch in request.guidance:
            batch = collate([[request.sequence.given.unconditioned(pad, branch.drop)]])
            embeddings = torch.cat([model.embed(batch), filler.inputs()[None]], dim=1)
            length = embeddings.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            whole = model.hidden(embeddings, mask, torch.arange(length)[None])
            hidden.append(whole[:, batch.tokens.shape[1] :])
        filler.advance(torch.cat(hidden), torch.tensor([branch.weight for branch in request.guidance]))
    return filler.content


def assert_filled(filled: list[Any], expected: list[Any], tolerance: float = 1e-4) -> None:
    """Ids are the same, numbers nearly."""
    for got, one in zip(filled, expected, strict=True):
        assert type(got) is type(one)
        np.testing.assert_allclose(got, one, atol=tolerance if isinstance(got, np.ndarray) else 0, rtol=0)


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[Any]:
    at_once = [request.blank.kind == HEAT for request in mix(engine)]
    return [
        by_plain_passes(engine, request) if is_at_once else make_decoder(engine).fill([request])[0]
        for request, is_at_once in zip(mix(engine), at_once, strict=True)
    ]


@pytest.mark.parametrize(
    "limits",
    [{}, {"max_rows": 3}, {"prefill_positions": 5}, {"prefill_positions": 14, "max_rows": 7}],
    ids=["all", "few rows", "in pieces", "both"],
)
def test_beside_tokens_each_is_what_plain_passes_make(limits: dict[str, Any], engine: Engine, expected: list[Any]) -> None:
    decoder, requests = make_decoder(engine, **limits), mix(engine)
    assert_filled(decoder.fill(requests), expected)
    assert_filled(decoder.fill(requests[::-1]), expected[::-1])
    assert_filled([decoder.fill([request])[0] for request in requests], expected)
    decoder.release()
    stats = decoder.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_rows, stats.cache_bytes) == (0, 0, 0, 0)


def test_blanks_of_one_length_share_a_pass_and_prefixes_are_prefilled_once(engine: Engine) -> None:
    decoder, one = make_decoder(engine), warming(engine, guidance_scale=3.0)
    requests = [replace(one, sampling=Sampling(seed=seed)) for seed in range(5)]
    decoder.fill(requests)
    assert decoder.stats().fill_passes == 3
    assert decoder.stats().prefilled_positions == 2 * requests[0].sequence.given.length
    assert decoder.stats().decoded_steps == 0


def test_passes_have_room_beside_tokens_that_have_all_blocks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a bound on keys and values is theirs: of 8 blocks, two; a pool has the others, five of them for rows. One
    request of another shape comes after the other, while those of tokens go on."""
    monkeypatch.setattr(running_batch_module, "kernels_of", lambda device, name=None: BlockKernels(device))
    bound, block = cache_bytes(engine.model, 8, BUCKET), cache_bytes(engine.model, 1, BUCKET)
    decoder = make_decoder(engine, max_cache_bytes=bound, window=1)
    drawing = Request(engine.template.draw("a", num_codes=40), Sampling(1.0, seed=1))
    drawings = [replace(drawing, sampling=Sampling(1.0, seed=seed)) for seed in range(6)]
    expected = [make_decoder(engine).fill([one])[0] for one in drawings]
    tickets = [decoder.submit(one) for one in drawings]
    decoder.step()
    decoder.step()
    assert decoder.stats().num_running == 5 and decoder.stats().cache_bytes == 6 * block
    flows = [warming(engine, guidance_scale=2.0), warming(engine, "a", 60), warming(engine, seed=2, guidance_scale=2.0)]
    waiting = {number: decoder.submit(one) for number, one in enumerate(flows)}
    while waiting:
        decoder.step()
        assert decoder.stats().cache_bytes <= bound and len(decoder.running.rows) == 5
        for number, ticket in list(waiting.items()):
            content, done = decoder.take(ticket)
            if done:
                del waiting[number]
                assert_filled(content, [by_plain_passes(engine, flows[number])])
    filled: dict[int, list[int]] = {ticket: [] for ticket in tickets}
    while not all(decoder._jobs[ticket].done for ticket in tickets if ticket in decoder._jobs):
        decoder.step()
    for ticket in tickets:
        filled[ticket] += decoder.take(ticket)[0]
    assert list(filled.values()) == expected


def test_neither_waits_for_the_other(engine: Engine) -> None:
    """A drawing gets a code at every step while passes are computed in parts, which go on at every step, too."""
    decoder = make_decoder(engine, prefill_positions=4, window=1)
    drawing = decoder.submit(tokens(engine)[2])
    while not decoder.take(drawing)[0]:
        decoder.step()
    others = [decoder.submit(warming(engine, seed=seed)) for seed in range(2)]
    passes = []
    for _ in range(12):
        decoder.step()
        assert len(decoder.take(drawing)[0]) == 1
        passes.append(decoder.stats().fill_passes)
    assert passes[-1] > 0 and len(set(passes)) > 2
    while not all(decoder._jobs[ticket].done for ticket in others):
        decoder.step()


def test_who_is_aborted_leaves_and_others_go_on(engine: Engine, expected: list[Any]) -> None:
    """Before a prefill, in it, and between the parts of a pass."""
    requests = mix(engine)
    for num_steps in range(12):
        decoder = make_decoder(engine, prefill_positions=14)
        tickets = {index: decoder.submit(requests[index]) for index in (0, 2, 5, 6)}
        for _ in range(num_steps):
            decoder.step()
        decoder.abort(tickets.pop(2))
        filled: dict[int, Any] = {}
        while len(filled) < len(tickets):
            decoder.step()
            for index, ticket in tickets.items():
                if index not in filled and decoder._jobs[ticket].done:
                    (filled[index],), is_done = decoder.take(ticket)
                    assert is_done
        assert_filled([filled[index] for index in tickets], [expected[index] for index in tickets])
        assert decoder.stats().num_rows == 0


def test_a_filler_that_fails_fails_alone(engine: Engine, expected: list[Any]) -> None:
    decoder, requests = make_decoder(engine), mix(engine)
    for length, error, words in ((13, ValueError, "bad luck"), (11, RuntimeError, "eleven does not work")):
        tickets = [decoder.submit(request) for request in (requests[0], warming(engine, length=length), requests[1])]
        failed = False
        for _ in range(30):
            decoder.step()
        with pytest.raises(error, match=words):
            failed = bool(decoder.take(tickets[1]))
        assert not failed
        assert_filled([decoder.take(tickets[0])[0][0], decoder.take(tickets[2])[0]], [expected[0], expected[1]])
    assert decoder.stats().num_rows == 0


def test_a_cache_never_grows_beyond_its_limit(engine: Engine, expected: list[Any]) -> None:
    probe = make_decoder(engine)
    probe.fill([warming(engine)])
    one_row = probe.stats().cache_bytes
    requests = mix(engine)
    for most in (3, 4, 6):
        decoder, filled = make_decoder(engine, max_cache_bytes=most * one_row), [[] for _ in requests]
        for new in decoder.steps(requests):
            for index, element in new.items():
                filled[index].append(element)
            assert decoder.stats().cache_bytes <= most * one_row
        assert_filled([one[0] if isinstance(one[0], np.ndarray) else one for one in filled], expected)
    with pytest.raises(ValueError, match="bytes of keys and values, but the engine has max_cache_bytes"):
        make_decoder(engine, max_cache_bytes=2 * one_row).submit(requests[5])


def test_deterministic_passes_are_the_same_in_any_batch_in_bfloat16(engine: Engine) -> None:
    half = Engine(replace(engine.bundle, model=copy.deepcopy(engine.model).bfloat16()))
    decoder, requests = make_decoder(half, deterministic=True, max_rows=8, max_positions=96), mix(half)
    together = decoder.fill(requests)
    assert_filled([decoder.fill([request])[0] for request in requests], together, tolerance=0)
    assert_filled(decoder.fill(requests[::-1]), together[::-1], tolerance=0)


def test_what_has_no_elements_one_by_one_is_refused_by_name(engine: Engine, tiny_engine: Engine) -> None:
    decoder = make_decoder(engine)
    wrong: list[dict[str, Any]] = [{"logprobs": True}, {"guidance_scale": 2.0, "guidance_interval": (0.0, 0.5)}]
    for more in wrong:
        with pytest.raises(ValueError, match="HEAT is filled in all at once: it has no logprobs"):
            decoder.submit(warming(engine, **more))
    with pytest.raises(ValueError, match="not HEAT"):
        tiny_engine.fill([warming(engine).sequence])


def test_an_engine_fills_it_in_and_coroutines_do(engine: Engine, expected: list[Any]) -> None:
    requests = mix(engine)
    filled = engine.fill(
        [requests[0].sequence, requests[1].sequence], [requests[0].sampling, requests[1].sampling], branches=[(), BRANCHES[:0]]
    )
    assert [sequence.is_open for sequence in filled] == [False, False] and filled[0].segments[-1].kind == HEAT
    np.testing.assert_allclose(np.asarray(filled[0].segments[-1].content), expected[0], atol=1e-4)

    async def ask() -> dict[int, list]:
        found: dict[int, list] = {}
        async for new in engine.decoder.asteps(requests):
            for index, element in new.items():
                found.setdefault(index, []).append(element)
        return found

    found = asyncio.run(ask())
    engine.decoder.stop()
    ordered = [found[index][0] if isinstance(found[index][0], np.ndarray) else found[index] for index in range(len(requests))]
    assert_filled(ordered, expected)
