"""Adapters: fresh ones change nothing, learned ones are the same attached and merged, heads take none."""

import sys

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import nn
from toys import make_mixture, make_model, make_steps

from unimm.batch import Batch
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.models.lora import LoraConfig, adapted_layers, adapter_parameters, attach, merge, target_layers
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind

EVERYWHERE = LoraConfig(rank=3, alpha=6.0, targets=("trunk", "vision", "projector"))


def make_batch() -> Batch:
    """Rows with all kinds."""
    return make_steps(make_mixture())[0].batches[0]


@torch.no_grad()
def logits_of(model: UnifiedModel, batch: Batch) -> dict[Kind, torch.Tensor]:
    """(B, T, V) of both heads at every position."""
    hidden_BTD = model.eval().hidden(model.embed(batch), batch.attention_mask(), batch.positions)
    return {kind: port.logits(hidden_BTD) for kind, port in model.vocabulary_ports.items()}


@torch.no_grad()
def make_learned(model: UnifiedModel) -> UnifiedModel:
    """As if the adapters had learned something."""
    torch.manual_seed(1)
    for parameter in adapter_parameters(model):
        parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def assert_close(ours: dict[Kind, torch.Tensor], theirs: dict[Kind, torch.Tensor], atol: float = 1e-5) -> None:
    for kind, expected in theirs.items():
        torch.testing.assert_close(ours[kind], expected, atol=atol * float(expected.abs().max()), rtol=0.0)


def test_fresh_adapters_change_nothing() -> None:
    model, batch = make_model(), make_batch()
    before, names = logits_of(model, batch), set(dict(model.named_parameters()))
    attach(model, EVERYWHERE)
    after = logits_of(model, batch)
    assert all(torch.equal(after[kind], before[kind]) for kind in before)
    layers = adapted_layers(model)
    assert len(layers) == 2 * 7 + 4 + 2
    kept = {name.replace(".base_layer", "") for name, p in model.named_parameters() if not p.requires_grad}
    assert kept == names, "parameters keep their names, and none of them learns"
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        3 * sum(layer.base_layer.weight.shape) for layer in layers.values()
    )


def test_merged_is_unmerged_and_a_plain_model_again() -> None:
    model, batch = make_model(), make_batch()
    before, names = logits_of(model, batch), list(model.state_dict())
    attach(model, EVERYWHERE)
    learned = logits_of(make_learned(model), batch)
    assert any((learned[kind] - before[kind]).abs().max() > 0.02 for kind in before)
    merge(model)
    assert list(model.state_dict()) == names and not adapted_layers(model) and not hasattr(model, "peft_config")
    assert all(type(m) is nn.Linear for m in model.modules() if "Linear" in type(m).__name__)
    assert_close(logits_of(model, batch), learned)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["trunk.q_proj"], ["trunk.layers.0.self_attn.q_proj", "trunk.layers.1.self_attn.q_proj"]),
        (["vision.qkv"], ["pixels.tower.transformer.blocks.0.attn.qkv"]),
        (["vision.attn.proj"], ["pixels.tower.transformer.blocks.0.attn.proj"]),
        (["projector", "projector.0"], ["pixels.projector.0", "pixels.projector.2"]),
    ],
)
def test_targets_are_parts_or_layers_of_one_name(targets: list[str], expected: list[str]) -> None:
    model = make_model()
    assert target_layers(model, targets) == expected
    attach(model, LoraConfig(targets=targets))
    assert list(adapted_layers(model)) == expected


@pytest.mark.parametrize("target", ["text_head", "code_head", "text_embedding", "code_embedding", "tower", "q_proj"])
def test_heads_and_embeddings_take_none(target: str) -> None:
    with pytest.raises(ValueError, match=rf"'{target}' takes no adapter, trunk, vision, projector do"):
        attach(make_model(), LoraConfig(targets=["trunk", target]))


def test_a_head_that_was_given_one_all_the_same_is_not_learned_without_it() -> None:
    """Cross-entropy takes the head's own weight."""
    for head in ("text.head", "codes.head.2"):
        model = inject_adapter_in_model(PeftConfig(target_modules=[head]), make_model())
        with pytest.raises(ValueError, match="heads take no adapter"):
            model(make_batch())


def refuse(*_: object) -> None:
    """As peft does where it does not know torchao's version."""
    raise ImportError("torchao is too new")


def test_mistakes_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"the trunk has no linear layer 'qkv'; it has down_proj, .*, v_proj\."):
        attach(model, LoraConfig(targets=["trunk.qkv"]))
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is "):
            LoraConfig(**wrong)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(ValueError, match="pip install peft"):
            attach(model, LoraConfig())
    with monkeypatch.context() as patch:
        patch.setattr("peft.inject_adapter_in_model", refuse)
        with pytest.raises(ValueError, match=r"\(torchao is too new\): `pip install -U peft`"):
            attach(model, LoraConfig())
    attach(model, LoraConfig())
    with pytest.raises(ValueError, match="has adapters already"):
        attach(model, LoraConfig())


def test_decoding_with_adapters_attached_sees_them() -> None:
    """The engine's own forward reads weights, to which nothing is added yet."""
    model = make_model()
    assert DecodeModel(model).layers is not None
    attach(model, LoraConfig())
    assert DecodeModel(model).layers is None
    merge(model)
    assert DecodeModel(model).layers is not None


def test_nothing_is_dropped_unless_asked() -> None:
    assert LoraConfig().dropout == 0.0
    model, batch = make_model(), make_batch()
    attach(model, EVERYWHERE)
    learned = logits_of(make_learned(model), batch)
    model.train()
    hidden_BTD = model.hidden(model.embed(batch), batch.attention_mask(), batch.positions)
    assert torch.equal(model.text.logits(hidden_BTD), learned[Kind.TEXT])
