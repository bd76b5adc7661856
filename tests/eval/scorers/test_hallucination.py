"""What is named and not there: CHAIR's shares, by hand and by trying all pairings."""

import itertools
import random

import pytest

from unimm.data.worlds.shapes_language import parse_caption
from unimm.eval.scorers.hallucination import Chair, Mentions, match


def test_every_object_answers_for_one_mention() -> None:
    there = [("small", "red", "circle"), ("large", "blue", "square")]

    def fits(look, item):
        return all(part in (None, own) for part, own in zip(look, item, strict=True))

    def told(caption):
        one = match(parse_caption(caption), there, fits)
        return one.named, one.matched, one.invented, one.missed

    assert told("A small red circle and a large blue square.") == (2, 2, 0, 0)
    assert told("Two red circles.") == (2, 1, 1, 1)
    assert told("A red circle and a green cross.") == (2, 1, 1, 1)
    assert told("A large red circle.") == (1, 0, 1, 2)
    assert told("There is nothing in the picture.") == (0, 0, 0, 2)
    assert told("一个红色圆形和一个蓝色正方形。") == (2, 2, 0, 0)


def test_as_many_are_matched_as_can_be() -> None:
    """Beside a search through all pairings."""
    rng = random.Random(0)
    for _ in range(50):
        named, there = rng.randint(0, 4), rng.randint(0, 4)
        table = {(a, b): rng.random() < 0.4 for a in range(named) for b in range(there)}
        best = max(
            sum(table.get((a, b), False) for a, b in enumerate(order)) for order in itertools.permutations(range(8), named)
        )
        assert match(list(range(named)), list(range(there)), lambda a, b, table=table: table[a, b]) == Mentions(
            named, there, best
        )


def test_the_shares_are_chair_s() -> None:
    """Two captions: of three objects named one is invented; of four that are there two are named."""
    chair = Chair.of([Mentions(2, 3, 1), Mentions(1, 1, 1)])
    assert (chair.chair_i, chair.chair_s, chair.recall) == pytest.approx((1 / 3, 1 / 2, 2 / 4))
    silent = Chair.of([Mentions(0, 2, 0)])
    assert (silent.chair_i, silent.chair_s, silent.recall) == (0, 0, 0)
    with pytest.raises(ValueError, match="Without captions"):
        Chair.of([])
