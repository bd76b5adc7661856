"""Activations that are computed again change nothing but the memory they take."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys import make_config, make_mixture, make_model, make_trainer

from unimm.batch import Batch, collate
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind
from unimm.training.activation_checkpointing import checkpoint_activations


def kept_bytes(model: UnifiedModel, batch: Batch) -> tuple[int, torch.Tensor, list[torch.Tensor]]:
    """What a forward pass keeps for the backward pass outside of checkpoints, the loss, and all gradients."""
    sizes: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch.stack([tally.loss for tally in model(batch).values()]).sum()
    loss.backward()
    return sum(sizes.values()), loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("attention", ["sdpa", "documents"])
@pytest.mark.parametrize(("way", "most"), [("selective", 0.8), ("full", 0.5)])
def test_it_changes_nothing_but_memory(attention: str, way: str, most: float) -> None:
    mixture = make_mixture()
    batch = collate([[mixture.sequence(sample) for sample in mixture.samples(0, 6)]])
    plain, other = make_model().train(), make_model().train()
    checkpoint_activations(other.layers(), way)
    assert list(other.state_dict()) == list(plain.state_dict())
    for model in (plain, other):
        model.set_attention(attention)
    memory, loss, gradients = kept_bytes(plain, batch)
    less, same_loss, same_gradients = kept_bytes(other, batch)
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(one, two) for one, two in zip(gradients, same_gradients, strict=True))
    assert less < most * memory


def test_a_run_with_it_is_the_same_run(tmp_path: Path) -> None:
    weights = []
    for way in ("none", "selective", "full"):
        trainer = make_trainer(tmp_path / way, make_config(3, activation_checkpointing=way))
        trainer.fit()
        weights.append(trainer.model.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("way", ["none", "selective", "full"])
def test_no_images_are_learned_from_where_fused_attention_knows_none(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where it gives None for a batch of nothing; also where it would be computed again."""
    attend = F.scaled_dot_product_attention

    def as_on_a_gpu(query: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor | None:
        is_fused = torch.backends.cuda.flash_sdp_enabled()
        return None if is_fused and query.numel() == 0 else attend(query, *others, **more)

    mixture, model = make_mixture(), make_model().train()
    checkpoint_activations(model.layers(), way)
    sequences = [mixture.sequence(sample) for sample in mixture.samples(0, 9)]
    batch = collate([[one for one in sequences if all(segment.pixels is None for segment in one.segments)]])
    assert batch.num_images == 0 and batch.num_targets(Kind.CODES) > 0
    monkeypatch.setattr(F, "scaled_dot_product_attention", as_on_a_gpu)
    torch.stack([tally.loss for tally in model(batch).values()]).sum().backward()
    of_tower = [p.grad for p in model.pixels.parameters()]
    assert all(grad is not None and not grad.any() for grad in of_tower)


@pytest.mark.parametrize("name", ["attention", "activation_checkpointing"])
def test_an_unknown_way_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown {name} 'some': use one of"):
        make_config(1, **{name: "some"})
