"""Recall at k: the share of queries that have a right answer among their first k, as retrieval is scored (CLIP, BLIP, COCO)."""

from collections.abc import Iterable

import numpy as np


def recall_at(similarities: np.ndarray, targets: np.ndarray, ks: Iterable[int] = (1, 5, 10)) -> dict[int, float]:
    """R@k for each k.

    What is as similar as the right answer counts as before it: who finds everything alike has found nothing.

    Args:
        similarities: (Q, N), of each query to each of N candidates; larger is closer.
        targets: (Q,) the number of the right candidate of each query; or (Q, N) bool, where several are right.
        ks: how many of the first candidates are looked at, from 1 on.

    Raises:
        ValueError: there are no queries, shapes differ, a query has no right candidate, a number is not finite, or a k is
            below 1.
    """
    scores, right = np.asarray(similarities), np.asarray(targets)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"Similarities are (queries, candidates), at least one of each, not {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError("A similarity is not finite: recall cannot be measured.")
    if right.shape == scores.shape and right.dtype == np.bool_:
        if not right.any(1).all():
            raise ValueError(f"Query {int(np.flatnonzero(~right.any(1))[0])} has no right candidate.")
    elif right.shape == scores.shape[:1] and right.dtype.kind in "iu":
        if right.min() < 0 or right.max() >= scores.shape[1]:
            raise ValueError(f"Targets number {scores.shape[1]} candidates from 0 on, not {right.min()} to {right.max()}.")
        right = np.arange(scores.shape[1]) == right[:, None]
    else:
        raise ValueError(f"Targets are ({len(scores)},) numbers or {scores.shape} bool, not {right.shape} {right.dtype}.")
    best_Q = np.where(right, scores, -np.inf).max(1)
    before_Q = ((scores >= best_Q[:, None]) & ~right).sum(1)
    found = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"Recall is looked at among the first k from 1 on, not {k}.")
        found[int(k)] = float((before_Q < k).mean())
    return found
