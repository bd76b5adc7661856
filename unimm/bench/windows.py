"""Coupled decoding beside one code at a time: steps, codes a step, acceptance, time, and whether the codes are the same.

Both draw the same images in one process, in turns, so that whatever else the machine does meets both; a ratio is the median of
pairs. Where codes differ in float32, two codes must be as good as equally likely there: `gap` says how near.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from unimm.batch import collate
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.kv_cache import RowCache
from unimm.inference.decode.prefill import Prefill
from unimm.inference.decode.ragged_cache import RaggedCache
from unimm.inference.decode.request import Job, Request, Row
from unimm.inference.decode.running_batch import may_choose_windows
from unimm.inference.decode.sampling import Sampling, gumbel, keep_at_least, keep_likely, stream_key
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.sequence import Kind

PROMPTS = (
    "three small green triangles left of a large blue square",
    "a red circle",
    "two yellow crosses above a purple triangle",
    "a small white square",
    "four orange circles",
    "a large green cross right of a small red triangle",
    "a blue triangle below a yellow square",
    "five small blue squares",
)
NEAR = 1e-5
"""Scores that lie so near may change places with the order in which a processor adds numbers up."""


def measure_windows(
    engine: Engine,
    num_images: int,
    windows: list[int | None],
    settings: tuple[float, float, int],
    repeats: int,
    report: Callable[[int | None], None] = lambda window: None,
) -> list[dict[str, Any]]:
    """Draw batches of images with each window and without, in turns.

    Args:
        windows: None is the engine's own choice.
        settings: guidance scale, temperature and top-k.
        report: called with the window that is next.

    Returns:
        For each window `num_images`, `window`, `steps` (of a drawing until all of its codes are there, its prompt's counted),
        `codes_a_step`, `acceptance`, `plain_seconds` and `seconds` of a batch, `ratio` (how many times as fast, with `least`
        and `most` of the pairs), `images`, `different` (images whose codes differ) and `near` (those of them that differ first
        where two scores lie within 1e-5).

    Raises:
        ValueError: the engine would not choose a window here, so its choice cannot be timed.
    """
    if None in windows and not may_choose_windows(engine.model, engine.deterministic):
        raise ValueError("A window is chosen in float32 on a CPU alone, and elsewhere it is 1: take float32, or name windows.")
    plain, measured = _decoder(engine, 1), []
    plain.fill(_requests(engine, num_images, settings, 0))
    for window in windows:
        report(window)
        coupled = _decoder(engine, window)
        coupled.fill(_requests(engine, num_images, settings, 0))
        before, pairs, different, near = coupled.stats(), [], 0, 0
        for repeat in range(1, repeats + 1):
            asked = _requests(engine, num_images, settings, repeat)
            order = (plain, coupled) if repeat % 2 else (coupled, plain)
            timed = {decoder: _timed(decoder, asked) for decoder in order}
            pairs.append((timed[plain][0], timed[coupled][0]))
            for request, expected, got in zip(asked, timed[plain][1], timed[coupled][1], strict=True):
                different += expected != got
                near += expected != got and gap(engine, request, expected, got) <= NEAR
        stats = coupled.stats()
        steps, drawn = stats.drawing_steps - before.drawing_steps, stats.drawn_codes - before.drawn_codes
        guessed, right = stats.guessed_codes - before.guessed_codes, stats.right_guesses - before.right_guesses
        ratios = [one / other for one, other in pairs]
        measured.append(
            {
                "num_images": num_images,
                "window": window,
                "steps": 1 + steps / (num_images * repeats),
                "codes_a_step": drawn / steps if steps else 0.0,  # images of one code have no step behind their prompt
                "acceptance": right / guessed if guessed else 0.0,
                "plain_seconds": statistics.median(one for one, _ in pairs),
                "seconds": statistics.median(other for _, other in pairs),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
                "images": num_images * repeats,
                "different": different,
                "near": near,
            }
        )
    return measured


@torch.inference_mode()
def gap(engine: Engine, request: Request, expected: list[int], got: list[int]) -> float:
    """How far the scores of two drawings' first different codes lie apart, noise included: each prompt in one forward, or with
    weights of fewer bits code by code, as they are decoded."""
    place = next(place for place, (one, other) in enumerate(zip(expected, got, strict=True)) if one != other)
    branches = request.guidance if place in request.guided else request.guidance[:1]
    all_logits = _logits if engine.weights is None else _quantized_logits
    logits_V = torch.zeros(1)
    for branch, own_V in zip(branches, all_logits(engine, request, expected[:place], len(branches)), strict=True):
        logits_V = logits_V + (branch.weight if len(branches) > 1 else 1.0) * own_V.float().cpu()
    sampling, scores_1V = request.sampling, logits_V[None]
    if sampling.temperature:
        scores_1V = scores_1V / sampling.temperature
        if sampling.top_k or sampling.top_p < 1.0:
            scores_1V = keep_likely(scores_1V, torch.tensor([sampling.top_k]), torch.tensor([sampling.top_p]))
        if sampling.min_p:
            scores_1V = keep_at_least(scores_1V, torch.tensor([sampling.min_p]))
        key = torch.tensor([stream_key(sampling.seed, sampling.index)])
        scores_1V = scores_1V + gumbel(key, torch.tensor([request.first_place + place]), scores_1V.shape[-1])
    return abs(float(scores_1V[0, expected[place]] - scores_1V[0, got[place]]))


def _logits(engine: Engine, request: Request, codes: list[int], num_branches: int) -> Iterator[torch.Tensor]:
    """(V,) of each branch, behind these codes."""
    sequence = request.sequence.fill(codes) if codes else request.sequence.given
    for branch in request.guidance[:num_branches]:
        batch = collate([[sequence.unconditioned(engine.tokenizer.special.pad, branch.drop)]]).to(engine.device)
        hidden_BTD = engine.model.hidden(engine.model.embed(batch), batch.attention_mask(), batch.positions)
        yield engine.model.codes.logits(hidden_BTD[0, -1])


def _quantized_logits(engine: Engine, request: Request, codes: list[int], num_branches: int) -> Iterator[torch.Tensor]:
    """The same of a decoder: the model's own weights read what a row begins with, and those of fewer bits what follows."""
    fast, begin = DecodeModel(engine.model, engine.weights), request.guided.start
    job = Job(0, request, filled=codes[:begin])
    rows = [Row(job, request.sequence.given, 0), *job.guiding_rows(engine.tokenizer.special.pad)]
    for row in rows[:num_branches]:
        has_own_length = fast.cpu is not None and not engine.deterministic  # as the decoder has it
        cache = RaggedCache(engine.model) if has_own_length else RowCache(len(engine.model.trunk.layers))
        hidden_1D = Prefill(engine.model, cache, [row], 0, row.num_slots).finish()
        num_read = max(begin - 1, 0) if row.branch else 0
        for position, code in enumerate(codes[num_read:], row.length):
            embedding_1D = fast.embed(Kind.CODES, torch.tensor([code], device=engine.device))
            hidden_1D = fast.advance(embedding_1D, torch.tensor([position], device=engine.device), position + 1, cache)
        yield fast.sample(Kind.CODES, hidden_1D, lambda logits_1V: logits_1V)[0]


def _decoder(engine: Engine, window: int | None) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, Limits(window=window), engine.weights, engine.deterministic)


def _requests(engine: Engine, num_images: int, settings: tuple[float, float, int], seed: int) -> list[Request]:
    guidance_scale, temperature, top_k = settings
    num_codes, found = engine.image_tokenizer.num_codes, []
    for index in range(num_images):
        prompt = engine.template.draw(PROMPTS[(seed + index) % len(PROMPTS)], num_codes=num_codes)
        found.append(Request(prompt, Sampling(temperature, top_k, seed=seed, index=index), guidance_scale))
    return found


def _timed(decoder: Decoder, asked: list[Request]) -> tuple[float, list[list[int]]]:
    started = time.perf_counter()
    filled = decoder.fill(asked)
    return time.perf_counter() - started, filled
