"""Coupled decoding beside one code at a time: steps, codes a step, acceptance, time, and whether the codes are the same.

Both draw the same images in one process, in turns, so that whatever else the machine does meets both; a ratio is the median of
pairs. Where codes differ in float32, two codes must be as good as equally likely there: `gap` says how near.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from unimm.batch import collate
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling, gumbel, keep_at_least, keep_likely, stream_key
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine

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
    """
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
                "codes_a_step": drawn / steps,
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
    """How far the scores of two drawings' first different codes lie apart, noise included; each prompt in one forward."""
    place = next(place for place, (one, other) in enumerate(zip(expected, got, strict=True)) if one != other)
    sequence = request.sequence.fill(expected[:place]) if place else request.sequence.given
    branches = request.guidance if place in request.guided else request.guidance[:1]
    logits_V = torch.zeros(1)
    for branch in branches:
        batch = collate([[sequence.unconditioned(engine.tokenizer.special.pad, branch.drop)]]).to(engine.device)
        hidden_BTD = engine.model.hidden(engine.model.embed(batch), batch.attention_mask(), batch.positions)
        weight = branch.weight if len(branches) > 1 else 1.0
        logits_V = logits_V + weight * engine.model.codes.logits(hidden_BTD[0, -1]).float().cpu()
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
