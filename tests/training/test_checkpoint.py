"""Checkpoints: whole or not there, the newest whole one is read, and writing never costs one that is needed."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from unimm.training.checkpoint import Checkpoint, load_checkpoint, optimizer_tensors, restore_optimizer
from unimm.training.checkpoint_writer import save_checkpoint


def checkpoint(step: int) -> Checkpoint:
    tensors = {"weights/a": torch.full((3, 2), float(step)), "weights/half": torch.ones(2, dtype=torch.bfloat16)}
    return Checkpoint(step, tensors, {"seconds": 1.5, "stage": "align"})


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir() if path.name.startswith("step-"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    written = checkpoint(7)
    folder = save_checkpoint(tmp_path, written)
    read = load_checkpoint(tmp_path)
    assert read is not None and (read.step, read.state) == (7, written.state)
    assert read.tensors.keys() == written.tensors.keys()
    for name, tensor in written.tensors.items():
        assert torch.equal(read.tensors[name], tensor) and read.tensors[name].dtype == tensor.dtype
    assert folder.name == "step-00000007"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "nothing temporary is left"


def test_shared_tensors_are_written_twice(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    save_checkpoint(tmp_path, Checkpoint(1, {"a": shared, "b": shared, "c": shared[::2]}, {}))
    read = load_checkpoint(tmp_path)
    assert read is not None and read.tensors["b"].tolist() == [0, 1, 2, 3] and read.tensors["c"].tolist() == [0, 2]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 10, 200_000_000):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert steps(tmp_path) == [10, 200_000_000]
    save_checkpoint(tmp_path, checkpoint(200_000_000), keep=1)
    assert steps(tmp_path) == [200_000_000]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "tensors cut": lambda folder: cut(folder / "tensors.safetensors"),
    "a bit flipped": lambda folder: flip(folder / "tensors.safetensors"),
    "tensors missing": lambda folder: (folder / "tensors.safetensors").unlink(),
    "state edited": lambda folder: (folder / "state.json").write_text("{}"),
    "state missing": lambda folder: (folder / "state.json").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: cut(folder / "manifest.json"),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest no object": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest binary": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_passed_over_and_said(tmp_path: Path, damage, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    damage(save_checkpoint(tmp_path, checkpoint(2)))
    read = load_checkpoint(tmp_path)
    assert read is not None and read.step == 1
    assert "step-00000002" in caplog.text
    damage(tmp_path / "step-00000001")
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_never_push_out_whole_ones(tmp_path: Path, keep: int) -> None:
    """Whoever writes beside damaged ones: what is older by number must stay."""
    for step in (10, 12):
        cut(save_checkpoint(tmp_path, checkpoint(step)) / "tensors.safetensors")
    for step in (3, 6):
        save_checkpoint(tmp_path, checkpoint(step), keep=keep)
        read = load_checkpoint(tmp_path)
        assert read is not None and read.step == step
    assert steps(tmp_path) == [3, 6][-keep:]


def test_an_interrupted_write_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, checkpoint(1))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unimm.training.checkpoint.write_json", fail)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, checkpoint(2))
    read = load_checkpoint(tmp_path)
    assert read is not None and read.step == 1
    save_checkpoint(tmp_path, checkpoint(2))
    assert steps(tmp_path) == [1, 2]
    assert json.loads((tmp_path / "step-00000002" / "state.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.AdamW(ps, lr=0.1),
        lambda ps: torch.optim.AdamW(ps, lr=0.1, fused=True),
        lambda ps: torch.optim.Muon(ps, lr=0.1),
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    ],
    ids=["adamw", "fused", "muon", "sgd"],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_optimizer_goes_on_to_the_bit(make, device: str) -> None:
    def steps_of(layer: nn.Linear, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            layer.zero_grad()
            layer(torch.full((1, 4), float(step + 1), device=device)).square().sum().backward()
            optimizer.step()

    def fresh() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3, bias=False).to(device)
        return layer, make(layer.parameters())

    (whole, optimizer), (second, resumed) = fresh(), fresh()
    steps_of(whole, optimizer, 0, 3)
    tensors = optimizer_tensors(optimizer, {id(p): n for n, p in whole.named_parameters()}, "adamw")
    second.load_state_dict(whole.state_dict())
    restored = {name: tensor.cpu() for name, tensor in tensors.items()} | {"other/weight/step": torch.tensor(1.0)}
    restore_optimizer(resumed, restored, {id(p): n for n, p in second.named_parameters()}, "adamw")
    steps_of(whole, optimizer, 3, 6)
    steps_of(second, resumed, 3, 6)
    assert torch.equal(whole.weight, second.weight)
