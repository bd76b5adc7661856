"""VQA accuracy: the challenge's rules, and lmms-eval's code where that is installed."""

import random
from fractions import Fraction

import pytest

from unimm.eval.scorers.vqa import CONTRACTIONS, normalize_answer, vqa_accuracy

ANSWERS = [
    *(
        "yes",
        "Yes.",
        "no!",
        "The cat",
        "a",
        "two",
        "Ten",
        "none",
        "3,000",
        "1,000,000 people",
        "3.5",
        "10:30",
        "a.m.",
        "U.S.A.",
    ),
    *("dont", "don't", "couldnt've", "its", "Lets go", "somebody'd", "black/white", "black / white", "red, white", "red,white"),
    *("t-shirt", "left-hand side", "what?", "(blue)", "it's", "o'clock", "five o clock", "\tTV\n", "$5", "50%", "and/or", ""),
]
"""What annotators and models write."""


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Yes.", "yes"),
        ("The two cats", "2 cats"),
        ("dont", "don't"),
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("3,000 people!", "3000 people"),
        ("3.5", "3.5"),
        ("a.m.", "am"),
        ("t-shirt", "t shirt"),
        ("couldnt've", "couldn't've"),
        ("None", "0"),
    ],
)
def test_answers_are_compared_in_one_form(answer: str, plain: str) -> None:
    assert normalize_answer(answer) == plain


@pytest.mark.parametrize(("num_same", "expected"), [(0, "0"), (1, "3/10"), (2, "6/10"), (3, "9/10"), (4, "1"), (10, "1")])
def test_three_of_ten_annotators_make_an_answer_right(num_same: int, expected: str) -> None:
    """The mean over all sets of nine, by hand: with two that agree, 8 sets give 2/3 and 2 give 1/3."""
    answers = ["red"] * num_same + ["blue"] * (10 - num_same)
    assert vqa_accuracy("Red.", answers) == pytest.approx(float(Fraction(expected)))


def test_answers_are_those_of_lmms_eval() -> None:
    metric = pytest.importorskip(
        "lmms_eval.tasks._task_utils.vqa_eval_metric",
        reason="lmms-eval is not installed: it pins wandb and av, so it has an environment of its own",
    )
    own = metric.EvalAIAnswerProcessor()
    assert {key: word for key, word in own.CONTRACTIONS.items() if key != word and key.islower()} == CONTRACTIONS
    for answer in ANSWERS:
        plain = answer.replace("\n", " ").replace("\t", " ").strip()
        assert normalize_answer(answer) == own.process_digit_article(own.process_punctuation(plain)), answer

    from lmms_eval.tasks.vqav2.utils import vqav2_process_results

    rng = random.Random(0)
    for answer in ANSWERS:
        given = rng.choices([answer, *rng.choices(ANSWERS, k=3)], k=10)
        item = {"question_id": 1, "answers": [{"answer": one, "answer_id": n} for n, one in enumerate(given)]}
        assert vqa_accuracy(answer, given) == pytest.approx(vqav2_process_results(item, [answer])["exact_match"], abs=1e-9)


def test_a_question_needs_answers() -> None:
    with pytest.raises(ValueError, match="without annotators' answers"):
        vqa_accuracy("yes", [])
