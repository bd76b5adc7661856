"""Swapped relations: whether a model tells "a red circle left of a blue square" from "a blue square left of a red circle".

An item is a pair of pictures, the same two objects in each other's place, and the text of each: the same words in another
order, as in Winoground (arXiv 2204.03162). It is right where the model finds for both pictures that their own text fits better
than the other's (Winoground's text score; who guesses is right in a quarter of the pairs, and who finds both texts alike in
none). Two towers, which read a text without having seen the picture, are compared with the unified model on the same pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from unimm.data.records import ImageLike
from unimm.data.worlds.scenes import OPPOSITE, Shape, find_relation, make_generator, make_scene, render
from unimm.data.worlds.shapes_language import LANGUAGES, describe, write_relation
from unimm.eval.task import Example, ItemTask, Result, Score, summarize
from unimm.inference.engine import Engine
from unimm.retrieval.rerank import SCORES, Reranker

EMBEDDING = "embedding"
WAYS = (EMBEDDING, *SCORES)
"""How well a picture and a text fit: the inner product of two towers, or a score of the unified model."""

NUMBERS = (("own_1", "other_1"), ("other_2", "own_2"))
"""How an example names its scores: of the first and of the second picture, beside the first and the second text."""


class SwappedPair(NamedTuple):
    """Two pictures (64, 64, 3) uint8 and the text of each, which is not true of the other."""

    key: str
    images: tuple[np.ndarray, np.ndarray]
    texts: tuple[str, str]
    relation: str
    language: str


@dataclass(frozen=True)
class SwappedRelations(ItemTask):
    """Pairs of pictures told apart by their texts, both languages in turn.

    by: how fit is scored, one of WAYS; the engine needs contrastive heads for "embedding". split, seed: of the scenes.

    Other scores: `image_score`, pairs whose texts both find their own picture; `group_score`, pairs of which both hold;
    `single`, pictures whose own text fits better, of which a guesser has half.
    """

    num_items: int = 500
    by: str = "alignment"
    seed: int = 0
    split: str = "test"
    languages: tuple[str, ...] | list[str] = LANGUAGES
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise ValueError(f"Pairs are told apart by one of {', '.join(WAYS)}, not by '{self.by}'.")

    @property
    def name(self) -> str:
        """Of the score, and of files."""
        return "swapped_relations" if self.by == "alignment" else f"swapped_relations_{self.by}"

    @cached_property
    def pairs(self) -> list[SwappedPair]:
        """The items."""
        return list(swapped_pairs(self.num_items, self.seed, self.split, tuple(self.languages)))

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Score these pairs."""
        some = [self.pairs[item] for item in items]
        for pair, scores in zip(some, self._scores(engine, some), strict=True):
            wrong = [f"picture {i + 1}" for i in (0, 1) if not scores[i, i] > scores[i, 1 - i]]
            yield Example(
                key=pair.key,
                prompt=" | ".join(pair.texts),
                expected="each picture its own text",
                answer=" ".join(f"{number:.4g}" for number in scores.flatten()),
                correct=not wrong,
                reason=f"the other text fits {' and '.join(wrong)} as well or better" if wrong else "",
                category=pair.relation,
                language=pair.language,
                image=np.concatenate(pair.images, 1),
                numbers={NUMBERS[i][j]: float(scores[i, j]) for i in (0, 1) for j in (0, 1)},
            )

    def score(self, examples: list[Example]) -> Result:
        """Of all pairs."""
        scores = np.array([[[one.numbers[name] for name in row] for row in NUMBERS] for one in examples])
        own, other = scores[:, (0, 1), (0, 1)], scores[:, (0, 1), (1, 0)]  # (pairs, pictures)
        by_text, by_image = own > other, own > other[:, ::-1]
        shares = {
            "image_score": by_image.all(1),
            "group_score": by_image.all(1) & by_text.all(1),
            "single": by_text.flatten(),
        }
        others = {name: Score.share(float(right.mean()), right.size) for name, right in shares.items()}
        return summarize(self.name, examples, other_scores=others)

    def _scores(self, engine: Engine, pairs: list[SwappedPair]) -> np.ndarray:
        """(pairs, 2 pictures, 2 texts)."""
        if self.by == EMBEDDING:
            images = engine.embed_images([image for pair in pairs for image in pair.images]).reshape(len(pairs), 2, -1)
            texts = engine.embed_texts([text for pair in pairs for text in pair.texts]).reshape(len(pairs), 2, -1)
            return images @ texts.transpose(0, 2, 1)
        each: list[ImageLike] = [image for pair in pairs for image in pair.images for _ in pair.texts]
        texts = [text for pair in pairs for _ in pair.images for text in pair.texts]
        return Reranker(engine, self.by).scores(each, texts).reshape(len(pairs), 2, 2)


def swapped_pairs(
    num_items: int, seed: int = 0, split: str = "test", languages: tuple[str, ...] = LANGUAGES
) -> Iterator[SwappedPair]:
    """So many pairs of scenes of two different objects of one size that clearly lie to each other, and that in each other's
    place, languages in turn."""
    made, index = 0, 0
    while made < num_items:
        scene = make_scene(seed, split, index, (2,), ())
        index += 1
        a, b = scene.objects
        if (relation := find_relation(a, b)) is None:
            continue
        size = "large" if a.size == b.size == "large" else "small"  # the smaller one has room in the other's place
        a, b = replace(a, size=size), replace(b, size=size)
        swapped = replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)
        language = languages[made % len(languages)]
        images = tuple(render(replace(scene, objects=objects)) for objects in ((a, b), swapped))
        key = f"shapes/{split}/swapped/{index - 1}"
        texts = tuple(_write(a, one, b, (seed, split, index), language) for one in (relation, OPPOSITE[relation]))
        yield SwappedPair(key, (images[0], images[1]), (texts[0], texts[1]), relation, language)
        made += 1


def _write(a: Shape, relation: str, b: Shape, item: tuple[int, str, int], language: str) -> str:
    """How a lies to b, in words that are chosen by the item alone; the opposite relation is said from the other's side, so
    that the words are the same in another order."""
    rng = make_generator(*item, "prompts")
    looks = describe(a, "colour"), describe(b, "colour")
    first, second = looks if relation in ("left", "above") else looks[::-1]
    return write_relation(first, relation if relation in ("left", "above") else OPPOSITE[relation], second, language, rng)
