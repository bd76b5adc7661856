"""Log-probabilities of whole sequences, as objectives see them that compare sequences: preferences, rollouts.

A sample's sequences are documents of one micro-batch (`unimm.sequence.Sample`), wherever they lie in its rows. What
`UnifiedModel.log_probs` gives token by token is summed here by document, whatever the packing was.

Shapes: B rows, T positions, D documents of a batch, P pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unimm.batch import Batch
from unimm.sequence import Kind

KINDS = (Kind.TEXT, Kind.CODES)
"""What sequences are compared by: an answer, or a drawing."""


class Pairs(NamedTuple):
    """Samples of at least two sequences: of each the documents in places 0 and 1, (P,) long, as rows of `Batch.samples`."""

    first: Tensor
    second: Tensor


def sum_by_sequence(values_BT: Tensor, batch: Batch) -> Tensor:
    """(D,): the sum of some numbers over the positions of each document; what stands at padding counts nowhere."""
    documents_BT = batch.document_indices()
    values_N = torch.where(documents_BT < 0, 0, values_BT).flatten()
    num = len(batch.samples)  # of rows of nothing but padding there is none, and padding is added to one
    return values_N.new_zeros(max(1, num)).index_add(0, documents_BT.clamp(min=0).flatten(), values_N)[:num]


def num_learned(batch: Batch) -> Tensor:
    """(D,) float: how much is learned of each document, the sum of its targets' weights."""
    return sum_by_sequence(batch.weights, batch)


def is_drawing(batch: Batch) -> Tensor:
    """(D,) bool: whether codes are learned in each document."""
    return sum_by_sequence(batch.weights * (batch.target_kinds == Kind.CODES), batch) > 0


def of_kind(batch: Batch, kind: Kind) -> Tensor:
    """(D,) bool: the drawings where the kind is CODES, else all others."""
    return is_drawing(batch) if kind == Kind.CODES else ~is_drawing(batch)


def pairs_of(batch: Batch) -> Pairs:
    """The first two sequences of every sample that has two or more."""
    samples_D, places_D = batch.samples.unbind(1)
    num_samples = int(samples_D.max()) + 1 if len(samples_D) else 0
    table_S2 = samples_D.new_full((num_samples, 2), -1)
    compared = (places_D < 2).nonzero().squeeze(1)
    table_S2[samples_D[compared], places_D[compared]] = compared
    table_P2 = table_S2[(table_S2 >= 0).all(1)]
    return Pairs(table_P2[:, 0], table_P2[:, 1])
