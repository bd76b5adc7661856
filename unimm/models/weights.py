"""Where a model's files are and what they hold: a folder or hub id to config.json and tensors, mapped from safetensors.

Pickles are never opened: a folder that has nothing else is refused, with the way out.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WANTED = ["*.json", "*.safetensors", "*.jinja"]  # of a hub repository; code and pickles stay there
MAPPED_BYTES = 2**28  # read from a mapping before it is renewed
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_folder(path_or_hub_id: str | Path) -> Path:
    """The folder of a model: a local one as it is, a hub id's in huggingface_hub's cache (downloaded if need be).

    Raises:
        ValueError: neither is there.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file: name the model's folder.")
    name = str(path_or_hub_id)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(
            f"There is no folder {name}: name a model's folder, or a hub id such as deepseek-community/Janus-Pro-1B."
        )
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name} is neither a folder nor a model that the Hugging Face hub or its local cache gives ({reason}): "
            f"check the name and the network."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. ValueError: it is missing or no JSON object."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no config.json: name a folder written by engine.save or by transformers.")
    return _read_object(folder / CONFIG)


class WeightFiles:
    """The tensors of a folder's safetensors, read one by one onto a device. `shapes`: what they are, by name.

    Raises:
        ValueError: there are none, only pickled ones, one that the index names is missing, or one is damaged.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, str(device)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._paths: dict[str, Path] = {}
        self._open_files: dict[Path, Any] = {}
        self._bytes_read = 0
        for path in _weight_paths(folder):
            file = self._open(path)
            for name in file.keys():  # noqa: SIM118 (no dict)
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
                self._paths[name] = path

    def read(self, name: str) -> Tensor:
        """One tensor, on the device, in the stored dtype. On a CPU it is the mapped file; writing to it changes no file."""
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


def _weight_paths(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = sorted(set(_read_object(folder / INDEX).get("weight_map", {}).values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder} lacks {_show(missing)}, named in {INDEX}: copy or download the folder again.")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise ValueError(f"{folder} has pickled weights only, which load never opens: run `unimm convert --from-pickle` once.")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no config.json: name a folder written by engine.save or by transformers.")
    raise ValueError(
        f"{folder} has a config.json but no {SINGLE}: download it whole, or, where a repository has pickled weights only, "
        f"run `unimm convert --from-pickle`."
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: copy or download it again.")
    return content


def _show(names: Any, most: int = 5) -> str:
    shown = sorted(names)[:most]
    return ", ".join(shown) + (", ..." if len(names) > most else "")
