"""POPE's five numbers, beside scikit-learn's."""

import random

import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from unimm.eval.scorers.yes_no import read_yes_no, yes_no_scores


@pytest.mark.parametrize("share_of_yes", [0.0, 0.3, 0.9, 1.0])
def test_they_are_scikit_learn_s(share_of_yes: float) -> None:
    rng = random.Random(7)
    labels = [rng.choice(["yes", "no"]) for _ in range(200)]
    answers = ["yes" if rng.random() < share_of_yes else "no" for _ in labels]
    scores = yes_no_scores([*answers], labels)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, answers, pos_label="yes", average="binary", zero_division=0
    )
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((precision, recall, f1))
    assert scores.accuracy == pytest.approx(accuracy_score(labels, answers))
    assert scores.yes_ratio == answers.count("yes") / 200 and scores.count == 200


@pytest.mark.parametrize(
    ("answer", "read", "exact"),
    [
        ("Yes", "yes", "yes"),
        ("no ", "no", "no"),
        ("No, there is none.", "no", None),
        ("Yes, there is. It is not small.", "yes", None),
        ("There is not a dog", "no", None),
        ("Nothing", "yes", None),
        ("", "yes", None),
    ],
)
def test_an_answer_is_read_as_pope_does_or_exactly(answer: str, read: str, exact: str | None) -> None:
    assert read_yes_no(answer) == read
    assert read_yes_no(answer, "exact") == exact


def test_numbers_are_lmms_eval_s() -> None:
    utils = pytest.importorskip(
        "lmms_eval.tasks.pope.utils",
        reason="lmms-eval is not installed: it pins wandb and av, so it has an environment of its own",
    )
    rng = random.Random(3)
    pairs = [(rng.choice(["yes", "no", "maybe"]), rng.choice(["yes", "no"])) for _ in range(300)]
    results = [
        {"question_id": n, "score": float(said == label), "prediction": said, "ground_truth": label}
        for n, (said, label) in enumerate(pairs)
    ]
    scores = yes_no_scores([read_yes_no(said, "exact") for said, _ in pairs], [label for _, label in pairs])
    assert scores.accuracy == pytest.approx(utils.pope_aggregate_accuracy(results))
    assert scores.precision == pytest.approx(utils.pope_aggregate_precision(results))
    # It leaves what is neither yes nor no out of the recall, where POPE itself knows no such answer.
    told = [one for one in results if one["prediction"] != "maybe"]
    scores = yes_no_scores([one["prediction"] for one in told], [one["ground_truth"] for one in told])
    assert scores.recall == pytest.approx(utils.pope_aggregate_recall(told))
    assert scores.f1 == pytest.approx(utils.pope_aggregate_f1_score(told))


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(ValueError, match="2 answers and 1 labels"):
        yes_no_scores(["yes", "no"], ["yes"])
    with pytest.raises(ValueError, match="A label is yes or no, not 'maybe'"):
        yes_no_scores(["yes"], ["maybe"])
    with pytest.raises(ValueError, match="first_sentence or exact, not as 'loose'"):
        read_yes_no("yes", "loose")
