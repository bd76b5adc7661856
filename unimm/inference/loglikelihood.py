"""How probable a model finds what is there already: the log-likelihood of the learned segments of closed sequences.

It is what benchmarks ask for that compare given answers instead of reading written ones, and what a perplexity is made of. Text
and codes alike: what has a vocabulary has a probability. A target is an element of a segment that is learned
(`Segment.text(ids, learn=True)`) and has one before it; how much it weighs there does not matter here.

Shapes: B sequences of a pass, T positions, M targets, m of a chunk, D trunk width, V vocabulary.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from unimm.batch import Batch, collate
from unimm.inference.input_validation import check_elements
from unimm.models.attention import mask_of
from unimm.models.ports.vocabulary import Favoured
from unimm.models.unified import UnifiedModel
from unimm.sequence import Sequence

POSITIONS_A_PASS = {"cpu": 2048}
"""Of all sequences of a pass, padding included, at most; a single one may be longer."""

POSITIONS_ON_GPU = 2**14

CHUNK_LOGITS = 2**24
"""Logits that exist at once, at most."""


class LogLikelihood(NamedTuple):
    """Of one sequence. logprob: the sum of the natural log-probabilities of its targets. num_targets: how many these are.
    is_greedy: whether each is the likeliest of its place, so that decoding without sampling would have said the same."""

    logprob: float
    num_targets: int
    is_greedy: bool


def check_targets(model: UnifiedModel, sequence: Sequence) -> None:
    """ValueError: a sequence is open, too long, holds what the model does not know, or has nothing that is to be scored."""
    if sequence.is_open:
        raise ValueError("An open sequence has no likelihood yet: close it with fill(ids, learn=True).")
    if sequence.length > (most := model.config.max_positions):
        raise ValueError(f"The sequence takes {sequence.length} positions, and the model was made for {most}: shorten it.")
    check_elements(sequence, model)
    num_targets = 0
    for segment, start, _ in sequence.spans():
        if segment.learn and segment.kind not in model.vocabulary_ports:
            raise ValueError(f"{segment.kind.name} has no log-probabilities: let text and codes alone be learned here.")
        is_target = np.broadcast_to(np.asarray(segment.weight) != 0, segment.length)
        num_targets += int(is_target[1 if start == 0 else 0 :].sum())
    if not num_targets:
        raise ValueError("Nothing is learned in this sequence: mark what is to be scored: Segment.text(ids, learn=True).")


def split_passes(sequences: list[Sequence], device: torch.device, alone: bool) -> Iterator[list[int]]:
    """The places of sequences that go through the model together, of like lengths; or each alone."""
    most = POSITIONS_A_PASS.get(device.type, POSITIONS_ON_GPU)
    chosen: list[int] = []
    for place in sorted(range(len(sequences)), key=lambda place: -sequences[place].length):
        if chosen and (alone or (len(chosen) + 1) * sequences[chosen[0]].length > most):
            yield chosen
            chosen = []
        chosen.append(place)
    if chosen:
        yield chosen


@torch.inference_mode()
def score_pass(model: UnifiedModel, sequences: list[Sequence]) -> list[LogLikelihood]:
    """The log-likelihoods of sequences that `check_targets` has passed, in one pass."""
    batch = collate([[sequence] for sequence in sequences]).to(next(model.parameters()).device)
    is_target_N = (batch.weights != 0).flatten()
    positions_M = is_target_N.nonzero().squeeze(1)
    mask = mask_of(model.trunk.config._attn_implementation, batch)
    hidden_MD = model.hidden(model.embed(batch), mask, batch.positions, loss_positions_M=positions_M)
    logprobs_M, is_first_M = _logprobs(model, batch, positions_M, hidden_MD)
    rows_M = (positions_M // batch.tokens.shape[1]).cpu()
    found = []
    for row in range(len(sequences)):
        of_row_M = rows_M == row
        logprob = logprobs_M[of_row_M].sum().item()
        found.append(LogLikelihood(logprob, int(of_row_M.sum()), bool(is_first_M[of_row_M].all())))
    return found


def _logprobs(
    model: UnifiedModel, batch: Batch, positions_M: torch.Tensor, hidden_MD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each target its log-probability, (M,) float64, and whether it is the likeliest of its place, (M,) bool; on the CPU."""
    targets_M, kinds_M = batch.targets.flatten()[positions_M], batch.target_kinds.flatten()[positions_M]
    logprobs_M = torch.zeros(len(positions_M), dtype=torch.float64)
    is_first_M = torch.zeros(len(positions_M), dtype=torch.bool)
    for kind, port in model.vocabulary_ports.items():
        places = (kinds_M == kind).nonzero().squeeze(1)
        for some_m in places.split(max(1, CHUNK_LOGITS // port.vocabulary_size)):
            logits_mV = Favoured.of(batch, positions_M[some_m]).add_to(port.logits(hidden_MD[some_m]).float())
            targets_m = targets_M[some_m]
            chosen_m = logits_mV.gather(1, targets_m[:, None]).squeeze(1)
            logprobs_M[some_m.cpu()] = (chosen_m - logits_mV.logsumexp(1)).double().cpu()
            is_first_M[some_m.cpu()] = (logits_mV.argmax(1) == targets_m).cpu()
    return logprobs_M, is_first_M
