"""Object hallucination on the shapes world: what is asked about, and what invention costs."""

from collections import Counter

import pytest

from unimm.data.worlds.scenes import make_scene
from unimm.data.worlds.shapes import ShapesWorld
from unimm.eval import evaluate, load_task
from unimm.eval.fingerprints import describe_task
from unimm.eval.tasks.hallucination import LOOK_AGAIN, ShapesHallucination, ShapesPope, pairs_of


class Captioner:
    """Tells what is there, and of every third scene something more. questions: answered by `says`."""

    def __init__(self, says: str = "") -> None:
        self.says = says
        self.captions = {}
        for index, record in enumerate(ShapesWorld("test", 30)):
            for text in record.captions:
                more = " And a large white cross." if index % 3 == 0 and text.language == "en" else ""
                self.captions[record.image.tobytes(), text.language] = text.text + more

    def caption(self, image, language):
        return [self.captions[one.tobytes(), language] for one in image]

    def answer(self, image, question, max_new_tokens):
        return [self.says or "yes" for _ in question]


def test_captions_that_invent_are_counted() -> None:
    result = evaluate(Captioner(), [ShapesHallucination(30)], progress=False)["hallucination"]
    invented = [index for index in range(30) if index % 3 == 0 and index % 2 == 0]  # languages in turn
    there = sum(len(make_scene(0, "test", index).objects) for index in range(30))
    others = {name: score.value for name, score in result.other_scores.items()}
    assert result.score == pytest.approx(1 - len(invented) / 30)
    assert others["chair_s"] == pytest.approx(len(invented) / 30)
    assert others["chair_i"] == pytest.approx(len(invented) / (there + len(invented)))
    assert others["recall"] == others["form_recall"] == 1 and others["form_chair_i"] <= others["chair_i"] + 1e-9
    assert not result.other_scores["chair_i"].higher_is_better
    precise = 1 - others["chair_i"]
    assert others["f1"] == pytest.approx(2 * precise / (precise + 1))


def test_half_of_what_is_asked_for_is_there() -> None:
    """And half is not, in three ways; whoever always says yes is right in half of them."""
    task = ShapesPope(120)
    result = evaluate(Captioner("yes"), [task], progress=False)["hallucination_questions"]
    questions = [example for example in result.examples if example.language == "en"]
    assert len(questions) == 60 and all(example.answer == "yes" for example in questions)
    assert result.details["en"].value == 0.5
    for example in result.examples:
        scene = make_scene(0, "test", int(example.key.split("/")[2]))
        named = [pair for pair in pairs_of(scene) if all(word in example.prompt for word in pair)]
        assert bool(named) == (example.expected == "yes") or example.language == "zh", example
    assert Counter(example.category for example in result.examples) == dict.fromkeys(("random", "popular", "adversarial"), 40)
    assert len({example.key for example in result.examples}) == 120


def test_an_item_depends_on_its_number_alone() -> None:
    """Asked in any order, by a task of any size."""
    small, large = ShapesPope(12), ShapesPope(60)
    assert [small._question(item) for item in reversed(range(12))] == [large._question(item) for item in range(12)][::-1]


def test_the_popular_are_popular() -> None:
    """What is asked for as popular is shown in more scenes than what is drawn at random."""
    task = ShapesPope(240)
    scenes, _ = task._counts
    asked = {"random": [], "popular": []}
    for item in range(240):
        _, text, label, strategy, language = task._question(item)
        if label == "no" and strategy in asked and language == "en":
            asked[strategy].append(next(scenes[pair] for pair in scenes if f"{pair[0]} {pair[1]}" in text))
    means = {strategy: sum(counts) / len(counts) for strategy, counts in asked.items()}
    assert means["popular"] > 1.2 * means["random"]


def test_votes_and_verification_reach_the_engine(tiny_engine) -> None:
    """And are part of what an evaluation's answers are of; the usual way is described as it was before there were others."""
    plain, voted = load_task("hallucination?n=4"), load_task("hallucination?n=4&votes=3&verify=true")
    assert describe_task(plain) != describe_task(voted) and not hasattr(plain, "checks")
    engine = Captioner("yes")
    engine.answer = lambda image, question, max_new_tokens, **checks: engine.told.append(checks) or ["yes"] * len(image)
    engine.told = []
    for name in ("n=6", "n=6&votes=3", "n=6&verify=true"):
        evaluate(engine, [load_task(f"hallucination?ask=questions&{name}")], progress=False)
    assert engine.told == [{}, {"votes": 3}, {"verify": LOOK_AGAIN}]
    for task in (voted, load_task("hallucination?ask=questions&n=4&votes=2&verify=true&split=held_out")):
        assert evaluate(tiny_engine, [task], progress=False)[task.name].count == 4
    with pytest.raises(ValueError, match="verify is true or false"):
        load_task("hallucination?verify=often")
