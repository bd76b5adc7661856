"""Where a model's files are and what they hold: a folder or hub id to config.json and tensors, mapped from disk.

Weights lie in safetensors. Pickles are opened only where the caller says so (`unimm convert --from-pickle`), and then with
PyTorch's own reader of plain tensors (`weights_only=True`); else a folder that has nothing better is refused, with what to do.

Tensors are put into models without memory (`empty_parameters`), whose parameters have shapes and dtypes alone until then.
Buffers are made for real: what no file holds (rotary frequencies, masks) is then right by itself. Nothing is drawn at random
for parameters that hold nothing, which also spares the imports of the operators that would work out the shape of it.
"""

import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from unimm.checkpoints.hub import download_model
from unimm.runtime.atomic_files import read_json

DEMO = Path(__file__).resolve().parent.parent / "demo"
"""The model that comes with the package: what the name "demo" stands for, wherever a model is named."""

CONFIG = "config.json"
RUN = "metrics.jsonl"
"""By which the folder of a training is known."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja"]  # of a hub repository; code and pickles stay there
MAPPED_BYTES = 2**28  # read from a mapping before it is renewed
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_folder(path_or_hub_id: str | Path, from_pickle: bool = False, downloaded: list[str] | None = None) -> Path:
    """The folder of a model: a local one as it is, "demo", a hub id's in huggingface_hub's cache (downloaded if need be).

    from_pickle: download pickled weights too. downloaded: patterns of the files that are taken from a hub repository instead.

    Raises:
        ValueError: neither is there, or it is that of a training that has not ended.
    """
    if path_or_hub_id == "demo":  # one's own of that name is "./demo"
        return DEMO
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file: name the model's folder.")
    _check_finished(path)
    name = str(path_or_hub_id)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(
            f"There is no folder {name}: name a model's folder, or a hub id such as deepseek-community/Janus-Pro-1B."
        )
    return download_model(name, downloaded or ([*DOWNLOADED, "*.bin"] if from_pickle else DOWNLOADED))


def _check_finished(path: Path) -> None:
    """Raises ValueError where a training is to leave its model there, and has not ended yet."""
    run = path.parent
    if path.name not in ("model", "best") or not (run / RUN).is_file():
        return
    if path.name == "best":
        raise ValueError(f"{run} is a training without a validation yet, so it has no best model: see trainer.validate_every.")
    best = f" (its best model so far is {run / 'best'})" if (run / "best" / CONFIG).is_file() else ""
    raise ValueError(f"{run} is a training that is not finished: the same line goes on with it, and then writes {path}{best}.")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. ValueError: it is missing or no JSON object."""
    config = read_json(folder / CONFIG)
    if config is None:
        if (folder / "model" / CONFIG).is_file():
            raise ValueError(f"{folder} is no model but holds one: name {folder / 'model'}.")
        _check_finished(folder / "model")
        raise ValueError(f"{folder} has no config.json: name a folder written by engine.save or by transformers.")
    return config


class WeightFiles(ABC):
    """The tensors of a folder, read one by one onto a device. `shapes`: what they are, by name."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, str(device)
        self.shapes: dict[str, tuple[int, ...]] = {}

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the device, in the stored dtype. On a CPU it is the mapped file; writing to it changes no file."""

    def leave_out(self, name: str) -> None:
        """Treat a tensor as not there."""
        del self.shapes[name]

    def check(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Nothing left over on either side. ValueError: names what is missing, extra or has another shape."""
        both = expected.keys() & self.shapes.keys()
        misshaped = [name for name in both if self.shapes[name] != expected[name]]
        kinds = {
            "missing": expected.keys() - both,
            "unknown": self.shapes.keys() - both,
            "of another shape": [f"{name} {self.shapes[name]} instead of {expected[name]}" for name in misshaped],
        }
        if problems := [f"{len(names)} {kind} ({_show(names)})" for kind, names in kinds.items() if names]:
            raise ValueError(
                f"The weights in {self._folder} do not fit its config.json: {', '.join(problems)}; "
                f"the two must come from the same model."
            )


class SafetensorFiles(WeightFiles):
    """Raises ValueError: one that the index names is missing, or one is damaged."""

    def __init__(self, folder: Path, device: torch.device, paths: list[Path]) -> None:
        super().__init__(folder, device)
        self._paths: dict[str, Path] = {}
        self._open_files: dict[Path, Any] = {}
        self._bytes_read = 0
        for path in paths:
            file = self._open(path)
            for name in file.keys():  # noqa: SIM118 (no dict)
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
                self._paths[name] = path

    def read(self, name: str) -> Tensor:
        if self._bytes_read > MAPPED_BYTES:
            # Pages that were read stay in memory until their mapping goes; mappings that a tensor still shares stay.
            self._open_files.clear()
            self._bytes_read = 0
        path = self._paths[name]
        tensor = (self._open_files.get(path) or self._open(path)).get_tensor(name)
        self._bytes_read += tensor.nbytes
        return tensor

    def _open(self, path: Path) -> Any:
        try:
            self._open_files[path] = safe_open(path, framework="pt", device=self._device)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or cut short ({error}): copy or download it again.") from error
        return self._open_files[path]


class PickleFiles(WeightFiles):
    """PyTorch's .bin files, read as tensors and nothing else. Raises ValueError: one is damaged, or holds more than tensors."""

    def __init__(self, folder: Path, device: torch.device, paths: list[Path]) -> None:
        super().__init__(folder, device)
        self._tensors: dict[str, Tensor] = {}
        for path in paths:
            self._tensors |= self._open(path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)

    def _open(self, path: Path) -> dict[str, Tensor]:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} holds more than tensors, which is never run: ask its author for safetensors.") from error
        except (RuntimeError, OSError, EOFError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path} is damaged or cut short ({reason}): copy or download it again.") from error
        if not isinstance(content, dict) or not all(torch.is_tensor(tensor) for tensor in content.values()):
            raise ValueError(f"{path} holds no dictionary of tensors: it is not the weights of a model.")
        return content


def open_weights(folder: Path, device: torch.device, from_pickle: bool = False) -> WeightFiles:
    """The weights of a folder: safetensors, or, if `from_pickle` and there are none, PyTorch's .bin files.

    Raises:
        ValueError: there are none, only pickled ones, one that an index names is missing, or one is damaged.
    """
    if paths := _weight_paths(folder, SINGLE, INDEX):
        return SafetensorFiles(folder, device, paths)
    if from_pickle and (paths := _weight_paths(folder, PICKLED_SINGLE, PICKLED_INDEX)):
        return PickleFiles(folder, device, paths)
    if not from_pickle and any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise ValueError(
            f"{folder} has pickled weights only, which load never opens: run `unimm convert SOURCE OUT --from-pickle` once."
        )
    raise ValueError(
        f"{folder} has a config.json but no {SINGLE}: download it whole, or, where a repository has pickled weights only, "
        f"run `unimm convert SOURCE OUT --from-pickle`."
    )


def _weight_paths(folder: Path, single: str, index: str) -> list[Path]:
    """The weight files under these names; empty when there are none. ValueError: the index names one that is missing."""
    if listed := read_json(folder / index):
        names = sorted(set(listed.get("weight_map", {}).values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder} lacks {_show(missing)}, named in {index}: copy or download the folder again.")
        return [folder / name for name in names]
    return [folder / single] if (folder / single).is_file() else []


def _show(names: Any, most: int = 5) -> str:
    shown = sorted(names)[:most]
    return ", ".join(shown) + (", ..." if len(names) > most else "")


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Modules that this thread makes in here have their parameters on the device "meta"."""
    thread = get_ident()

    def emptied(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or get_ident() != thread:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(cast(Any, emptied))  # of all threads: hence the thread's number
    try:
        with _NothingIsWritten():
            yield
    finally:
        hook.remove()


class _NothingIsWritten(TorchFunctionMode):
    """What writes into a tensor without memory, such as an initialisation, is passed over."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # as torch.nn.init calls it
        name = getattr(func, "__name__", "")
        if isinstance(target, torch.Tensor) and target.is_meta and name.endswith("_") and not name.endswith("__"):
            return target
        return func(*args, **kwargs)
