"""Tasks on the world of pages: reading a line of text, and questions about text, tables and charts, on pages of the test split.

    pages_text        a line is read where at most a tenth of its characters are wrong; beside it the mean character error rate
                      (of a line at most 1); with whole=true all lines of a page are read at once
    pages_questions   all other questions

Values that are read off a chart may be 5 % off, as in ChartQA's relaxed accuracy (arXiv 2203.10244); every other answer has to
be the expected one. The tasks are in no suite, since only a model that was trained on pages can read.
"""

import re
from collections.abc import Iterator

from unimm.data.records import Question, Record
from unimm.data.worlds.pages import SIZES, PagesWorld
from unimm.data.worlds.pages_content import CATEGORIES, TOLERANT
from unimm.eval.score import Example, Judgement, Score
from unimm.eval.scorers.documents import TOLERANCE, character_error_rate
from unimm.eval.task import ItemTask, Result, summarize
from unimm.eval.tasks.answers import as_array, is_same_answer
from unimm.inference.engine import Engine

READ, READ_ALL = "text_read", "text_all"
MOST_ERRORS = 0.1
"""The character error rate at which a line, or a page, still counts as read."""


class _Pages(ItemTask):
    """Questions of pages, one of every page in turn."""

    def __init__(self, name: str, world: PagesWorld, num_items: int, max_new_tokens: int) -> None:
        self.name, self.world, self.num_items = name, world, num_items
        self.max_new_tokens = max_new_tokens

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """The examples of these questions."""
        asked = [self._item(item) for item in items]
        images, questions = [record.image for record, _ in asked], [question.text for _, question in asked]
        answers = engine.answer(images, questions, max_new_tokens=self.max_new_tokens)
        for (record, question), answer in zip(asked, answers, strict=True):
            verdict = judge(answer, question)
            yield Example(
                key=record.key,
                prompt=question.text,
                expected=question.answer,
                answer=answer,
                correct=verdict.correct,
                reason=verdict.reason,
                category=question.category,
                language=question.language,
                image=as_array(record),
                numbers=_wrong_characters(answer, question),
            )

    def _item(self, item: int) -> tuple[Record, Question]:
        record = self.world[item]
        return record, record.questions[item % len(record.questions)]


class PagesText(_Pages):
    """Lines of text, or whole pages, read: the share with a character error rate of at most `MOST_ERRORS`; the mean rate."""

    def __init__(
        self, num_items: int = 400, seed: int = 0, split: str = "test", languages: list[str] | None = None,
        sizes: list[list[int]] | None = None, font_size: int = 14, chinese_font: str | None = None, whole: bool = False,
    ) -> None:  # fmt: skip
        asked = (READ_ALL if whole else READ,)
        world = PagesWorld(
            split, num_items, seed, languages, ("text",), asked, sizes or SIZES, font_size, chinese_font=chinese_font
        )
        super().__init__("pages_text_whole" if whole else "pages_text", world, num_items, max_new_tokens=200 if whole else 64)

    def score(self, examples: list[Example]) -> Result:
        """The share that is read, and the mean rate of wrong characters."""
        rates = [example.numbers["cer"] for example in examples]
        return summarize(self.name, examples, other_scores={"mean_cer": Score.mean(rates, "CER", higher_is_better=False)})


class PagesQuestions(_Pages):
    """Questions about all kinds of pages, but for reading; details by what is asked, and by language."""

    def __init__(
        self, num_items: int = 600, seed: int = 0, split: str = "test", languages: list[str] | None = None,
        sizes: list[list[int]] | None = None, font_size: int = 14, chinese_font: str | None = None,
    ) -> None:  # fmt: skip
        categories = tuple(name for name in CATEGORIES if name not in (READ, READ_ALL))
        world = PagesWorld(
            split, num_items, seed, languages, categories=categories, sizes=sizes or SIZES, font_size=font_size,
            chinese_font=chinese_font,
        )  # fmt: skip
        super().__init__("pages_questions", world, num_items, max_new_tokens=16)


def _wrong_characters(answer: str, question: Question) -> dict[str, float]:
    """The share of wrong characters, at most 1, of what is read."""
    is_read = question.category in (READ, READ_ALL)
    return {"cer": min(1.0, character_error_rate(answer, question.answer))} if is_read else {}


def judge(answer: str, question: Question) -> Judgement:
    """Whether an answer is right, by what its question asks for."""
    if question.category in (READ, READ_ALL):
        rate = character_error_rate(answer, question.answer)
        is_read = rate <= MOST_ERRORS
        return Judgement(is_read, answer, "" if is_read else f"{rate:.0%} of the characters are wrong")
    if question.category in TOLERANT:
        is_near = is_within(answer, question.answer)
        return Judgement(is_near, answer, "" if is_near else f"more than {TOLERANCE:.0%} off")
    # A sign is no punctuation before a number.
    is_same = is_same_answer(answer, question.answer) and _is_negative(answer) == _is_negative(question.answer)
    return Judgement(is_same, answer, "" if is_same else "another answer")


def is_within(answer: str, expected: str, tolerance: float = TOLERANCE) -> bool:
    """Whether an answer is a number at most so far off the expected one, as a share of that; what is no number has to be the
    same text."""
    try:
        said, right = (float(text.strip().rstrip(".。").removesuffix("%").replace(",", "")) for text in (answer, expected))
    except ValueError:
        return is_same_answer(answer, expected)
    if "_" in answer:  # which Python reads in a number
        return False
    return abs(said - right) <= tolerance * abs(right)


def _is_negative(text: str) -> bool:
    return re.match(r"\s*[-\N{MINUS SIGN}]\s*\d", text) is not None
