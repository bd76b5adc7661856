"""Tensors in one safetensors file or in several, each with parts of them: many processes write, any number of them reads.

A part is a block of its tensor, as a process with shards holds one: of rows, as a rule. A file's metadata says, under `parts`,
where the parts in it begin and what shape their tensors have; a tensor that it does not name lies there whole:

    {"weights/a": {"begins": [512, 0], "shape": [1024, 64]}}

So a file explains itself, and what reads it needs no list that somebody else wrote. Files are mapped, not read: of a tensor
only the pages are read that are used.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PARTS = "parts"


@dataclass(frozen=True)
class Part:
    """A block of a tensor. begins: where it lies in it, by dimension. shape: of the whole tensor."""

    tensor: Tensor
    begins: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, tensor: Tensor) -> "Part":
        """A tensor that is in one piece."""
        return cls(tensor, (0,) * tensor.dim(), tuple(tensor.shape))


def write_parts(path: Path, parts: Mapping[str, Part]) -> None:
    """Write parts by the names of their tensors into one file. They lie in main memory, contiguous, each apart from the others.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    cut = {
        name: {"begins": part.begins, "shape": part.shape}
        for name, part in parts.items()
        if tuple(part.tensor.shape) != part.shape
    }
    metadata = {"format": "pt", **({PARTS: json.dumps(cut)} if cut else {})}
    save_file({name: part.tensor for name, part in parts.items()}, path, metadata=metadata)


@dataclass(frozen=True)
class _Stored:
    """A part in a file, under its name there."""

    file: Any
    name: str
    begins: tuple[int, ...]
    lengths: tuple[int, ...]

    def read(self) -> Tensor:
        """Mapped from the file."""
        return self.file.get_tensor(self.name)


class StoredTensors(Mapping[str, Tensor]):
    """Tensors in files, whole by name; `read` gives blocks of them. shapes: of the whole tensors.

    Raises:
        ValueError: a file is damaged, or together they do not hold their tensors whole.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, list[_Stored]] = {}
        for path in paths:
            try:
                self._add(safe_open(path, framework="pt"))
            except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
                raise ValueError(f"{path} is damaged or cut short ({error}): copy it again.") from error
        for name, parts in self._parts.items():
            if sum(prod(part.lengths) for part in parts) != prod(self.shapes[name]):
                raise ValueError(f"{paths[0].parent} does not hold all of {name}: copy the folder again, with all its files.")

    def _add(self, file: Any) -> None:
        cut = json.loads((file.metadata() or {}).get(PARTS, "{}"))
        for name in file.keys():  # noqa: SIM118 (no dict)
            lengths = tuple(file.get_slice(name).get_shape())
            place = cut.get(name, {"begins": (0,) * len(lengths), "shape": lengths})
            self.shapes[name] = tuple(place["shape"])
            self._parts.setdefault(name, []).append(_Stored(file, name, tuple(place["begins"]), lengths))

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in one piece; where it lies in one it is mapped, else it is put together in memory."""
        return self.read(name, (0,) * len(self.shapes[name]), self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def read(self, name: str, begins: tuple[int, ...], lengths: tuple[int, ...]) -> Tensor:
        """The block of a tensor that begins there and is so long."""
        parts = self._parts[name]
        if len(parts) == 1:
            return parts[0].read()[tuple(slice(b, b + n) for b, n in zip(begins, lengths, strict=True))]
        block = torch.empty(lengths, dtype=self.dtype(name))
        for part in parts:
            first = [max(pair) for pair in zip(begins, part.begins, strict=True)]
            last = [min(b + n, c + m) for b, n, c, m in zip(begins, lengths, part.begins, part.lengths, strict=True)]
            if all(one < other for one, other in zip(first, last, strict=True)):
                here, there = (
                    tuple(slice(one - at, other - at) for one, other, at in zip(first, last, origin, strict=True))
                    for origin in (begins, part.begins)
                )
                block[here] = part.read()[there]
        return block

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor."""
        return self._parts[name][0].read().dtype

    def copy_to(self, name: str, target: Tensor) -> None:
        """Write a whole tensor into another one of its shape, part by part and so without memory of its own."""
        for part in self._parts[name]:
            place = tuple(slice(begin, begin + length) for begin, length in zip(part.begins, part.lengths, strict=True))
            target[place].copy_(part.read())

    def is_mapped(self, name: str) -> bool:
        """Whether a tensor lies in one piece, and takes no memory of its own when it is read."""
        return len(self._parts[name]) == 1

    def under(self, prefix: str) -> "StoredTensors":
        """Those whose names begin so, without it."""
        names = [name for name in self._parts if name.startswith(prefix)]
        chosen = StoredTensors([])
        chosen.shapes = {name.removeprefix(prefix): self.shapes[name] for name in names}
        chosen._parts = {name.removeprefix(prefix): self._parts[name] for name in names}
        return chosen
