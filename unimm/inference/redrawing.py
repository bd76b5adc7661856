"""Draw, look, draw again: an engine looks at its own drawings and mends those that are not what was asked for.

Every drawing is looked at by the model's own eyes: how probable is it that it shows the prompt (`vqa_score`)? What is probable
enough is done, the rest is drawn anew with other noise. Of all drawings of an image the most probable is taken. So time goes
where it is needed: what is right at once costs one look.

With `paint` it is asked of the rest, one claim of the prompt after the other (`claims`), what of it is there. Where a part is
and a part is not, the places that the model looks at while it answers for the first (its heat map) stay, and all else is
painted anew (in-painting: the codes of these places are given); else, and every second time, all is drawn anew.

As Woodpecker (arXiv 2310.16045) mends what is said, without training.

Cost, of an image: a look a drawing; of each try behind the first the drawing, and where it is to keep a part two questions a
claim and a heat map (two passes) for each claim that holds. Tries of all images go in batches.

Shapes: N codes of a drawing in a square of S x S; H W pixels.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimm.data.grids import Grid
from unimm.data.template import Turn
from unimm.inference.claims import existence_questions, find_claims, language_of
from unimm.inference.decode.request import Request
from unimm.inference.inpainting import Canvas
from unimm.inference.vqa_score import ANSWERS_IN, mean_of_log_odds, probability_of_yes
from unimm.inference.windows_of_images import Window
from unimm.runtime.number_checks import check_probability, check_whole, whole_number
from unimm.sequence import BLANK

STRIDE = 1 << 20
"""Between the noise of one try of an image and of the next: image i of try k is keyed by (seed, i + k * STRIDE)."""


@dataclass(frozen=True)
class Redraw:
    """How drawings are looked at and mended: `redraw=3` is `Redraw(3)`.

    tries: drawings of an image behind the first, at most; 0: none, and no look.
    threshold: what is at least as probable as that is right. Chosen for the demo; a model that is never as sure makes all its
        tries.
    paint: where something of the prompt is there, keep it in every first, third, ... try. Off by default: the demo gains less
        by it, and it takes longer (recipes/interleaved.md).
    keep: of a heat map, from 0 to 1: what is at least as warm belongs to the thing.
    """

    tries: int = 2
    threshold: float = 0.998
    paint: bool = False
    keep: float = 0.5

    def __post_init__(self) -> None:
        check_whole(self, 0, "tries")
        check_probability(self, "threshold", "keep")


@dataclass
class Drawn:
    """A drawing, and how it came about.

    prompt: of it. request: with which it was drawn. codes: (N,) int64. probability: that it shows the prompt, as the model sees
    it. tries: drawings so far; index: of the noise of the best; painted: whether the best is one of which a part was kept.
    """

    prompt: str
    request: Request
    codes: np.ndarray
    image: Image.Image
    probability: float = 0.0
    tries: int = 1
    painted: bool = False
    index: int = -1

    def __post_init__(self) -> None:
        self.index = self.request.sampling.index if self.index < 0 else self.index


def read_redraw(redraw: Any) -> Redraw:
    """A number of tries, or a `Redraw`. ValueError: it is something else."""
    return redraw if isinstance(redraw, Redraw) else Redraw(whole_number("redraw", redraw, 0))


class Redrawing:
    """The drawings of one call.

    engine: with `alignment`, `heat_map`, its decoder and its coder.
    """

    def __init__(self, engine: Any, how: Redraw) -> None:
        self.engine, self.how = engine, how

    def mend(self, drawings: list[Drawn]) -> list[Drawn]:
        """The best of each, as the model sees them."""
        self._look(drawings)
        for number in range(1, self.how.tries + 1):
            failing = [one for one in drawings if one.probability < self.how.threshold]
            if not failing:
                break
            self._try(failing, number)
        return drawings

    def _look(self, drawings: list[Drawn]) -> None:
        scores = self.engine.alignment([one.image for one in drawings], [one.prompt for one in drawings]) if drawings else []
        for one, score in zip(drawings, scores, strict=True):
            one.probability = score

    def _try(self, drawings: list[Drawn], number: int) -> None:
        """One more drawing of each; it takes its place where it is more probable."""
        kept = self._kept(drawings) if self.how.paint and number % 2 else [None] * len(drawings)
        requests = [_again(one, cells, number, self.engine.coder.grid) for one, cells in zip(drawings, kept, strict=True)]
        filled = self.engine.decoder.fill([request for request, _ in requests])
        tried = []
        for one, ids, (request, canvas) in zip(drawings, filled, requests, strict=True):
            codes = np.asarray(ids if canvas is None else [*canvas.first_codes, *ids, *canvas.last_codes])
            tried.append(replace(one, codes=codes, painted=canvas is not None, index=request.sampling.index))
        for one, image in zip(
            tried, self.engine.coder.decode(torch.tensor(np.stack([one.codes for one in tried]))), strict=True
        ):
            one.image = image
        self._look(tried)
        for one, other in zip(drawings, tried, strict=True):
            one.tries += 1
            if other.probability > one.probability:
                one.codes, one.image, one.probability = other.codes, other.image, other.probability
                one.painted, one.index = other.painted, other.index

    def _kept(self, drawings: list[Drawn]) -> list[np.ndarray | None]:
        """(N,) bool of each: the codes that stay, where some do and not nearly all."""
        claims = [find_claims(one.prompt) for one in drawings]
        asked = [(place, claim) for place, own in enumerate(claims) for claim in own if len(own) > 1]
        holds = self._holds([(drawings[place].image, claim) for place, claim in asked])
        there = [pair for pair, is_there in zip(asked, holds, strict=True) if is_there]
        found: list[np.ndarray | None] = [None] * len(drawings)
        if not there:
            return found
        maps = self.engine.heat_map([drawings[place].image for place, _ in there], [claim for _, claim in there])
        for (place, _), heat_HW in zip(there, maps, strict=True):
            cells = _cells(heat_HW, self.engine.coder.grid, self.how.keep)
            own = found[place]
            found[place] = cells if own is None else own | cells
        count = {place: sum(one == place for one, _ in there) for place, _ in there}
        # Where all claims hold, the fault is one of number, place or relation: nothing says which part is right.
        return [
            None if cells is None or count[place] == len(claims[place]) or cells.mean() > 0.75 else cells
            for place, cells in enumerate(found)
        ]

    def _holds(self, claims: list[tuple[Image.Image, str]]) -> list[bool]:
        """Whether each picture shows its claim, by the averaged log-odds of its questions."""
        engine, shares = self.engine, [[] for _ in claims]
        for language, words in ANSWERS_IN.items():
            own = [(place, text) for place, (_, claim) in enumerate(claims) for text in existence_questions(claim)]
            own = [(place, text) for place, text in own if language_of(text) == language]
            turns = [Turn("user", (engine.template.look(claims[place][0]), text)) for place, text in own]
            sequences = [engine.template.chat([turn], 1).opened() for turn in turns]
            answers = probability_of_yes(engine.model, engine.tokenizer, sequences, engine.deterministic, words)
            for (place, _), share in zip(own, answers, strict=True):
                shares[place].append(share)
        return [bool(own) and mean_of_log_odds(own) >= 0.5 for own in shares]


def _again(drawn: Drawn, kept: np.ndarray | None, number: int, grid: Grid) -> tuple[Request, Canvas | None]:
    """The request of one more drawing, with noise of its own; the kept codes are given."""
    request = drawn.request
    sampling = replace(request.sampling, index=request.sampling.index + number * STRIDE)
    request = replace(request, sampling=sampling)
    if kept is None:
        return request, None
    pixels = np.asarray(drawn.image)
    known, whole = np.where(kept, drawn.codes, BLANK), Window(0, 0, drawn.image.width)
    canvas = Canvas(known, drawn.codes, pixels, whole, np.ones(pixels.shape[:2], dtype=bool), 0, grid)
    interval = canvas.interval(*request.guidance_interval)
    sequence = canvas.sequence(request.sequence)
    return replace(request, sequence=sequence, guidance_interval=interval, first_place=canvas.blank.start), canvas


def _cells(heat_HW: np.ndarray, grid: Grid, keep: float) -> np.ndarray:
    """(N,) bool: the codes with a warm pixel."""
    height, width = heat_HW.shape
    rows, columns = (np.arange(length) * count // length for length, count in zip((height, width), grid, strict=True))
    warm = np.zeros(grid, dtype=bool)
    np.logical_or.at(warm, (rows[:, None], columns[None]), heat_HW >= keep)
    return warm.flatten()
