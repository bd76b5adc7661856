"""Objectives that compare sequences: however a step is cut, its gradients are those of a plain loop over its samples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_image_tokenizer, tiny_text_tokenizer
from joint_toys import (
    CASES,
    HEADS,
    SIGMOID,
    STAGES,
    Pairwise,
    first_gradients,
    make_joint_trainer,
    make_mixture_of,
    make_objective,
)
from torch import Tensor
from toy_trainings import assert_equal
from toys import EVERYTHING, Squares, make_mixture, make_model, make_steps, make_template

from unimm.batch import Batch, collate
from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.pairs import ImageText
from unimm.data.plan import Plan, Steps
from unimm.models.contrastive import ContrastiveConfig, ContrastiveHeads, pad_texts
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind, Sample, Segment, Sequence
from unimm.training.held_out_loss import HeldOut
from unimm.training.logbook import read_numbers
from unimm.training.objectives.contrastive import Contrastive, content_keys, load_head
from unimm.training.objectives.kto import KTO
from unimm.training.objectives.preferences import Preferences, SimPO
from unimm.training.objectives.qformer_alignment import QFormerAlignment
from unimm.training.optimizers import Budget, OptimizerConfig
from unimm.training.trainable_parts import freeze, hold_frozen


def samples_of_step(name: str) -> list[Sample]:
    """What the first step holds."""
    mixture = make_mixture_of(name)
    return [mixture.sample(sample) for sample in Steps(Plan(mixture, 64, 8))[0].samples]


def plain_gradients(name: str) -> dict[str, Tensor]:
    """A sample at a time, without packing, and the loss written out."""
    objective, samples = make_objective(name), samples_of_step(name)
    freeze(objective.parts(), STAGES[name])
    if isinstance(objective, Preferences):
        loss = plain_preferences(objective, samples)
    elif isinstance(objective, Pairwise):
        loss = torch.stack([plain_pair(objective, sample) for sample in samples]).mean()
    elif isinstance(objective, QFormerAlignment):
        loss = plain_qformer(objective, samples)
    else:
        assert isinstance(objective, Contrastive)
        loss = plain_contrast(objective, samples)
    loss.backward()
    return {**{key: p.grad for key, p in objective.named_parameters() if p.grad is not None}, "loss": loss.detach()}


def plain_pair(objective: Pairwise, sample: Sample) -> Tensor:
    gains = []
    for sequence in sample.sequences:
        batch = collate([[sequence]])
        told = [model.log_probs(batch).sum() for model in (objective.model, objective.frozen["reference"])]  # pyright: ignore
        gains.append(told[0] - told[1].detach())
    return -F.logsigmoid(0.1 * (gains[0] - gains[1]))


def plain_preferences(objective: Preferences, samples: list[Sample]) -> Tensor:
    """Sequence by sequence; texts and drawings have a mean each."""
    total = torch.zeros((), dtype=torch.float64)
    told = [[plain_sequence(objective, one) for one in sample.sequences] for sample in samples]
    for kind, name in ((Kind.TEXT, "text"), (Kind.CODES, "codes")):
        own = [(sample, one) for sample, one in zip(samples, told, strict=True) if kind == learned_kind(sample)]
        pairs = [one for _, one in own if len(one) > 1]
        beta = objective.beta[name]
        assert len(pairs) >= 2
        if isinstance(objective, KTO) and objective.mismatched:
            good, bad, others = ([one[place][1] for one in pairs if len(one) > place and one[place][2]] for place in (0, 1, 3))
            baseline = max(0.0, float(torch.stack(others).detach().mean()))
            assert good and bad and len(others) == len(pairs) and baseline > 0.1
            lost = 1.5 * sum(1 - torch.sigmoid(beta * (gain - baseline)) for gain in good)
            total = total + (lost + sum(1 - torch.sigmoid(beta * (baseline - gain)) for gain in bad)) / (len(good) + len(bad))
        elif isinstance(objective, KTO):
            gains = [torch.stack([gain for _, gain, _ in half]) for half in zip(*[one[:2] for one in pairs], strict=True)]
            baselines = [max(0.0, float(half.detach().mean())) for half in gains]
            lost = 1.5 * (1 - torch.sigmoid(beta * (gains[0] - baselines[1]))).sum()
            lost = lost + (1 - torch.sigmoid(beta * (baselines[0] - gains[1]))).sum()
            total = total + lost / (2 * len(pairs))
        else:
            losses = []
            for (chosen, gain, size), (rejected, loss, number), *_ in pairs:
                if isinstance(objective, SimPO):
                    margin = beta * (chosen / size - rejected / number) - objective.gamma[name]
                    losses.append(-F.logsigmoid(margin))
                else:
                    margin = beta * (gain - loss)
                    losses.append(-0.9 * F.logsigmoid(margin) - 0.1 * F.logsigmoid(-margin))
            total = total + torch.stack(losses).mean()
        anchors = [one[2] if len(one) > 2 and one[2][2] else one[0] for _, one in own]
        likelihood = torch.stack([one for one, _, _ in anchors]).sum() / sum(size for *_, size in anchors)
        total = total - objective.anchor * likelihood
    return total


def learned_kind(sample: Sample) -> Kind:
    return next(segment.kind for sequence in sample.sequences for segment in sequence.segments if segment.learn)


def plain_sequence(objective: Preferences, sequence: Sequence) -> tuple[Tensor, Tensor, int]:
    """Its log-probability, what that gained over the reference, and how much is learned; by logits and a softmax."""
    batch = collate([[sequence]])
    models = [objective.model, objective.frozen.get("reference", objective.model)]
    own, told = (plain_log_prob(model, batch) for model in models)  # pyright: ignore[reportArgumentType]
    return own, own - told.detach(), int(batch.weights.sum())


def plain_log_prob(model: UnifiedModel, batch: Batch) -> Tensor:
    if not batch.weights.any():
        return torch.zeros((), dtype=torch.float64)
    hidden_BTD = model.hidden(model.embed(batch), batch.attention_mask(), batch.positions)
    learned_BT = batch.weights > 0
    port = model.vocabulary_ports[Kind.of(int(batch.target_kinds[learned_BT][0]))]
    return port.logits(hidden_BTD[learned_BT]).log_softmax(-1).gather(1, batch.targets[learned_BT][:, None]).sum()


def plain_contrast(objective: Contrastive, samples: list[Sample]) -> Tensor:
    heads = objective.contrastive.with_tower(objective.model.pixels.tower)
    looked, told = plain_pairs(samples)
    images = torch.cat([heads.embed_images(one) for one in looked])
    texts = torch.cat([heads.embed_texts(*pad_texts([ids])) for ids in told])
    scores = heads.logit_scale.exp() * images @ texts.T + (0 if heads.logit_bias is None else heads.logit_bias)
    return plain_partners(scores, looked, told, objective.loss)


def plain_qformer(objective: QFormerAlignment, samples: list[Sample]) -> Tensor:
    side, qformer = objective.text_side, objective.model.pixels.projector
    looked, told = plain_pairs(samples)
    written = [
        side.write(qformer, objective.model.pixels.tower(one), *pad_texts([ids])) for one, ids in zip(looked, told, strict=True)
    ]
    images = torch.cat([side.project_queries(queries) for queries, _ in written])
    texts = torch.cat([side.read_text(qformer, *pad_texts([ids])) for ids in told])
    scores = side.temperature.logit_scale.exp() * torch.stack([(images @ text).amax(1) for text in texts], dim=1)
    logits, targets = torch.cat([one[0, :-1] for _, one in written]), torch.tensor([i for ids in told for i in ids[1:]])
    return plain_partners(scores, looked, told, "softmax") + F.cross_entropy(logits, targets)


def plain_pairs(samples: list[Sample]) -> tuple[list[Tensor], list[list[int]]]:
    """Each image's pixels, (1, 3, H, W), and the ids of its text."""
    looked = [torch.from_numpy(sample.sequences[0].segments[0].image.open())[None] for sample in samples]  # pyright: ignore
    return looked, [list(sample.sequences[1].segments[0].content_ids) for sample in samples]


def plain_partners(scores: Tensor, looked: list[Tensor], told: list[list[int]], kind: str) -> Tensor:
    """The mean loss over pairs, of the scores of all images with all texts."""
    losses = []
    for i in range(len(told)):
        same = [torch.equal(looked[i], looked[j]) or told[i] == told[j] for j in range(len(told))]
        others = [j for j in range(len(told)) if j == i or not same[j]]
        place = torch.tensor(others.index(i))
        if kind == "softmax":
            losses.append((F.cross_entropy(scores[i, others], place) + F.cross_entropy(scores[others, i], place)) / 2)
        else:
            signs = torch.where(torch.arange(len(others)) == place, 1.0, -1.0)
            losses.append(-F.logsigmoid(signs * scores[i, others]).sum())
    return torch.stack(losses).mean()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() >= expected.keys() and len(expected) > 20
    for key, tensor in found.items():
        relative = 1e-6 if tensor.dtype == torch.float64 else 1e-4
        wanted = expected.get(key, torch.zeros_like(tensor))  # a part that nothing of the step goes through has zeros, or none
        torch.testing.assert_close(
            tensor, wanted, rtol=relative, atol=relative * (1e-2 + 0.1 * float(wanted.abs().max())), msg=key
        )


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_a_plain_loop(tmp_path: Path, name: str) -> None:
    """Packed, with 1 and with 3 micro-batches, whose activations are computed again (`test_samples_in_processes` has 2
    processes). Negatives are all others of a step but those of the same text or image, of which 12 records make sure."""
    expected = plain_gradients(name)
    for num_micro_batches, mode in ((1, "none"), (3, "full")):
        trainer = make_joint_trainer(tmp_path / mode, name, num_micro_batches, activation_checkpointing=mode)
        assert_close(first_gradients(trainer), expected)


def test_log_probs_are_those_of_the_logits() -> None:
    """Packed, text and codes; their weighted sum is the loss."""
    model, (batch,) = make_model(), make_steps(make_mixture())[0].batches
    log_probs_BT = model.log_probs(batch)
    if not batch.weights.any():
        return torch.zeros((), dtype=torch.float64)
    hidden_BTD = model.hidden(model.embed(batch), batch.attention_mask(), batch.positions)
    for kind, port in model.vocabulary_ports.items():
        chosen = batch.target_kinds == kind
        wanted = port.logits(hidden_BTD[chosen]).log_softmax(-1).gather(1, batch.targets[chosen][:, None])[:, 0]
        torch.testing.assert_close(log_probs_BT[chosen], wanted, rtol=1e-4, atol=1e-5)
        loss = -(log_probs_BT * batch.weights)[chosen].sum()
        torch.testing.assert_close(model(batch)[kind].loss, loss, rtol=1e-4, atol=1e-4)
    assert not log_probs_BT[batch.weights == 0].any()


def test_a_frozen_module_is_held_and_no_part_of_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_joint_trainer(tmp_path, "pairwise")
    told = capsys.readouterr().out
    assert "beside it: reference" in told and told.count("frozen") == 1
    reference = trainer.objective.frozen["reference"]
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    trainer.fit()
    assert_equal(dict(reference.state_dict()), before)
    assert not reference.training and not any(p.requires_grad for p in reference.parameters())
    assert not any("reference" in name for name in trainer.tensors())
    with pytest.raises(ValueError, match="'reference' shares weights with what is trained: give the objective a copy"):
        hold_frozen({"reference": trainer.model}, trainer.objective, torch.device("cpu"))


def test_towers_learn_and_resume_to_the_bit_and_travel_with_the_bundle(tmp_path: Path) -> None:
    """Which text belongs to which of 12 pictures, averaged weights, too; the held-out loss is among what is held out."""
    words = {"optimizer": OptimizerConfig(lr=3e-3, muon_lr=0.01), "ema_decay": 0.9, "budget": Budget(max_steps=24)}
    whole = make_joint_trainer(tmp_path / "whole", "softmax", 2, **words)
    whole.fit()
    make_joint_trainer(tmp_path / "parts", "softmax", 2, **{**words, "budget": Budget(max_steps=5)}).fit()
    again = make_joint_trainer(tmp_path / "parts", "softmax", 2, **words)
    assert again.step == 5
    again.fit()
    assert_equal(again.tensors(), whole.tensors())
    lines = read_numbers(tmp_path / "whole/metrics.jsonl")
    assert lines[-1]["loss/contrastive"] < 0.85 * lines[0]["loss/contrastive"]
    last = [line["accuracy/contrastive"] for line in lines[-4:]]
    assert sum(last) / len(last) > 3 * lines[0]["accuracy/contrastive"], "one step in so small a set is chance"
    assert lines[-1]["speed/images_per_second"] > 0
    held = HeldOut(make_mixture_of("softmax"), 64, 8)
    told = held.losses(whole.objective, {}, whole.accelerator, lambda: False)
    assert told is not None and told["loss_contrastive"] < lines[0]["loss/contrastive"]
    with whole.averaged():
        tokenizer = tiny_text_tokenizer()
        bundle = ModelBundle(whole.model, {DEFAULT: tiny_image_tokenizer()}, tokenizer, heads=whole.objective.heads())
        bundle.save(tmp_path / "model")
        pixels, texts = torch.rand(3, 3, 16, 16), pad_texts([tokenizer.sentence("A red square."), tokenizer.sentence("x")])
        here = bundle.contrastive
        assert here is not None and here.dim == 16 and here.logit_bias is None
        expected = here.embed_images(pixels), here.embed_texts(*texts), here.logit_scale.clone()
        weights = [parameter.detach().clone() for parameter in here.parameters()]
    there = ModelBundle.load(tmp_path / "model").contrastive
    assert there is not None and there.config == here.config
    found = there.embed_images(pixels), there.embed_texts(*texts), there.logit_scale
    for one, other in zip(found, expected, strict=True):  # weights lie elsewhere in memory, by which kernels round
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(there.parameters(), weights, strict=True))
    torch.testing.assert_close(found[0].norm(dim=1), torch.ones(3))
    half = ModelBundle.load(tmp_path / "model", dtype=torch.bfloat16).contrastive  # a factor of 100 would be 98.9
    for one in (half, ModelBundle.load(tmp_path / "model").change_dtype(torch.bfloat16).contrastive):
        assert one is not None and torch.equal(one.logit_scale, expected[2])
        assert one.image_projection.weight.dtype == torch.bfloat16
    fresh = Contrastive(make_model(), HEADS)
    fresh.load_heads({"contrastive": there})
    torch.testing.assert_close(fresh.contrastive.embed_texts(*texts), expected[1], rtol=1e-6, atol=1e-6)
    Contrastive(make_model(), replace(HEADS, logit_scale=50.0)).load_heads({"contrastive": there})
    for other, told in (
        (
            {"causal": False},
            r"causal is True there and False here: add objective\.heads\.causal=true, or take over other parts",
        ),
        (
            {"dim": 8, "text_heads": 4},
            r"text_heads is 2 there and 4 here: add objective.heads.dim=16 objective.heads.text_heads=2",
        ),
        ({"logit_bias": -2.0}, r"logit_bias is None there and -2.0 here: add objective\.heads\.logit_bias=null"),
    ):
        with pytest.raises(ValueError, match=told):
            Contrastive(make_model(), replace(HEADS, **other)).load_heads({"contrastive": there})
    with pytest.raises(ValueError, match="vocabulary_size is the unified model's own: start from that model as a whole"):
        load_head(there, ContrastiveHeads(replace(there.config, vocabulary_size=9)), "contrastive heads")


def test_a_stage_in_which_nothing_is_compared_is_refused(tmp_path: Path) -> None:
    for name, told in (
        ("softmax", "'contrastive' learns in stage '.*': add stage=contrastive"),
        ("qformer", "add stage=qformer"),
    ):
        with pytest.raises(ValueError, match=told):
            make_joint_trainer(tmp_path, name, stage=EVERYTHING)
    trainer = make_joint_trainer(tmp_path, "softmax")
    trainer.objective.requires_grad_(False)
    with pytest.raises(ValueError, match="Nothing that this objective compares is trained"):
        trainer.compute_gradient(trainer.data()[0])


def test_padding_changes_no_text() -> None:
    for config in (HEADS, SIGMOID, replace(HEADS, text_pool="mean", causal=False)):
        heads = ContrastiveHeads(replace(config, vocabulary_size=50, vision_width=32, vision_heads=2))
        texts = [[1, 5, 6, 7, 2], [1, 9, 2]]
        together = heads.embed_texts(*pad_texts(texts))
        for attention in ("documents", "sdpa"):
            heads.set_attention(attention)
            alone = torch.cat([heads.embed_texts(*pad_texts([text])) for text in texts])
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
        assert heads.embed_texts(*pad_texts([])).shape == (0, 16)


def test_equal_contents_have_equal_keys() -> None:
    ids = torch.tensor([[3, 4, 0], [3, 4, 0], [4, 3, 0], [3, 4, 1]])
    assert len(content_keys(ids).unique()) == 3
    assert torch.equal(content_keys(ids[:3]), content_keys(ids[:3, :2]))
    pixels = torch.rand(64, 3, 8, 8)
    assert len(content_keys(torch.cat([pixels, pixels])).unique()) == 64
    assert len(content_keys(torch.randint(1, 50, (2000, 12))).unique()) > 1990


def test_what_is_no_pair_is_refused() -> None:
    objective = make_objective("softmax")
    image = Sequence((Segment.look(np.zeros((3, 16, 16), np.float32), 4),))
    text = Sequence((Segment.text(range(50)),))
    with pytest.raises(ValueError, match="learns from pairs of one image and one text: use the view"):
        objective.check(make_steps(make_mixture())[0].batches[0])
    with pytest.raises(ValueError, match="learns from pairs"):
        objective.check(collate([[image, image]], samples=[[("a", 0), ("a", 1)]]))
    with pytest.raises(ValueError, match="A text takes 50 positions, and the text tower was made for 40"):
        objective.check(collate([[image, text]], samples=[[("a", 0), ("a", 1)]]))
    objective.check(collate([[]], num_positions=8))
    with pytest.raises(ValueError, match="Unknown contrastive loss 'hinge': use one of softmax, sigmoid"):
        Contrastive(make_model(), loss="hinge")
    with pytest.raises(ValueError, match="Unknown text_pool 'cls': use one of last, attention, mean"):
        ContrastiveConfig(text_pool="cls")
    with pytest.raises(ValueError, match="has no caption in the language 'fr'"):
        ImageText(language="fr")(Squares()[0], make_template(), np.random.default_rng(0))


def test_a_long_text_keeps_its_end() -> None:
    template = make_template()
    sample = ImageText(max_positions=6, language="en")(Squares()[0], template, np.random.default_rng(0))
    image, text = sample.sequences
    ids = text.segments[0].content_ids.tolist()
    assert image.length == 4 and len(ids) == 6
    assert (ids[0], ids[-1]) == (template.tokenizer.special.bos, template.tokenizer.special.eos)
    assert text.full_length == len(template.tokenizer.sentence(Squares()[0].captions[0].text)) > 6
