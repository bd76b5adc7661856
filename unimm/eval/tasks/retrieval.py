"""Retrieval: find an image by its text among others, and a text by its image, with a model's contrastive heads.

The score is R@1 from text to image: the share of texts whose own image lies closest. Beside it stand R@5 and R@10, and all
three from image to text. No two items say the same, so one image alone is right; one that lies exactly as close counts against
it. The task is in no suite, since few models have such heads:
`unimm eval --task unimm.eval:ShapesRetrieval`.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch

from unimm.data.records import Dataset, Record, Text
from unimm.data.worlds.shapes import ShapesWorld
from unimm.data.worlds.shapes_language import describe
from unimm.eval.task import Example, Result, Score, collect, summarize
from unimm.eval.tasks.answers import as_array
from unimm.eval.tasks.shapes import describe_record
from unimm.inference.engine import Engine

KS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """The first `num_items` records of a data set whose texts differ, all against all.

    language: of the captions; the first one of each record is asked for.
    meaning: what a record's caption says: of records that say the same the first one is taken.
    """

    name: str
    dataset: Dataset
    num_items: int
    language: str = "en"
    meaning: Callable[[Record, Text], Hashable] = lambda record, text: text.text.casefold()

    def run(self, engine: Engine, progress: Callable[[Example], None]) -> Result:
        """Rank all images for each text, and all texts for each image.

        Raises:
            ValueError: the model has no contrastive heads, or there are not as many records whose texts differ.
        """
        items = self.items()
        images_ND, texts_ND = self._embed(engine, items)
        scores_NN = texts_ND @ images_ND.T
        of_texts, of_images = ranks(scores_NN), ranks(scores_NN.T)
        examples = collect(self._examples(items, scores_NN, of_texts), progress)
        others = {f"text_to_image_r{k}": recall(of_texts, k) for k in KS[1:]}
        others |= {f"image_to_text_r{k}": recall(of_images, k) for k in KS}
        scores = {name: Score.share(share, len(items)) for name, share in others.items()}
        return summarize(self.name, examples, other_scores=scores)

    def items(self) -> list[tuple[Record, Text]]:
        """Records with the text that is asked for. ValueError: there are not as many whose texts differ."""
        found: dict[Hashable, tuple[Record, Text]] = {}
        for index in range(len(self.dataset)):
            record = self.dataset[index]
            text = next((one for one in record.captions if one.language == self.language), None)
            if text is not None and record.image is not None:
                found.setdefault(self.meaning(record, text), (record, text))
            if len(found) == self.num_items:
                return list(found.values())
        raise ValueError(
            f"{self.name} needs {self.num_items} images whose captions in '{self.language}' differ, and there are "
            f"{len(found)}: ask for fewer (num_items)."
        )

    def _embed(self, engine: Engine, items: list[tuple[Record, Text]]) -> tuple[torch.Tensor, torch.Tensor]:
        images = engine.embed_images([record.image for record, _ in items])
        texts = engine.embed_texts([text.text for _, text in items])
        return torch.from_numpy(images), torch.from_numpy(texts)

    def _examples(self, items: list[tuple[Record, Text]], scores_NN: torch.Tensor, ranks_N: torch.Tensor) -> Iterator[Example]:
        closest_N = scores_NN.argmax(1).tolist()
        for (record, text), closest, rank in zip(items, closest_N, ranks_N.tolist(), strict=True):
            shown, told = items[closest]
            yield Example(
                key=record.key,
                prompt=text.text,
                expected=text.text,
                answer=told.text,
                correct=rank == 0,
                reason="" if rank == 0 else f"its own image came {rank + 1}.",
                category=self.categorize(record),
                language=text.language,
                image=as_array(shown),
            )

    def categorize(self, record: Record) -> str:
        """What kind of item it is; "" where there are no kinds."""
        return ""


class ShapesRetrieval(Retrieval):
    """Unseen scenes, no two of which have the same objects by size, colour and form. Details: by the number of objects.

    split: "test", or "held_out" for scenes with pairs of colour and form that training never shows.
    """

    def __init__(self, num_items: int = 256, seed: int = 0, split: str = "test", language: str = "en") -> None:
        name = "shapes_retrieval" if split == "test" else f"shapes_retrieval_{split}"
        super().__init__(name, ShapesWorld(split, num_records=8 * num_items, seed=seed), num_items, language, said_objects)

    def categorize(self, record: Record) -> str:
        """By the number of objects."""
        return describe_record(record)[0]


def said_objects(record: Record, text: Text) -> Hashable:
    """What a full caption of a scene says of its objects: how many look how."""
    return frozenset(Counter(describe(item) for item in record.facts.objects).items())


def ranks(scores_NM: torch.Tensor) -> torch.Tensor:
    """(N,) long: how many of the others score at least as high as a row's own partner, which stands in the same column."""
    own_N1 = scores_NM.diagonal()[:, None]
    return (scores_NM >= own_N1).sum(1) - 1


def recall(ranks_N: torch.Tensor, k: int) -> float:
    """The share whose partner is among the first k."""
    return float((ranks_N < k).float().mean())
