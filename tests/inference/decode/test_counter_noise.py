"""Noise without state: the right distribution, the same for the same numbers, unrelated for others."""

import math

import pytest
import torch

from unimm.inference.decode.sampling import gumbel, stream_key

EULER = 0.5772156649


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([stream_key(seed, index) for index in range(count)])


def test_it_is_standard_gumbel_noise() -> None:
    values = gumbel(keys(200), torch.arange(200), 500).double().flatten()
    assert torch.isfinite(values).all()
    assert values.mean().item() == pytest.approx(EULER, abs=0.02)
    assert values.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)
    # Chi-square of the 100 equally likely bins of the distribution function: 99 degrees of freedom, 5 deviations.
    counts = torch.histc(torch.exp(-torch.exp(-values)), bins=100, min=0, max=1)
    expected = len(values) / 100
    assert ((counts - expected) ** 2 / expected).sum().item() < 99 + 5 * math.sqrt(2 * 99)


def test_an_argmax_with_it_draws_from_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.08, 0.02])
    draws, steps = 20_000, torch.arange(20_000)
    chosen = (probabilities.log() + gumbel(keys(1).expand(draws), steps, 5)).argmax(-1)
    counts, expected = chosen.bincount(minlength=5), probabilities * draws
    assert ((counts - expected) ** 2 / expected).sum().item() < 4 + 5 * math.sqrt(2 * 4)


def test_it_depends_on_its_numbers_alone() -> None:
    own_keys, steps = keys(7), torch.tensor([0, 5, 2, 9, 100, 3, 3])
    whole = gumbel(own_keys, steps, 64)
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(gumbel(own_keys, steps, 64), whole)
    for row in range(7):
        assert torch.equal(gumbel(own_keys[row : row + 1], steps[row : row + 1], 64), whole[row : row + 1])
    # A larger vocabulary adds columns and changes none.
    assert torch.equal(gumbel(own_keys, steps, 100)[:, :64], whole)


def test_seeds_images_steps_and_codes_are_unrelated() -> None:
    number = 4_000
    by_seed = gumbel(torch.tensor([stream_key(seed, 0) for seed in range(number)]), torch.zeros(number, dtype=torch.long), 2)
    by_image = gumbel(keys(number), torch.zeros(number, dtype=torch.long), 2)
    by_step = gumbel(keys(1).expand(number), torch.arange(number), 2)
    for values in (by_seed, by_image, by_step):
        neighbours = torch.stack([values[:-1, 0], values[1:, 0], values[:-1, 1]])
        correlations = torch.corrcoef(neighbours) - torch.eye(3)
        assert correlations.abs().max().item() < 5 / math.sqrt(number)


def test_keys_differ_and_any_integer_is_a_seed() -> None:
    seeds = (0, 1, -1, 2**31, 2**63, -(2**62), 10**30)
    found = {stream_key(seed, index) for seed in seeds for index in range(100)}
    assert len(found) == 100 * len(seeds)
    assert all(-(2**63) <= key < 2**63 for key in found)
