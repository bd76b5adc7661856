"""Each element of a checkpoint is written by exactly one process, all write about as much, and any other number reads it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from unimm.checkpoints.tensor_shards import StoredTensors, write_parts
from unimm.training.checkpoint import apart
from unimm.training.own_parts import own_parts, read_like
from unimm.training.sharding import Sharding

SHAPES = {"embedding": (37, 8), "matrix": (16, 16), "bias": (3,), "tower": (64, 8), "step": ()}
WHOLE = {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for name, shape in SHAPES.items()}
NEVER_CUT = ("tower", "step")


@contextmanager
def process(number: int, count: int) -> Iterator[None]:
    """This one is one of so many, that never exchange anything."""
    distributed.init_process_group("fake", store=FakeStore(), rank=number, world_size=count)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def held(sharding: Sharding, count: int) -> dict[str, torch.Tensor]:
    """What this process holds of all tensors; a frozen tower and counters are held by all."""
    if sharding.strategy == "ddp":
        return dict(WHOLE)
    shape = sharding.mesh_shape(count)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
    placements = [Replicate(), Shard(0)][-len(shape) :]
    number = mesh.get_local_rank("shards")

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        chunks = tensor.chunk(shape[-1])
        own = chunks[number] if number < len(chunks) else tensor[:0]
        return DTensor.from_local(own, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())

    return {name: tensor if name in NEVER_CUT else cut(tensor) for name, tensor in WHOLE.items()}


def write(folder: Path, sharding: Sharding, count: int) -> list[Path]:
    """As all processes do, one after another; gives their files."""
    paths, sizes, elements = [], [], 0
    for number in range(count):
        with process(number, count):
            parts = apart(own_parts(held(sharding, count), number, count))
        paths.append(folder / f"{number}.safetensors")
        write_parts(paths[-1], parts)
        sizes.append(sum(part.tensor.nbytes for part in parts.values()))
        elements += sum(part.tensor.numel() for part in parts.values())
    assert elements == sum(tensor.numel() for tensor in WHOLE.values()), "each is written once"
    largest = max(tensor.nbytes for tensor in WHOLE.values())
    assert max(sizes) - min(sizes) <= largest + 128, "one does not write for all; but rows do not divide"
    return paths


KINDS = {
    "1": (Sharding(), 1),
    "2, ddp": (Sharding(), 2),
    "2, fsdp": (Sharding("fsdp"), 2),
    "4, fsdp": (Sharding("fsdp"), 4),
    "4, hsdp": (Sharding("hsdp", 2), 4),
    "8, fsdp": (Sharding("fsdp"), 8),
    "8, hsdp": (Sharding("hsdp", 4), 8),
}


@pytest.mark.parametrize("written", KINDS)
def test_any_number_reads_what_any_other_wrote(written: str, tmp_path: Path) -> None:
    stored = StoredTensors(write(tmp_path, *KINDS[written]))
    assert all(torch.equal(stored[name], tensor) for name, tensor in WHOLE.items())
    for sharding, count in KINDS.values():
        for number in {0, count - 1}:
            with process(number, count):
                for name, own in held(sharding, count).items():
                    read = read_like(stored, name, own)
                    assert type(read) is type(own) and read.shape == own.shape
                    pairs = [one.to_local() if isinstance(one, DTensor) else one for one in (read, own)]
                    assert torch.equal(*pairs), (name, sharding, number)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    stored = StoredTensors(write(tmp_path, Sharding("fsdp"), 2))
    with process(0, 2):
        wide = held(Sharding("fsdp"), 2)["matrix"]
        with pytest.raises(RuntimeError, match=r"bias has the shape \(3,\), not \(16, 16\)"):
            read_like(stored, "bias", wide)
