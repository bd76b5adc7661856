"""The tasks of the pages world: who knows all gets all, a chart's value may be a little off, and a line a letter."""

from typing import Any

import pytest

from unimm.data.records import Question
from unimm.eval import suites
from unimm.eval.scorers.documents import character_error_rate
from unimm.eval.tasks.pages import PagesQuestions, PagesText, is_within, judge


class Knowing:
    """Answers as the pages say, changed by a function."""

    def __init__(self, task: Any, change=lambda answer: answer) -> None:
        self.known = {}
        for item in range(task.num_items):
            record, question = task._item(item)
            self.known[record.image.tobytes(), question.text] = change(question.answer)

    def answer(self, images: list, questions: list[str], max_new_tokens: int) -> list[str]:
        return [self.known[image.tobytes(), text] for image, text in zip(images, questions, strict=True)]


def run(task: Any, change=lambda answer: answer):
    return task.run(Knowing(task, change), lambda _: None)


def test_who_reads_all_gets_all() -> None:
    text, questions = suites.load_task("pages_text?n=12"), suites.load_task("pages_questions?n=40")
    assert isinstance(text, PagesText) and isinstance(questions, PagesQuestions)
    result = run(text)
    assert (result.name, result.score, result.other_scores["mean_cer"].value) == ("pages_text", 1.0, 0.0)
    assert not result.other_scores["mean_cer"].higher_is_better
    result = run(questions)
    assert (result.name, result.score) == ("pages_questions", 1.0) and len(result.details) > 8
    assert "text_read" not in result.details


def test_who_guesses_gets_little() -> None:
    assert run(PagesText(8), lambda answer: "tea").score < 0.5
    assert run(PagesQuestions(30), lambda answer: "0").score == 0.0


def test_a_line_may_have_a_wrong_letter_in_ten() -> None:
    line = Question("Read line 1.", "bread river 471", "text_read")
    assert character_error_rate("bread  river 471 ", line.answer) == 0.0
    assert judge("bread river 477", line).correct and not judge("bred river 77", line).correct
    whole = Question("Read the page.", "bread river 471\ntea", "text_all")
    assert judge("bread river 471\ntea", whole).correct and not judge("bread river 471", whole).correct
    assert judge("", line).reason == "100% of the characters are wrong"
    assert character_error_rate("茶叶 火本", "茶叶 火车") == pytest.approx(0.2)


def test_a_value_of_a_chart_may_be_a_twentieth_off() -> None:
    share = Question("What share has tea?", "40%", "pie_share")
    assert judge("42%", share).correct and judge("38", share).correct and not judge("42.1%", share).correct
    assert not judge("tea", share).correct
    assert is_within("0", "0") and not is_within("0.1", "0") and is_within("1,000", "1000")
    assert not judge("41", Question("What is the price of tea?", "40", "table_cell")).correct, "a cell can be read exactly"
    assert not judge("-40", Question("What is the price of tea?", "40", "table_cell")).correct, "a sign is no punctuation"
    assert not is_within("4_0", "40")


def test_whole_pages_are_a_task_of_their_own() -> None:
    task = suites.load_task('pages_text?whole=true&n=3&languages=["en"]')
    assert task.name == "pages_text_whole" and task.run(Knowing(task), lambda example: None).score == 1.0
    with pytest.raises(ValueError, match="whole is true or false, not perhaps"):
        suites.load_task("pages_text?whole=perhaps")
