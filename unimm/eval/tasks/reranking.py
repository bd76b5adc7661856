"""Retrieval in two steps: two towers find the first few images for a text, and a unified model that looks at each of these
together with the text orders them again (`unimm.retrieval.rerank`). The score is R@1 after that; what the towers alone reach
stands beside it, on the same items as those of `ShapesRetrieval`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimm.data.records import Record, Text
from unimm.eval.task import Example, Result, Score, collect, summarize
from unimm.eval.tasks.answers import as_array
from unimm.eval.tasks.retrieval import ShapesRetrieval
from unimm.inference.embedding import EmbeddingCalls
from unimm.inference.engine import Engine
from unimm.retrieval.recall import recall_at
from unimm.retrieval.rerank import FIRST, Reranker
from unimm.retrieval.towers import load_towers

KS = (1, 5, 10)


@dataclass(frozen=True)
class RerankedRetrieval:
    """Scenes found by their captions among `num_items`, no two of which show the same objects.

    towers: a model that embeds, folder or hub id; None: the engine's own heads. by: how fit is scored (`rerank.SCORES`).
    first: how many images are looked at for each text. split, seed, language: as `ShapesRetrieval` has them.

    Other scores: `towers_r1`, `_r5`, `_r10` of the towers alone; `reranked_r5`.
    """

    num_items: int = 256
    towers: str | None = None
    by: str = "both"
    first: int = FIRST
    seed: int = 0
    split: str = "test"
    language: str = "en"

    @property
    def name(self) -> str:
        """Of the score, and of files."""
        return "reranked_retrieval" if self.by == "both" else f"reranked_retrieval_{self.by}"

    def run(self, engine: Engine, progress: Callable[[Example], None]) -> Result:
        """Search for all texts. ValueError: there are no towers."""
        items = ShapesRetrieval(self.num_items, self.seed, self.split, self.language).items()
        embedder: EmbeddingCalls = engine if self.towers is None else load_towers(self.towers, engine.device)
        texts = embedder.embed_texts([text.text for _, text in items])
        scores_NN = texts @ embedder.embed_images([record.image for record, _ in items]).T
        ranker, places = Reranker(engine, self.by), list[np.ndarray]()
        examples = collect(self._examples(ranker, items, scores_NN, places), progress)
        targets = np.arange(len(items))
        shares = {f"towers_r{k}": share for k, share in recall_at(scores_NN, targets, KS).items()}
        again_NN = np.stack([-np.argsort(order).astype(np.float64) for order in places])
        shares |= {"reranked_r5": recall_at(again_NN, targets, (5,))[5]}
        others = {name: Score.share(share, len(items)) for name, share in shares.items()}
        return summarize(self.name, examples, other_scores=others)

    def _examples(
        self, ranker: Reranker, items: list[tuple[Record, Text]], scores_NN: np.ndarray, places: list[np.ndarray]
    ) -> Iterator[Example]:
        for number, (record, text) in enumerate(items):
            order = np.argsort(-scores_NN[number], kind="stable")
            few = order[: self.first]
            images: list[Any] = [items[place][0].image for place in few]
            again = ranker.order(images, [text.text] * len(few))
            order = np.concatenate([few[again], order[self.first :]])
            places.append(order)
            best, rank = int(order[0]), int(np.flatnonzero(order == number)[0])
            yield Example(
                key=record.key,
                prompt=text.text,
                expected=text.text,
                answer=items[best][1].text,
                correct=rank == 0,
                reason="" if rank == 0 else f"its own image came {rank + 1}.",
                category=f"{len(record.facts.objects)} objects",
                language=text.language,
                image=as_array(items[best][0]),
            )
