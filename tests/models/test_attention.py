"""Attention within documents: every way gives the same losses and gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from toys import make_mixture, make_model
from transformers.integrations import flex_attention as integration

from unimm.batch import Batch, collate
from unimm.models.attention import attend_by_document, document_sizes
from unimm.models.unified import UnifiedModel
from unimm.runtime.devices import why_not_compile


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Rows of several documents, with padding, and one of nothing."""
    mixture = make_mixture()
    samples = [mixture.sequence(sample) for sample in mixture.samples(0, 9)]
    return collate([samples[:3], samples[3:4], [], samples[4:]], num_positions=256)


def learn(model: UnifiedModel, batch: Batch, way: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch and its gradients."""
    model.zero_grad()
    model.set_attention(way)
    loss = torch.stack([tally.loss for tally in model(batch).values()]).sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[1, 4], ids=["one head of keys", "four"])
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    config = make_model().config
    torch.manual_seed(1)
    return UnifiedModel(replace(config, trunk={**config.trunk, "num_key_value_heads": request.param})).double()


def test_document_by_document_is_the_same(model: UnifiedModel, batch: Batch) -> None:
    expected, gradients = learn(model, batch, "sdpa")
    loss, others = learn(model, batch, "documents")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-9 * float(gradient.abs().max()) + 1e-12, msg=name)


def test_blocks_are_the_same(model: UnifiedModel, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward alone, and not compiled: on a CPU there is no more of it."""
    monkeypatch.setattr(
        integration, "compile_friendly_flex_attention", lambda *qkv, training, **more: flex_attention(*qkv, **more)
    )
    model.float()
    with torch.no_grad():
        model.set_attention("sdpa")
        expected = model(batch)
        model.set_attention("flex_attention")
        for kind, tally in model(batch).items():
            torch.testing.assert_close(tally.loss, expected[kind].loss, rtol=1e-6, atol=0)


@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=4))
def test_sizes_are_those_of_the_documents(rows: list[list[int]]) -> None:
    """Neighbours of the same number in two rows are two documents; what is left of a row is padding."""
    width = max(1, *(sum(row) for row in rows)) if rows else 1
    documents = torch.zeros(len(rows), width, dtype=torch.long)
    expected = []
    for index, row in enumerate(rows):
        start = 0
        for number, size in enumerate(row, start=1):
            documents[index, start : start + size] = number
            start += size
        expected += [*row, *([start - width] if start < width else [])]
    assert document_sizes(documents).tolist() == expected


def test_dropout_is_of_training_alone(batch: Batch) -> None:
    model = make_model()
    plain = learn(model, batch, "documents")[0]
    for module in model.trunk.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    assert learn(model, batch, "documents")[0] == plain
    model.train()
    assert learn(model, batch, "documents")[0] != plain


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_backward_pass_is_the_gradient(dropout: float) -> None:
    """Numerically, with the same numbers dropped each time; padding has none."""
    sizes = torch.tensor([3, -2, 1, 5, -1])
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(1, 2, 12, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3)]

    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Module().train()
        return attend_by_document(module, *qkv, None, scaling=0.7, dropout=dropout, sizes=sizes)[0]

    assert torch.autograd.gradcheck(attend, qkv)
    seen = attend(*qkv)
    assert not seen[0, 3:5].any() and not seen[0, 11].any()
    assert dropout or seen[0, [0, 5, 6]].all()


def test_compiled_layers_learn_the_same(batch: Batch) -> None:
    if (reason := why_not_compile()) is not None:
        pytest.skip(reason)
    model = make_model()
    expected, gradients = learn(model, batch, "documents")
    model.compile_layers(dynamic=True)
    loss, others = learn(model, batch, "documents")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-9, msg=name)
