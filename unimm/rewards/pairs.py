"""Pairs without people: several drawings or answers of one model to a prompt, of which a judge takes the best and the worst.

For drawings, pictures of near misses of the prompt may stand among them (`near_misses`): they are made well, and of something
else, so that what is learned is to do what the prompt says. From such a pair also the other direction is learned: asked whether
its picture shows the prompt, and whether it shows the near miss, a model is to say yes once and no once. (Not of a near miss
that only leaves a word out: that is still true of the picture.)

A drawing or answer with a pair of colour and form that the shapes world holds out is left out whatever the judge, where prompts
are those of that world.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.records import SHOWS
from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, make_generator
from unimm.eval.tasks.shapes import at_side
from unimm.inference.engine import Engine
from unimm.rewards.guarded import GuardedReward
from unimm.rewards.near_misses import asks_for_held_out, near_misses, says_less
from unimm.rewards.pair_prompts import PairPrompt
from unimm.rewards.response import Response
from unimm.runtime.number_checks import check_number, check_whole

SEEDS = 1_000_003

SEEDS_OF_NEAR_MISSES = 16
"""Of the seeds of a prompt the last so many: there are three kinds of near misses, and at most five of each."""


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    num_samples: drawings or answers a prompt. num_near_misses: pictures of near misses beside them, by each of three edits.
    margin: how much better the best must be judged than the worst. min_best: and at least how good the best.
    pairs_a_prompt: so many at most: the best and the worst, then the second best and second worst, and so on.
    both_directions: also questions about the pictures, where the worse one is a near miss.
    temperature, guidance_scale: of sampling; None: the model's own for guidance.
    """

    num_samples: int = 8
    num_near_misses: int = 0
    margin: float = 0.2
    min_best: float = 0.5
    pairs_a_prompt: int = 1
    both_directions: bool = False
    temperature: float = 1.0
    guidance_scale: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self, 1, "num_samples", "pairs_a_prompt")
        check_whole(self, 0, "num_near_misses", "seed")
        check_number(self, "margin", "temperature", above=0)
        if 3 * self.num_near_misses > SEEDS_OF_NEAR_MISSES:
            raise ValueError(f"num_near_misses is at most {SEEDS_OF_NEAR_MISSES // 3}, not {self.num_near_misses}.")
        if self.num_samples + self.num_near_misses < 2:
            raise ValueError("Of one drawing or answer a prompt there is no best and worst: take --num-samples 2 or more.")

    @property
    def num_seeds(self) -> int:
        """Of a prompt: no two of its drawings, and none of two prompts, have the same noise."""
        return max(64, self.num_samples + SEEDS_OF_NEAR_MISSES)


@dataclass(frozen=True)
class Candidate:
    """A drawing or an answer. of: the near miss that it was drawn of; None: it was made for the prompt itself."""

    score: float | None
    codes: list[int] | None = None
    image: np.ndarray | None = field(default=None, compare=False)
    answer: str = ""
    of: str | None = None


@dataclass(frozen=True)
class Judged:
    """What came of a prompt: its candidates, which are paired (best, worst), and why there is none."""

    prompt: PairPrompt
    candidates: tuple[Candidate, ...]
    pairs: tuple[tuple[int, int], ...]
    reason: str = ""


class PairMaker:
    """engine: what draws and answers. judge: scores the responses to one prompt."""

    def __init__(self, engine: Engine, judge: GuardedReward, settings: PairSettings) -> None:
        self.engine, self.judge, self.settings = engine, judge, settings

    def __call__(self, prompts: list[PairPrompt], first: int) -> list[Judged]:
        """What comes of some prompts, all to draw or all to describe; the noise of each is keyed by its number.

        first: the number of the first of them. Raises ValueError as the engine and the judge do.
        """
        made = self._answers(prompts, first) if prompts[0].image is not None else self._drawings(prompts, first)
        return [self._judged(prompt, candidates) for prompt, candidates in zip(prompts, made, strict=True)]

    def _drawings(self, prompts: list[PairPrompt], first: int) -> list[list[Candidate]]:
        settings = self.settings
        jobs: list[tuple[int, str, str | None, int]] = []  # place, what is drawn, the near miss, seed
        for place, one in enumerate(prompts):
            number = settings.seed * SEEDS + first + place
            begin, end = number * settings.num_seeds, (number + 1) * settings.num_seeds
            jobs += [(place, one.prompt, None, begin + n) for n in range(settings.num_samples)]
            rng = make_generator(number, "train", 0, "prompts")
            edits = near_misses(one.prompt, one.language, rng, settings.num_near_misses) if settings.num_near_misses else []
            jobs += [(place, edited, edited, end - SEEDS_OF_NEAR_MISSES + n) for n, edited in enumerate(edits)]
        words: dict[str, Any] = {"temperature": settings.temperature, "guidance_scale": settings.guidance_scale}
        codes_nK = self.engine.generate_codes([one[1] for one in jobs], 1, [one[3] for one in jobs], **words)[:, 0]
        images = self.engine.decode_codes(codes_nK)
        made: list[list[Candidate]] = [[] for _ in prompts]
        for (place, _, of, _), codes, image in zip(jobs, codes_nK.tolist(), images, strict=True):
            made[place].append(Candidate(None, codes, np.asarray(image), of=of))
        return made

    def _answers(self, prompts: list[PairPrompt], first: int) -> list[list[Candidate]]:
        settings = self.settings
        made: list[list[Candidate]] = [[] for _ in prompts]
        for n in range(settings.num_samples):
            seed = (settings.seed * SEEDS + first) * settings.num_seeds + n
            said = self.engine.answer(
                [one.image for one in prompts], [one.prompt for one in prompts], temperature=settings.temperature, seed=seed
            )
            for candidates, answer in zip(made, said, strict=True):
                candidates.append(Candidate(None, answer=answer.strip()))
        return made

    def _judged(self, prompt: PairPrompt, candidates: list[Candidate]) -> Judged:
        responses = [
            Response(prompt.prompt, one.image, None if one.codes else one.answer, prompt.image, prompt.facts, prompt.key)
            for one in candidates
        ]
        scores = self.judge(responses)
        if scores is None:
            return Judged(prompt, tuple(candidates), (), "the judge failed")
        scored = [
            Candidate(None if self._shows_held_out(prompt, one) else score, one.codes, one.image, one.answer, one.of)
            for one, score in zip(candidates, scores, strict=True)
        ]
        pairs, reason = choose_pairs(scored, self.settings)
        return Judged(prompt, tuple(scored), tuple(pairs), reason)

    def _shows_held_out(self, prompt: PairPrompt, candidate: Candidate) -> bool:
        if prompt.facts is None:
            return False
        if candidate.image is None:
            return asks_for_held_out(candidate.answer)
        return any((one.colour, one.form) in HELD_OUT_PAIRS for one in read_objects(at_side(candidate.image)))


def choose_pairs(candidates: list[Candidate], settings: PairSettings) -> tuple[list[tuple[int, int]], str]:
    """The places of best and worst of candidates, a pair after another, each candidate once; and why there is none.

    The best was made for the prompt itself. Of equally bad ones those come first that were, too.
    """
    known = [(one.score, place) for place, one in enumerate(candidates) if one.score is not None]
    best = [place for _, place in sorted(known, key=lambda one: (-one[0], one[1])) if candidates[place].of is None]
    worst = [place for _, place in sorted(known, key=lambda one: (one[0], candidates[one[1]].of is not None, one[1]))]
    if len(known) < 2 or not best:
        return [], "too few could be judged"
    score = {place: value for value, place in known}
    if score[best[0]] < settings.min_best:
        return [], "none is good enough"
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for one, other in zip(best, worst, strict=False):
        alike = candidates[one].codes == candidates[other].codes and candidates[one].answer == candidates[other].answer
        apart = score[one] - score[other] >= settings.margin and score[one] >= settings.min_best
        if len(pairs) == settings.pairs_a_prompt or alike or not apart or {one, other} & used:
            break
        used |= {one, other}
        pairs.append((one, other))
    return pairs, "" if pairs else "all are alike"


def entries(judged: Judged, name: str, image_tokenizer: str, both_directions: bool = False) -> list[dict[str, Any]]:
    """The pairs of a prompt as lines for `PreferenceJson`. name: of its pictures, `NAME-PLACE.png` below `pictures`."""
    prompt, lines = judged.prompt, []
    about = {"key": prompt.key, "language": prompt.language}
    for best, worst in judged.pairs:
        one, other = judged.candidates[best], judged.candidates[worst]
        scores = {"chosen_score": one.score, "rejected_score": other.score}
        if one.codes is None:
            image = f"pictures/{name}.png"
            lines.append({"prompt": prompt.prompt, "image": image, "chosen": one.answer, "rejected": other.answer})
            lines[-1] |= {**scores, **about}
            continue
        chosen, rejected = (f"pictures/{name}-{place:02}.png" for place in (best, worst))
        codes = {"chosen_codes": one.codes, "rejected_codes": other.codes, "image_tokenizer": image_tokenizer}
        lines.append({"prompt": prompt.prompt, "chosen_image": chosen, "rejected_image": rejected, **codes, **scores, **about})
        if other.of:
            lines[-1]["near_miss"] = other.of
        if both_directions and other.of and not says_less(other.of, prompt.prompt, prompt.language):
            for asked, yes, no in ((prompt.prompt, "yes", "no"), (other.of, "no", "yes")):
                question = {"prompt": SHOWS.format(asked), "image": chosen, "chosen": yes, "rejected": no}
                lines.append({**question, **about})
    return lines


def pictures(judged: Judged, name: str) -> dict[str, Image.Image]:
    """The pictures that `entries` names, by name below `pictures`."""
    found: dict[str, Image.Image] = {}
    for places in judged.pairs:
        for place in places:
            drawn = judged.candidates[place].image
            if drawn is not None:
                found[f"{name}-{place:02}.png"] = Image.fromarray(drawn)
    return found
