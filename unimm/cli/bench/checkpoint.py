"""What a benchmark measures: a folder that is named, or random weights in a size that conf/model names.

As a command it writes such a folder for several benchmarks: `python -m unimm.cli.bench.checkpoint MODEL DTYPE DEVICE FOLDER`.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unimm.bench.random_checkpoint import write_random_checkpoint
from unimm.cli.builders import fill_sizes
from unimm.cli.choices import conf_folder
from unimm.cli.compose import build, compose_config
from unimm.models.image_tokenizer.model import ImageTokenizerConfig
from unimm.models.unified import UnifiedConfig
from unimm.runtime.devices import choose_device, choose_dtype

VOCABULARY = 1024
"""Of a random model whose configuration leaves it to the text tokenizer."""


@contextmanager
def checkpoint(model: str, dtype: torch.dtype, report: Callable[[str], None]) -> Iterator[Path]:
    """The folder `model`, or for as long as it is used one with random weights of that name.

    report: called with what takes time.

    Raises:
        ValueError: there is neither a folder nor a size of that name.
    """
    if Path(model).is_dir():
        yield Path(model)
        return
    if model not in (known := known_sizes()):
        raise ValueError(f"There is no model '{model}': name a folder, or one of {', '.join(known)}.")
    with tempfile.TemporaryDirectory() as folder:
        report(f"Writing random weights of {model}")
        yield write_random(model, Path(folder) / "model", dtype)


def write_random(name: str, folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Path:
    """Write a whole model folder with random weights in the size that a file of conf/model names; returns the folder.

    device: that draws the numbers [default: the CPU].

    Raises:
        ValueError: there is no such size.
    """
    write_random_checkpoint(Path(folder), *sizes_of(name), dtype, device=device)
    return Path(folder)


def known_sizes() -> list[str]:
    """The names of the files of conf/model."""
    return sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml"))


def sizes_of(name: str) -> tuple[UnifiedConfig, ImageTokenizerConfig]:
    """The sizes of a file of conf/model, and of the image tokenizer that goes with it.

    Raises:
        ValueError: there is no such file.
    """
    if name not in (known := known_sizes()):
        raise ValueError(f"There is no model '{name}': choose one of {', '.join(known)}.")
    config: Any = build(compose_config("train", [f"model={name}", "image_tokenizer=x", "codes=x"]).model)
    grid = config.vision.image_size // config.vision.patch_size
    overrides = ["tokenizer=vq16", f"tokenizer.image_size={16 * grid}"] if name.startswith("janus") else ["tokenizer=tiny"]
    tokenizer = build(compose_config("train_tokenizer", overrides).tokenizer)
    return fill_sizes(config, tokenizer, VOCABULARY), tokenizer


def main() -> None:
    """Random weights of a size, drawn on a device and written to a folder."""
    model, dtype, device, folder = sys.argv[1:]
    where = choose_device(device)
    write_random(model, folder, choose_dtype(dtype, where), where)


if __name__ == "__main__":
    main()
