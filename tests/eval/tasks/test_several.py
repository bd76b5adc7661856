"""Tasks about several images: right answers get everything, guesses what chance gives; few-shot goes by number of examples."""

from typing import Any

import numpy as np
import pytest

from unimm.data.worlds.comparisons_scenes import EDITS, NOTHING
from unimm.eval import load_task
from unimm.eval.tasks.answers import side_by_side
from unimm.eval.tasks.several import DIFFERENCE


class Reader:
    """Answers as a function of a record says, which it finds by the images that it is shown."""

    def __init__(self, dataset: Any, say: Any) -> None:
        self.say, self.seen = say, []
        self.records = {}
        for index in range(len(dataset)):
            record = dataset[index]
            self.records[record.images[-1].image.tobytes()] = record

    def answer(self, images: list, questions: list[str], max_new_tokens: int, examples: list | None = None) -> list[str]:
        given = examples or [[]] * len(images)
        self.seen += [(one, shown) for one, shown in zip(images, given, strict=True)]
        last = [one[-1] if isinstance(one, tuple) else one for one in images]
        asked = zip(last, questions, given, strict=True)
        return [self.say(self.records[one.tobytes()], text, shown) for one, text, shown in asked]


def right(record: Any, text: str, shown: list) -> str:
    return next(one.answer for one in record.questions[::-1] if one.text == text).upper()


@pytest.mark.parametrize(
    ("name", "categories", "count"),
    [("several_compare?n=60", {"more", "fewer", "which", "same"}, 2), ("several_differs?n=60", {*EDITS, NOTHING}, 2),
     ("several_compare?n=60&pictures=3", {"more", "fewer", "which", "same", "odd"}, 3)],
)  # fmt: skip
def test_who_compares_gets_all(name: str, categories: set[str], count: int) -> None:
    task: Any = load_task(name)
    engine: Any = Reader(task.dataset, right)
    result = task.run(engine, lambda _: None)
    assert (result.score, result.count) == (1.0, 60) and {*result.details} == {*categories, "en", "zh"}
    assert all(isinstance(shown, tuple) and len(shown) == count for shown, _ in engine.seen)
    assert result.examples[0].image.shape == (64, 64 * count + 4 * (count - 1), 3)


def test_few_shot_is_told_by_the_number_of_examples_over_the_same_queries() -> None:
    task: Any = load_task("few_shot?n=60")

    def compare(record: Any, text: str, shown: list) -> str:
        """Right where an example of the right word was shown; else the word that is named first."""
        words = record.facts.words
        named = min(words, key=text.index)
        return next((answer for _, answer in shown if answer == record.questions[-1].answer), named)

    engine: Any = Reader(task.world, compare)
    result = task.run(engine, lambda _: None)
    by_number = [result.details[f"{count} example{'' if count == 1 else 's'}"].value for count in (0, 1, 2, 4, 8)]
    assert by_number == sorted(by_number) and by_number[0] < 0.7 and by_number[-1] > 0.95
    assert [score.value for score in list(result.other_scores.values())[:5]] == by_number
    gain = result.other_scores["8 less 0 examples"]
    assert gain.value == pytest.approx(by_number[-1] - by_number[0]) and gain.unit == DIFFERENCE and gain.count == 60
    assert {"colour, 8 examples", "form, 8 examples", "pair, 8 examples"} < {*result.other_scores}
    assert result.measures == {"chance": 0.5} and result.count == 300 and task.name == "few_shot"
    queries = {shown.tobytes() for shown, _ in engine.seen}
    assert len(queries) == 60 and sorted({len(given) for _, given in engine.seen}) == [0, 1, 2, 4, 8]
    wrong = {example.reason for example in result.examples if not example.correct}
    assert wrong == {"the other word"} and result.examples[4].image.shape == (64, 9 * 64 + 8 * 4, 3)


def test_so_many_examples_alone() -> None:
    task: Any = load_task("few_shot?n=20&examples=8&split=validation")
    result = task.run(Reader(task.world, right), lambda _: None)
    assert (task.name, result.score, {*result.details}) == ("few_shot_8_validation", 1.0, {"8 examples", "en", "zh"})
    some: Any = load_task("few_shot?n=2&examples=[4,0]")
    assert (some.name, some.num_items, some.counts) == ("few_shot_0_4", 4, (0, 4))
    for wrong in ("examples=many", "examples=-1", "examples=[]", "split=held_out", "concepts=size"):
        with pytest.raises(ValueError):
            load_task(f"few_shot?n=2&{wrong}")


def test_images_of_several_sizes_are_not_put_side_by_side() -> None:
    small, large = np.zeros((2, 2, 3), np.uint8), np.zeros((3, 3, 3), np.uint8)
    assert side_by_side([small, large]) is small and side_by_side(["a.png", small]) is None and side_by_side([]) is None
