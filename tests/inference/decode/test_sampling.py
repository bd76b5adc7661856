"""From logits to ids: what top-k, top-p, temperature and guidance keep and choose."""

from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from unimm.inference.decode.sampling import Sampler, Sampling, guide, keep_at_least, keep_likely
from unimm.sequence import Expected

CPU = torch.device("cpu")
PROBABILITIES = torch.tensor([[0.05, 0.5, 0.15, 0.3]])


def kept(top_k: int = 0, top_p: float = 1.0) -> list[int]:
    """Which of PROBABILITIES' four elements stay."""
    logits = keep_likely(PROBABILITIES.log(), torch.tensor([top_k]), torch.tensor([top_p]))
    assert torch.equal(logits[logits.isfinite()], PROBABILITIES.log()[logits.isfinite()])
    return logits[0].isfinite().nonzero().flatten().tolist()


def test_top_k_keeps_the_k_most_likely() -> None:
    assert [kept(top_k=k) for k in (0, 1, 2, 3, 4, 9)] == [[0, 1, 2, 3], [1], [1, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    assert [kept(top_p=p) for p in (0.01, 0.4, 0.6, 0.9, 0.96, 1.0)] == [
        [1],
        [1],
        [1, 3],
        [1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]


def test_top_p_looks_at_what_top_k_left() -> None:
    # Of the two most likely, renormalised, the first has 0.625: it reaches 0.6 alone.
    assert kept(top_k=2, top_p=0.6) == [1]
    assert kept(top_k=2, top_p=0.7) == [1, 3]


def test_every_row_has_its_own_settings() -> None:
    logits = torch.randn(4, 2000, generator=torch.Generator().manual_seed(0)) * 5
    rows = [Sampling(), Sampling(1.0, seed=1), Sampling(1.0, top_k=3, seed=1), Sampling(1.0, top_p=0.5, seed=1)]
    together = Sampler(rows, CPU)
    for step in range(50):
        steps = torch.full((4,), step)
        ids = together(logits, steps).tolist()
        alone = [Sampler([row], CPU)(logits[i : i + 1], steps[:1]).item() for i, row in enumerate(rows)]
        assert ids == alone
        assert ids[0] == logits[0].argmax()
        assert ids[2] in logits[2].topk(3).indices


def test_a_row_that_keeps_everything_loses_nothing_beside_one_that_does_not() -> None:
    """Rounded sums of a long tail reach 1.0 early: that must not cut the tail of a row with top_p = 1.0."""
    logits = torch.zeros(2, 20_000)
    filtered = keep_likely(logits, torch.tensor([0, 5]), torch.tensor([1.0, 0.9]))
    assert torch.equal(filtered[0], logits[0])
    assert 0 < int(filtered[1].isfinite().sum()) < 20_000


def test_a_low_temperature_is_greedy_and_a_high_one_flat() -> None:
    logits = torch.tensor([[1.0, 1.2, 0.9]]).expand(3000, 3)
    steps = torch.arange(3000)

    def shares(temperature: float) -> torch.Tensor:
        return Sampler([Sampling(temperature)] * 3000, CPU)(logits, steps).bincount(minlength=3) / 3000

    assert shares(0.001).tolist() == [0.0, 1.0, 0.0]
    assert (shares(100.0) - 1 / 3).abs().max() < 0.05


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p: float, temperature: float) -> None:
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(1)) * 3 / temperature
    ours = keep_at_least(logits, torch.full((5,), min_p))
    theirs = MinPLogitsWarper(min_p)(torch.zeros(5, 1, dtype=torch.long), logits) if min_p else logits
    assert torch.equal(ours, theirs)


def test_a_repetition_penalty_is_that_of_transformers() -> None:
    """Over steps: what was given and everything chosen since is pressed down, in rows that ask for it."""
    generator = torch.Generator().manual_seed(0)
    given = [[3, 5, 7], [3, 5, 7], [1, 1, 4]]
    rows = [Sampling(repetition_penalty=1.8), Sampling(), Sampling(1.0, seed=3, repetition_penalty=0.6)]
    sampler, steps = Sampler(rows, CPU, given, 12), torch.zeros(3, dtype=torch.long)
    histories = [list(ids) for ids in given]
    for step in range(20):
        logits = torch.randn(3, 12, generator=generator)
        chosen = sampler(logits, steps + step)
        for row, history in enumerate(histories):
            theirs = RepetitionPenaltyLogitsProcessor(rows[row].repetition_penalty)(
                torch.tensor([history]), logits[row : row + 1].clone()
            )
            plain = Sampler([replace(rows[row], repetition_penalty=1.0)], CPU)
            assert chosen[row] == plain(theirs, steps[:1] + step)
            history.append(int(chosen[row]))


def test_a_bias_is_for_the_id_that_a_row_expects_at_its_step() -> None:
    rows = [Sampling(1.0, seed=3), Sampling(1.0, seed=3), Sampling()]
    sampler = Sampler(rows, CPU, expected=[None, Expected((4, 0), 3.0), Expected((1,), 100.0)])
    for step in range(4):
        logits, steps = torch.randn(3, 6, generator=torch.Generator().manual_seed(step)), torch.full((3,), step)
        biased = logits.clone()
        if step < 2:
            biased[1, (4, 0)[step]] += 3.0
        if step < 1:
            biased[2, 1] += 100.0
        assert torch.equal(sampler(logits, steps), Sampler(rows, CPU)(biased, steps))
    nothing = Sampler(rows, CPU, expected=[None, Expected((4,), 0.0), None])
    assert nothing.expected is None and nothing.settings == Sampler(rows, CPU).settings


def test_what_a_row_suppresses_is_never_chosen_and_other_rows_do_not_notice() -> None:
    rows = [Sampling(), Sampling(1.0, seed=3), Sampling(9.0, top_k=1, seed=4), Sampling(1.0, top_p=0.1, min_p=0.9, seed=5)]
    asked, plain = [rows * 2, [(), (2, 0), (), (2,), (2,), (), (2,), ()]], Sampler(rows * 2, CPU)
    sampler = Sampler(asked[0], CPU, suppressed=asked[1])
    for step in range(50):
        logits, steps = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)), torch.full((8,), step)
        logits[:, 2] += 30.0
        chosen = sampler(logits, steps)
        theirs = torch.stack(
            [
                SuppressTokensLogitsProcessor(list(ids))(torch.zeros(1, 1), row[None])[0] if ids else row
                for row, ids in zip(logits, asked[1], strict=True)
            ]
        )
        assert torch.equal(chosen, plain(theirs, steps))
        assert [int(one) in ids for one, ids in zip(chosen, asked[1], strict=True)] == [False] * 8
        assert chosen[[0, 2, 5, 7]].tolist() == [2] * 4
    nothing = Sampler(rows, CPU, suppressed=[()] * 4)
    assert nothing.suppressed is None and nothing.settings == Sampler(rows, CPU).settings


def test_guidance_is_linear_in_its_scale() -> None:
    conditional, unconditional = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    assert torch.equal(guide(conditional, unconditional, torch.tensor([1.0])), conditional)
    assert torch.equal(guide(conditional, unconditional, torch.tensor([0.0])), unconditional)
    assert torch.equal(guide(conditional, unconditional, torch.tensor([5.0])), torch.tensor([[6.0, -7.0]]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})
