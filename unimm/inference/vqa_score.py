"""Alignment: how probable a model finds that an image shows what a prompt says, in one look and without writing a word.

VQAScore (Lin et al. 2024, arXiv 2404.01291): the probability of "yes" to a question about the prompt, here against "no". A
model that draws can thus choose among its own drawings.
"""

import math
from itertools import takewhile
from typing import Any, TypeVar

import torch
from PIL import Image

from unimm.batch import collate
from unimm.data.records import SHOWS, ImageLike
from unimm.data.template import Template, Turn
from unimm.data.text import TextTokenizer
from unimm.inference.input_validation import check_text
from unimm.models.attention import mask_of
from unimm.models.unified import UnifiedModel
from unimm.runtime.number_checks import MOST_DRAFTS, whole_number
from unimm.sequence import Segment, Sequence

ANSWERS = ((" yes", " no"), (" Yes", " No"))
"""As answers begin; a pair that a tokenizer begins with one token is left to the other."""

ANSWERS_IN = {"en": ANSWERS, "zh": ((" 是", " 否"),)}
"""The same by the language of the question."""

SEQUENCES_A_PASS = 32

_CERTAIN = 1e-6

T = TypeVar("T")


def ask_whether_shown(template: Template, image: ImageLike, prompt: str) -> Sequence:
    """The question whether an image shows what a prompt says, open for one token of the answer.

    Raises:
        ValueError: the prompt is empty or no text.
    """
    check_text(prompt, "prompt")
    return template.chat([Turn("user", (template.look(image), SHOWS.format(prompt)))], 1).opened()


def check_lengths(model: UnifiedModel, sequences: list[Sequence]) -> None:
    """ValueError: a question of these takes more positions than the model was made for."""
    longest = max((sequence.length for sequence in sequences), default=0)
    if longest > model.config.max_positions:
        raise ValueError(
            f"To ask whether an image shows this prompt takes {longest} positions, and the model was made for "
            f"{model.config.max_positions}: shorten the prompt."
        )


def check_best_of(best_of: Any, model: UnifiedModel, template: Template, prompts: list[str]) -> int:
    """Before the work of drawing: whether the best of `best_of` drawings can be chosen. Returns it as an int.

    Raises:
        ValueError: it is no number from 1 on, or a prompt is empty, or too long to be asked about.
    """
    best_of = whole_number("best_of", best_of, 1, MOST_DRAFTS)
    if best_of > 1:
        blank = Image.new("RGB", (1, 1))
        check_lengths(model, [ask_whether_shown(template, blank, prompt) for prompt in prompts])
    return best_of


@torch.inference_mode()
def probability_of_yes(
    model: UnifiedModel,
    tokenizer: TextTokenizer,
    sequences: list[Sequence],
    alone: bool = False,
    answers: tuple[tuple[str, str], ...] = ANSWERS,
) -> list[float]:
    """What remains for "yes", from 0 to 1, where each open sequence has to go on with "yes" or "no".

    alone: one at a time, for batch invariance. answers: pairs of yes and no, as answers begin.

    Raises:
        ValueError: a sequence is longer than the model was made for.
    """
    check_lengths(model, sequences)
    pairs = [tuple(tokenizer.encode(word) for word in pair) for pair in answers]
    apart = [pair for pair in pairs if pair[0][0] != pair[1][0]]
    common: list[int] = []
    if not apart:  # a vocabulary that writes letter by letter: a space comes before both
        alike = takewhile(lambda ids: ids[0] == ids[1], zip(*pairs[0], strict=False))
        common = [ids[0] for ids in alike]
        apart = [tuple(word[len(common) :] for word in pairs[0])]
    yes, no = ([*dict.fromkeys(word[0] for word in words)] for words in zip(*apart, strict=True))
    sequences = [Sequence((*one.segments[:-1], Segment.text(common), one.segments[-1])) for one in sequences]
    device = next(model.parameters()).device
    found: list[float] = []
    at_once = 1 if alone else SEQUENCES_A_PASS
    for start in range(0, len(sequences), at_once):
        batch = collate([[sequence] for sequence in sequences[start : start + at_once]]).to(device)
        mask = mask_of(model.trunk.config._attn_implementation, batch)
        hidden_BTD = model.hidden(model.embed(batch), mask, batch.positions)
        last_B = (batch.documents > 0).sum(1) - 1
        logits_BV = model.text.logits(hidden_BTD[torch.arange(len(last_B), device=device), last_B]).float()
        found += (logits_BV[:, yes].logsumexp(1) - logits_BV[:, no].logsumexp(1)).sigmoid().tolist()
    return found


def mean_of_log_odds(probabilities: list[float]) -> float:
    """The probability whose log-odds are the mean of those of some; 0 and 1 count as 1e-6 from there."""
    shares = [min(max(one, _CERTAIN), 1 - _CERTAIN) for one in probabilities]
    return 1 / (1 + math.exp(-sum(math.log(one / (1 - one)) for one in shares) / len(shares)))


def choose_best(images: list[T], scores: list[float], best_of: int) -> list[T]:
    """Of every `best_of` images, in their order, the one with the highest score; the first of several."""
    groups = [range(start, start + best_of) for start in range(0, len(images), best_of)]
    return [images[max(group, key=lambda index: scores[index])] for group in groups]
