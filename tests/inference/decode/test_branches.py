"""Guidance as branches: any number of prompts whose logits are summed with weights; classifier-free guidance is two of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unimm.batch import collate
from unimm.data.template import Turn
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Branch, Job, Request, classifier_free
from unimm.inference.decode.sampling import Sampler, Sampling, combine, guide
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.sequence import Kind, Segment, Sequence

TEXT, BOTH = frozenset({"text"}), frozenset({"text", "image"})


def by_image_and_text(image_scale: float, text_scale: float) -> tuple[Branch, ...]:
    """InstructPix2Pix: nothing, the image alone, image and text."""
    return Branch(weight=text_scale), Branch(TEXT, image_scale - text_scale), Branch(BOTH, 1.0 - image_scale)


def editing(engine: Engine, num_codes: int = 9, seed: int = 0) -> Sequence:
    """An image looked at, what is to be done with it, and codes to fill in."""
    special = engine.tokenizer.special
    pixels = np.random.default_rng(seed).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    segments = (
        Segment.text([special.bos]),
        Segment.look(pixels, 4, condition="image"),
        Segment.text(engine.tokenizer.encode("make the circle blue"), condition="text"),
        Segment.text([special.begin_of_image]),
        Segment.blank(Kind.CODES, num_codes),
    )
    return Sequence(segments)


def three(engine: Engine, num_codes: int = 9, **more) -> Request:
    return Request(editing(engine, num_codes), Sampling(1.0, seed=4), branches=by_image_and_text(1.5, 6.0), **more)


def make_decoder(engine: Engine, max_rows: int = 128, **limits: int) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, Limits(max_rows, window=1, **limits))


def filled_with_logprobs(engine: Engine, request: Request) -> tuple[list[int], list[float]]:
    jobs: list[Job] = []
    list(make_decoder(engine).steps([replace(request, logprobs=True)], jobs=jobs))
    return jobs[0].filled, jobs[0].logprobs


def logits_of_one_run(engine: Engine, sequence: Sequence, num_filled: int) -> torch.Tensor:
    """(num_filled, V): one branch in a forward of its own, without a cache."""
    batch = collate([[sequence]])
    with torch.inference_mode():
        hidden = engine.model.hidden(engine.model.embed(batch), batch.attention_mask(), batch.positions)
        return engine.model.codes.logits(hidden[0, -num_filled - 1 : -1]).double()


@pytest.mark.parametrize("scales", [(1.5, 6.0), (0.0, 3.0), (2.0, 2.0), (1.0, 1.0)])
def test_three_branches_are_three_separate_runs_combined_by_hand(scales: tuple[float, float], tiny_engine: Engine) -> None:
    image_scale, text_scale = scales
    request = Request(editing(tiny_engine), Sampling(1.0, seed=4), branches=by_image_and_text(image_scale, text_scale))
    ids, logprobs = filled_with_logprobs(tiny_engine, request)
    closed, pad = request.sequence.fill(ids), tiny_engine.tokenizer.special.pad
    whole, image_alone, neither = (
        logits_of_one_run(tiny_engine, closed.unconditioned(pad, drop), len(ids)) for drop in (set(), TEXT, BOTH)
    )
    assert not torch.allclose(whole, image_alone) and not torch.allclose(image_alone, neither)
    logits = neither + image_scale * (image_alone - neither) + text_scale * (whole - image_alone)
    steps = torch.arange(len(ids))
    assert Sampler([request.sampling] * len(ids), torch.device("cpu"))(logits, steps).tolist() == ids
    expected = logits.log_softmax(-1)[steps, torch.tensor(ids)]
    torch.testing.assert_close(torch.tensor(logprobs).double(), expected, atol=1e-4, rtol=1e-4)


def test_two_branches_are_classifier_free_guidance_to_the_bit(tiny_engine: Engine) -> None:
    drawn = tiny_engine.template.draw("a red circle", num_codes=12)
    for scale in (0.0, 2.5, 5.0):
        plain = Request(drawn, Sampling(1.0, seed=1), scale)
        written = Request(drawn, Sampling(1.0, seed=1), branches=(Branch(weight=scale), Branch(TEXT, 1.0 - scale)))
        assert filled_with_logprobs(tiny_engine, written) == filled_with_logprobs(tiny_engine, plain)


def test_the_sum_of_two_branches_is_that_of_guide_to_the_bit() -> None:
    """Also beside rows with three branches and with none."""
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 7
    places = torch.tensor([[3, 4, 2], [3, 5, 2]])
    combined = combine(logits, places, torch.tensor([[5.0, 6.0, 1.0], [0.0, -4.5, 0.0]]))
    assert torch.equal(combined[0], guide(logits[:1], logits[3:4], torch.tensor([5.0]))[0])
    assert torch.equal(combined[2], logits[2])
    torch.testing.assert_close(combined[1], 6.0 * logits[1] - 4.5 * logits[4] - 0.5 * logits[5])
    alone = combine(logits[[0, 3]], torch.tensor([[1]]), torch.tensor([[5.0]]))
    assert torch.equal(combined[0], alone[0])


def test_requests_with_other_numbers_of_branches_share_a_batch(tiny_engine: Engine) -> None:
    template, drawn = tiny_engine.template, tiny_engine.template.draw("a red circle", num_codes=7)
    requests = [
        Request(drawn, Sampling(1.0, seed=1), 5.0),
        three(tiny_engine),
        Request(template.chat([Turn("user", ("How many?",))], 6), Sampling(1.0, seed=2)),
        three(tiny_engine, 6, guidance_interval=(0.4, 0.8)),
        Request(drawn, Sampling(1.0, seed=3)),
    ]
    alone = [make_decoder(tiny_engine).fill([request])[0] for request in requests]
    assert make_decoder(tiny_engine).fill(requests) == alone
    assert make_decoder(tiny_engine, max_rows=3).fill(requests[::-1]) == alone[::-1]
    assert make_decoder(tiny_engine, prefill_positions=3).fill(requests) == alone


def test_rows_are_one_for_each_branch_and_prefixes_are_prefilled_once(tiny_engine: Engine) -> None:
    decoder, request = make_decoder(tiny_engine), three(tiny_engine, 10)
    several = [replace(request, sampling=Sampling(1.0, index=index)) for index in range(4)]
    stream = decoder.steps(several)
    next(stream)
    assert decoder.stats().num_rows == 12
    assert decoder.stats().prefilled_positions == 3 * request.sequence.given.length
    stream.close()
    for interval, num_guided in (((0.0, 1.0), 9), ((0.0, 0.5), 4), ((0.5, 1.0), 5), ((0.3, 0.3), 0)):
        decoder = make_decoder(tiny_engine)
        decoder.fill([replace(request, guidance_interval=interval)])
        assert decoder.stats().decoded_rows == 9 + 2 * num_guided


def test_too_few_rows_for_the_branches_are_said(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"Guidance takes 3 rows, but the engine decodes 2 at once: .* max_rows=3"):
        make_decoder(tiny_engine, max_rows=2).submit(three(tiny_engine))


def test_branches_that_mean_nothing_are_refused(tiny_engine: Engine) -> None:
    decoder, sequence = make_decoder(tiny_engine), editing(tiny_engine)
    wrong = {
        "weights of branches must add up to 1, not to 3": (Branch(), Branch(TEXT, 2.0)),
        "must add up to 1, not to nan": (Branch(weight=math.nan), Branch(TEXT, 2.0)),
        "first branch is the prompt itself": (Branch(TEXT, 0.5), Branch(weight=0.5)),
        "drops text_, but the conditions of this sequence are: image, text": (
            Branch(weight=2.0),
            Branch(frozenset({"text_"}), -1.0),
        ),
    }
    for words, branches in wrong.items():
        with pytest.raises(ValueError, match=words):
            decoder.submit(Request(sequence, branches=branches))
    with pytest.raises(ValueError, match="guidance_scale or branches, not both"):
        decoder.submit(Request(sequence, guidance_scale=2.0, branches=classifier_free(2.0)))
    with pytest.raises(ValueError, match="weight of a Branch is a number"):
        Branch(weight="2")  # pyright: ignore[reportArgumentType]


def test_an_engine_fills_with_branches(tiny_engine: Engine) -> None:
    request, drawn = three(tiny_engine), tiny_engine.template.draw("a", num_codes=5)
    expected = make_decoder(tiny_engine).fill([request, Request(drawn, request.sampling, 3.0)])
    branches = [by_image_and_text(1.5, 6.0), classifier_free(3.0)]
    filled = tiny_engine.fill([request.sequence, drawn], request.sampling, branches=branches)
    assert [list(sequence.segments[-1].ids) for sequence in filled] == expected
    (alone,) = tiny_engine.fill([request.sequence], request.sampling, branches=branches[0])
    assert alone == filled[0]
