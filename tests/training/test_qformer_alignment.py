"""BLIP-2's first stage: what sees what in the Q-Former, and that its queries learn to read while tower and trunk stay."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer, tiny_text_tokenizer
from toys import Squares, make_config, make_model, make_template

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.mixture import Mixture, Source
from unimm.data.pairs import ImageText
from unimm.data.plan import Plan, Steps
from unimm.models.contrastive import pad_texts
from unimm.models.unified import UnifiedModel
from unimm.models.vision.projectors import ProjectorConfig
from unimm.models.vision.qformer_text import QFormerTextConfig
from unimm.training.logbook import read_numbers
from unimm.training.objectives.qformer_alignment import QFormerAlignment
from unimm.training.optimizers import Budget, OptimizerConfig
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer

QFORMER = ProjectorConfig("qformer", depth=2, num_queries=4, width=32, num_heads=4)
HEADS = QFormerTextConfig(dim=16, text_positions=40)
STAGE = Stage("qformer", {"projector": 1.0, "qformer_text": 1.0})


def make_objective() -> QFormerAlignment:
    torch.manual_seed(0)
    model = UnifiedModel(replace(make_model().config, projector=QFORMER))
    return QFormerAlignment(model, HEADS)


def make_pairs() -> Mixture:
    return Mixture([Source("pairs", Squares(), ImageText(max_positions=40))], make_template(), 0)


def test_what_sees_what() -> None:
    """Queries read as the projector does, whether a text is written beside them or not; a token sees none that follow; padding
    changes nothing."""
    objective = make_objective().eval()
    side, qformer = objective.text_side, objective.model.pixels.projector
    features = torch.randn(2, 4, 32)
    ids, mask = pad_texts([[1, 5, 6, 7, 2], [1, 9, 2]])
    queries, logits = side.write(qformer, features, ids, mask)
    torch.testing.assert_close(queries, qformer.read(features), rtol=1e-5, atol=1e-5)
    changed = ids.clone()
    changed[0, 3] = 8
    again = side.write(qformer, features, changed, mask)[1]
    torch.testing.assert_close(again[0, :3], logits[0, :3], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(again[0, 3], logits[0, 3], atol=1e-3)
    short = pad_texts([[1, 9, 2]])
    torch.testing.assert_close(side.write(qformer, features[1:], *short)[1][0], logits[1, :3], rtol=1e-5, atol=1e-5)
    matched = side.match(qformer, features, ids, mask)
    torch.testing.assert_close(side.match(qformer, features[1:], *short), matched[1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(side.match(qformer, features.flip(0), ids, mask), matched, atol=1e-4)
    torch.testing.assert_close(side.read_text(qformer, *short), side.read_text(qformer, ids, mask)[1:], rtol=1e-5, atol=1e-5)


def test_counts_are_those_of_the_sums() -> None:
    objective = make_objective()
    (batch,) = Steps(Plan(make_pairs(), 64, 8))[0].batches
    objective.check(batch)
    outputs, counts = objective(batch), objective.counts(batch)
    num = len(outputs["texts"])
    sums = objective.joint_loss(outputs, {name: slice(0, len(tensor)) for name, tensor in outputs.items()})
    assert {name: float(one.count.detach()) for name, one in sums.items()} == {name: float(one) for name, one in counts.items()}
    assert float(counts["match"]) == num > 5 and all(0 <= one.correct <= one.count and one.loss > 0 for one in sums.values())


def test_queries_learn_to_read_and_what_is_frozen_stays(tmp_path: Path) -> None:
    """All three losses fall; the second stage's model is the first one's, with its text side beside it."""
    objective = make_objective()
    before = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    optimizer = OptimizerConfig(lr=3e-3, muon_lr=0.02)
    config = make_config(1, stage=STAGE, optimizer=optimizer, num_rows=8, budget=Budget(max_steps=30))
    trainer = Trainer(objective, make_pairs(), config, tmp_path, "cpu")
    trainer.fit()
    lines = read_numbers(tmp_path / "metrics.jsonl")
    assert lines[-1]["loss/text"] < 0.8 * lines[0]["loss/text"] and lines[-1]["loss/match"] < 1.1 * lines[0]["loss/match"]
    assert lines[-1]["loss/contrastive"] < 0.9 * lines[0]["loss/contrastive"]
    moved = {name for name, tensor in objective.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("pixels.projector.") for name in moved)
    tokenizer = tiny_text_tokenizer()
    ModelBundle(trainer.model, {DEFAULT: tiny_image_tokenizer()}, tokenizer, heads=trainer.heads).save(tmp_path / "model")
    bundle = ModelBundle.load(tmp_path / "model")
    assert bundle.contrastive is None and bundle.heads["qformer_text"].config == objective.text_side.config
    other = make_objective()
    other.load_heads(bundle.heads)
    assert torch.equal(other.text_side.match_head.weight, objective.text_side.match_head.weight)


def test_another_projector_is_refused() -> None:
    with pytest.raises(ValueError, match="trains a Q-Former, and the projector is a MLP: add projector=qformer"):
        QFormerAlignment(make_model())
    assert np.isclose(float(make_objective().text_side.temperature.logit_scale.exp()), 1 / 0.07)
