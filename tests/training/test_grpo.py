"""GRPO's objective: however rollouts lie in rows and micro-batches, its gradients are those of a plain loop in float64."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from toys import make_model, make_template

from unimm.batch import collate
from unimm.data.template import Turn
from unimm.models.lora import LoraConfig, attach
from unimm.sequence import Kind, Sequence
from unimm.training.objectives.grpo import GRPO, RolloutBatch
from unimm.training.rollouts import Chosen, Rollout, choose, diversity, pack

TEMPERATURE, GUIDANCE = 0.7, 3.0
WAYS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "guided": {"guidance_scale": GUIDANCE},
    "sequence lengths": {"length": "sequence"},
    "constant length, one-sided clip": {"length": 7.0, "clip_high": 0.02},
    "ratio of sequences": {"ratio": "sequence", "length": "sequence"},
}


def make_chosen() -> Chosen:
    """Drawings and answers of several lengths, with advantages."""
    template, rng = make_template(), np.random.default_rng(0)
    rollouts = []
    for index in range(6):
        if index % 3:
            sequence = template.draw(["red square", "a blue one", "green"][index % 3], num_codes=4).fill(
                rng.integers(0, 32, 4), True
            )
        else:
            sequence = template.chat([Turn("user", ("What?",))], 8).fill(rng.integers(5, 90, 3 + index), True)
        rollouts.append(Rollout(sequence, index, "", 1.0))
    return Chosen(rollouts, [1.0, -0.5, 0.25, -1.0, 0.5, -0.25], 0)


def make_objective(**words: Any) -> GRPO:
    """In float64, with a reference and old log-probabilities of other weights."""
    objective = GRPO(make_model().double(), kl=0.3, temperature=TEMPERATURE, clip_low=0.05, **words)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in objective.frozen["reference"].parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return objective


def scored(objective: GRPO, batches: list[RolloutBatch]) -> list[RolloutBatch]:
    """With old log-probabilities of a policy that has moved since."""
    torch.manual_seed(2)
    old = copy.deepcopy(objective)
    with torch.no_grad():
        for parameter in old.model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return [old.score(batch) for batch in batches]


def gradients(objective: GRPO, batches: list[RolloutBatch]) -> dict[str, torch.Tensor]:
    """Of the mean losses, divided once by the counts of all batches."""
    counts = [objective.counts(batch) for batch in batches]
    for batch in batches:
        terms = objective(batch)
        parts = [objective.weights.get(name, 1.0) * one.loss / sum(c[name] for c in counts) for name, one in terms.items()]
        torch.stack(parts).sum().backward()
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def plain_gradients(objective: GRPO, old_model: torch.nn.Module, chosen: Chosen) -> dict[str, torch.Tensor]:
    """A rollout at a time, an element at a time."""
    reference = objective.frozen["reference"]
    losses, lengths = [], [len(one.chosen) for one in chosen.rollouts]
    for rollout, gain in zip(chosen.rollouts, chosen.advantages, strict=True):
        new, old, ref = (
            plain_log_probs(model, rollout.sequence, objective) for model in (objective.model, old_model, reference)
        )
        logs = new - old.detach()
        if objective.ratio == "sequence":
            logs = logs.mean().expand(len(logs))
        for t in range(len(logs)):
            ratio = logs[t].exp()
            clipped = torch.clamp(ratio, 1 - objective.low, 1 + objective.high)
            away = ref[t].detach() - new[t]
            loss = -torch.min(ratio * gain, clipped * gain) + 0.3 * (away.exp() - away - 1)
            divisor = {"tokens": sum(lengths), "sequence": len(logs) * len(lengths)}.get(str(objective.length))
            losses.append(loss / (divisor or float(objective.length) * len(lengths)))
    torch.stack(losses).sum().backward()
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def plain_log_probs(model: Any, sequence: Sequence, objective: GRPO) -> torch.Tensor:
    """(n,): of what was chosen, from the logits at each place."""
    ids = torch.tensor([int(one) for one in sequence.segments[-1].content_ids])
    start = sequence.length - len(ids)
    draws = sequence.segments[-1].kind == Kind.CODES

    def logits(one: Sequence) -> torch.Tensor:
        batch = collate([[one]])
        hidden = model.hidden(model.embed(batch), batch.attention_mask(), batch.positions)[0, start - 1 : -1]
        return (model.codes if draws else model.text).logits(hidden)

    told = logits(sequence)
    if draws and objective.guidance_scale != 1.0:
        null = logits(sequence.unconditioned(make_template().tokenizer.special.pad))
        told = null + objective.guidance_scale * (told - null)
    return (told / objective.temperature).log_softmax(-1)[torch.arange(len(ids)), ids]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("num_positions", "num_batches"), [(96, 1), (1, 6), (96, 2)], ids=["packed", "single", "accumulated"])
def test_gradients_are_those_of_a_plain_loop(way: str, num_positions: int, num_batches: int) -> None:
    objective, chosen = make_objective(**WAYS[way]), make_chosen()
    pad, guided = make_template().tokenizer.special.pad, "guidance_scale" in WAYS[way]
    batches = scored(objective, pack(chosen, num_positions, num_batches, pad, guided))
    found = gradients(objective, batches)
    again = make_objective(**WAYS[way])
    torch.manual_seed(2)
    old = copy.deepcopy(again.model)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    expected = plain_gradients(again, old, chosen)
    assert len(expected) > 15 and found.keys() >= expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()) + 1e-14, msg=name)


def test_something_is_clipped_in_these_tests() -> None:
    objective = make_objective()
    (batch,) = scored(objective, pack(make_chosen(), 96, 1, 2, False))
    sums = objective(batch)
    assert 0 < float(sums["policy/clipped"].loss) < float(sums["policy/clipped"].count)
    assert float(sums["kl"].loss.detach()) > 0 and float(sums["policy/entropy"].loss) > 0


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_before_the_first_update_every_ratio_is_one(guidance: float) -> None:
    objective = GRPO(make_model(), kl=0.1, guidance_scale=guidance)
    for batch in pack(make_chosen(), 96, 2, 2, guidance != 1.0):
        sums = objective(objective.score(batch))
        assert float(sums["policy/ratio_error"].loss) <= 1e-5 * float(sums["policy/ratio_error"].count)
        assert float(sums["policy/clipped"].loss) == 0 and abs(float(sums["kl"].loss)) < 1e-4


def test_the_reference_of_adapters_is_the_model_without_them() -> None:
    model = make_model()
    batch = pack(make_chosen(), 96, 1, 2, False)[0]
    before = GRPO(copy.deepcopy(model)).score(batch).old
    attach(model, LoraConfig(rank=2))
    objective = GRPO(model, kl=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    told = objective.score(batch)
    assert not objective.frozen
    torch.testing.assert_close(told.reference, before)
    assert float((told.old - before).abs().max()) > 1e-3
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_B" in name)


def test_advantages_are_of_the_group() -> None:
    sequence = make_chosen().rollouts[1].sequence

    def group(*totals: float | None) -> list[Rollout]:
        return [Rollout(sequence, 0, "", total) for total in totals]

    plain = choose([group(1.0, 0.0, 0.0, 1.0), group(1.0, 1.0), group(0.5, None), group(None, None)], normalize=False)
    assert plain.advantages == [0.5, -0.5, -0.5, 0.5] and plain.num_equal == 3
    scaled = choose([group(3.0, 1.0)], normalize=True).advantages
    assert scaled == pytest.approx([1 / (2**0.5 + 1e-4), -1 / (2**0.5 + 1e-4)])
    distinct, apart = diversity([group(1.0, 0.0)])
    assert (distinct, apart) == ([0.5], [0.0])


@pytest.mark.parametrize(
    ("words", "told"),
    [({"ratio": "x"}, "ratio"), ({"length": "x"}, "length"), ({"clip_low": 0.0}, "clip_low"), ({"kl": -1.0}, "kl")],
)
def test_settings_that_make_no_sense(words: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        GRPO(make_model(), **words)
