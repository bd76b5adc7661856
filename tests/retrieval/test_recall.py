"""Recall at k: by hand, with ties against the model, with several right answers."""

import numpy as np
import pytest

from unimm.retrieval.recall import recall_at

SCORES = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.5], [0.1, 0.2, 0.3]])


def test_it_counts_by_hand() -> None:
    # the right ones stand first, third, second
    assert recall_at(SCORES, np.array([0, 1, 1]), (1, 2, 3)) == {1: 1 / 3, 2: 2 / 3, 3: 1.0}


def test_who_finds_everything_alike_has_found_nothing() -> None:
    assert recall_at(np.zeros((4, 20)), np.arange(4)) == {1: 0.0, 5: 0.0, 10: 0.0}


def test_several_may_be_right() -> None:
    right = np.array([[False, True, True], [False, False, True], [True, True, True]])
    assert recall_at(SCORES, right, [1, 2]) == {1: 1 / 3, 2: 1.0}


@pytest.mark.parametrize(
    ("scores", "targets", "said"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "at least one of each"),
        (SCORES, np.array([0, 1]), "Targets are"),
        (SCORES, np.array([0, 1, 3]), "number 3 candidates"),
        (SCORES, np.zeros((3, 3), bool), "no right candidate"),
        (np.full((1, 2), np.nan), np.array([0]), "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores: np.ndarray, targets: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recall_at(scores, targets)


def test_k_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="from 1 on"):
        recall_at(SCORES, np.array([0, 1, 1]), (0,))
