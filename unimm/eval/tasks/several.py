"""Tasks about several images: comparisons of two or three, and few-shot learning of words that no training binds.

    several_compare                which has more, in which is it, are they the same: two pictures, or pictures=3
    several_differs                what differs: one attribute of one object, an object more, less or elsewhere, or nothing
    few_shot                       two made-up words, learned from 0, 1, 2, 4 and 8 examples in the prompt; examples=8: so many

Answers are compared with the facts of the worlds; whoever guesses says one of two words right half of the time, whatever the
number of examples, so what examples bring is the difference to none, over the same queries.
"""

from collections.abc import Iterator
from statistics import fmean

from unimm.data.worlds.comparisons import ComparisonsWorld
from unimm.data.worlds.comparisons_scenes import SINGLE, SUBJECTS
from unimm.data.worlds.few_shot import CONCEPTS, FewShotWorld
from unimm.eval.score import Score
from unimm.eval.task import Example, ItemTask, Result, summarize
from unimm.eval.tasks.answers import Answers, is_same_answer, side_by_side
from unimm.inference.engine import Engine

NUM_EXAMPLES = (0, 1, 2, 4, 8)

DIFFERENCE = "difference"
"""The unit of a difference of two shares."""


class SeveralCompare(Answers):
    """Questions that two pictures answer together, or three: more, fewer, which, the same, of three also the odd one.

    split: "test", or "validation".
    """

    def __init__(self, num_items: int = 500, seed: int = 0, split: str = "test", pictures: int = 2) -> None:
        name = "several_compare" if pictures == 2 else f"several_compare_{pictures}"
        subjects = tuple(subject for subject in SUBJECTS.get(pictures, ()) if subject not in ("differs", SINGLE))
        world = ComparisonsWorld(split, num_items, seed, pictures, subjects or None, num_questions=1)
        super().__init__(_named(name, split), world, num_items, batch_size=64)


class SeveralDiffers(Answers):
    """What differs between two pictures, said in words; details by the kind of the change, each as often as the others."""

    def __init__(self, num_items: int = 420, seed: int = 0, split: str = "test") -> None:
        world = ComparisonsWorld(split, num_items, seed, 2, ("differs",))
        super().__init__(_named("several_differs", split), world, num_items, batch_size=64, max_new_tokens=32)


class FewShotWords(ItemTask):
    """Queries about two made-up words, each asked with every number of examples; details by that number.

    num_items: different queries. examples: a number, or a list of them [default: 0, 1, 2, 4, 8]. concepts: what words mean.
    """

    batch_size = 40

    def __init__(
        self,
        num_items: int = 200,
        seed: int = 0,
        split: str = "test",
        examples: int | list[int] | None = None,
        concepts: list[str] | tuple[str, ...] = CONCEPTS,
    ) -> None:
        self.counts = _read_counts(examples)
        self.name = _named("few_shot" if examples is None else f"few_shot_{'_'.join(map(str, self.counts))}", split)
        self.num_queries, self.num_items = num_items, num_items * len(self.counts)
        self.world = FewShotWorld(split, num_items, seed, max(self.counts), concepts)

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """The examples of these items: item i is query i // n with the i % n-th number of examples."""
        asked = [(self.world[item // len(self.counts)], self.counts[item % len(self.counts)]) for item in items]
        shown = [[image.image for image in record.images] for record, _ in asked]
        queries = [record.questions[-1] for record, _ in asked]
        given = [
            [(image, one.answer) for image, one in zip(images[:count], record.questions, strict=False)]
            for (record, count), images in zip(asked, shown, strict=True)
        ]
        answers = engine.answer(
            [images[-1] for images in shown], [query.text for query in queries], max_new_tokens=16, examples=given
        )
        for (record, count), images, query, answer in zip(asked, shown, queries, answers, strict=True):
            correct = is_same_answer(answer, query.answer)
            others = [word for word in record.facts.words if word != query.answer]
            yield Example(
                key=f"{record.key}/{count}",
                prompt=query.text,
                expected=query.answer,
                answer=answer,
                correct=correct,
                reason="" if correct else "the other word" if is_same_answer(answer, others[0]) else "neither word",
                category=name_count(count),
                language=query.language,
                image=side_by_side([*images[:count], images[-1]]),
                numbers={"examples": count, "concept": CONCEPTS.index(query.category)},
            )

    def score(self, examples: list[Example]) -> Result:
        """The share of right answers; by the number of examples; what most examples bring; and these by what words mean."""
        least, most = min(self.counts), max(self.counts)
        others: dict[str, Score] = {}
        for count in self.counts:  # details have them, too; these stand in the table of the shell
            if own := [one.mark for one in examples if one.numbers["examples"] == count]:
                others[name_count(count)] = Score.share(fmean(own), len(own))
        right = {(one.key.rpartition("/")[0], one.numbers["examples"]): one.mark for one in examples}
        queries = [key for key, count in right if count == most and (key, least) in right]
        if least < most and queries:
            gains = [right[key, most] - right[key, least] for key in queries]
            others[f"{most} less {least} examples"] = Score.mean(gains, DIFFERENCE)
        for number, concept in enumerate(CONCEPTS):
            own = [one.mark for one in examples if one.numbers == {"examples": most, "concept": number}]
            if own:
                others[f"{concept}, {most} examples"] = Score.share(fmean(own), len(own))
        return summarize(self.name, examples, {"chance": 0.5}, other_scores=others)


def name_count(count: int) -> str:
    """ "8 examples"."""
    return "1 example" if count == 1 else f"{count} examples"


def _named(name: str, split: str) -> str:
    return name if split == "test" else f"{name}_{split}"


def _read_counts(examples: int | list[int] | None) -> tuple[int, ...]:
    counts = NUM_EXAMPLES if examples is None else tuple(examples) if isinstance(examples, list) else (examples,)
    if not counts or not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        raise ValueError(f"examples of few_shot is a number such as 8, or a list such as [0,8], not {examples!r}.")
    return tuple(sorted(set(counts)))
