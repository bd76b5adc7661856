"""Tensors in parts of any number of files are read whole and in any blocks, and never where a part is missing."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unimm.checkpoints.tensor_shards import Part, StoredTensors, write_parts

WHOLE = {"wide": torch.arange(7 * 5.0).view(7, 5), "scalar": torch.tensor(3), "half": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three files: rows 0-2, 3-5 and 6 of one tensor, which the last has with all others."""
    rows = ((0, 3), (3, 6), (6, 7))
    for number, (first, last) in enumerate(rows):
        part = Part(WHOLE["wide"][first:last].clone(), (first, 0), (7, 5))
        others = {name: Part.whole(tensor) for name, tensor in WHOLE.items() if name != "wide" and number == 2}
        write_parts(tmp_path / f"{number}.safetensors", {"wide": part, **others})
    return [tmp_path / f"{number}.safetensors" for number in range(3)]


def test_parts_are_read_whole_and_in_blocks(paths: list[Path]) -> None:
    stored = StoredTensors(paths)
    assert stored.keys() == WHOLE.keys() and len(stored) == 3
    for name, tensor in WHOLE.items():
        assert torch.equal(stored[name], tensor) and stored[name].dtype == tensor.dtype
        assert stored.shapes[name] == tuple(tensor.shape)
        stored.copy_to(name, copy := torch.zeros(tensor.shape, dtype=torch.float64))
        assert torch.equal(copy, tensor.double()) and stored.dtype(name) == tensor.dtype
    for first, last, left, right in itertools.product(range(7), range(8), range(5), range(6)):
        if first <= last and left <= right:
            block = stored.read("wide", (first, left), (last - first, right - left))
            assert torch.equal(block, WHOLE["wide"][first:last, left:right])


def test_blocks_of_columns_too(tmp_path: Path) -> None:
    """However a tensor was cut: here into four blocks."""
    paths = []
    for row, column in itertools.product((0, 4), (0, 2)):
        block = WHOLE["wide"][row : row + 4, column : (2 if column == 0 else 5)]
        paths.append(tmp_path / f"{row}-{column}.safetensors")
        write_parts(paths[-1], {"wide": Part(block.clone(), (row, column), (7, 5))})
    assert torch.equal(StoredTensors(paths)["wide"], WHOLE["wide"])
    assert torch.equal(StoredTensors(paths).read("wide", (3, 1), (2, 3)), WHOLE["wide"][3:5, 1:4])


def test_names_under_a_prefix(tmp_path: Path) -> None:
    write_parts(tmp_path / "all", {"a/x": Part.whole(torch.ones(2)), "b/x": Part.whole(torch.zeros(3))})
    under = StoredTensors([tmp_path / "all"]).under("b/")
    assert list(under) == ["x"] and under.shapes == {"x": (3,)} and under["x"].tolist() == [0, 0, 0]


def test_one_file_of_whole_tensors_is_a_plain_one(tmp_path: Path) -> None:
    """Any reader of safetensors opens it, and any file of safetensors is opened."""
    write_parts(tmp_path / "ours", {name: Part.whole(tensor) for name, tensor in WHOLE.items()})
    assert all(torch.equal(tensor, WHOLE[name]) for name, tensor in load_file(tmp_path / "ours").items())
    save_file(WHOLE, tmp_path / "theirs")
    assert all(torch.equal(tensor, WHOLE[name]) for name, tensor in StoredTensors([tmp_path / "theirs"]).items())


def test_what_is_missing_or_damaged_is_said(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="does not hold all of wide: copy the folder again"):
        StoredTensors(paths[1:])
    paths[0].write_bytes(paths[0].read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"0\.safetensors is damaged or cut short"):
        StoredTensors(paths)
