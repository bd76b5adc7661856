"""`unimm bench load`: the composition root of `unimm.bench.load`; figures as a table, and as JSON with where they come from."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from unimm.bench.load import bench_load
from unimm.bench.provenance import provenance
from unimm.bench.random_checkpoint import write_random_checkpoint
from unimm.cli.build import build, compose_config, conf_folder, fill_sizes
from unimm.devices import choose_device, choose_dtype
from unimm.files import write_json

VOCABULARY = 1024
"""Of a random model whose configuration leaves it to the text tokenizer."""

console = Console(highlight=False)
status = Console(stderr=True)


def run(model: str, device: str | None, dtype: str, repeats: int, out: Path | None) -> None:
    """Time loading a model, here and in transformers.

    Args:
        model: a size by name (a file of conf/model, then with random weights), or a Janus' folder.
        out: JSON file for the figures.

    Raises:
        ValueError: there is no such size or folder.
    """
    where = choose_device(device)
    name = str(choose_dtype(dtype, where)).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as room, status.status("") as shown:
        folder = Path(model)
        if not folder.is_dir():
            shown.update(f"Writing random weights of {model}")
            folder = Path(room) / "model"
            write_named_checkpoint(folder, model, getattr(torch, name))
        measured = bench_load(folder, str(where), name, repeats, lambda who: shown.update(f"Loading with {who}"))
    show_load(model, name, measured)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"model": model, "dtype": name, "repeats": repeats}
        write_json(out, {"bench": "load", **settings, "provenance": provenance(where), "measured": measured})
        console.print(out)


def show_load(model: str, dtype: str, measured: dict[str, dict[str, float]]) -> None:
    """The table."""
    table = Table(title=f"Loading {model} in {dtype}", title_justify="left")
    columns = {"seconds": "load, s", "touch_seconds": "touch, s", "weights_gib": "weights, GiB", "peak": "peak / weights"}
    if any("device_peak" in one for one in measured.values()):
        columns["device_peak"] = "device peak / weights"
    for title in ("", *columns.values()):
        table.add_column(title, justify="right" if title else "left")
    for who, one in measured.items():
        table.add_row(who, *(f"{one[key]:.2f}" for key in columns))
    console.print(table)


def write_named_checkpoint(folder: Path, name: str, dtype: torch.dtype) -> int:
    """Random weights in the sizes of conf/model/NAME.yaml, with the image tokenizer that goes with it.

    Returns:
        The number of parameters.

    Raises:
        ValueError: there is no such file.
    """
    known = sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml"))
    if name not in known:
        raise ValueError(f"There is no model '{name}': name a folder, or one of {', '.join(known)}.")
    config: Any = build(compose_config("train", [f"model={name}", "image_tokenizer=x", "codes=x"]).model)
    grid = config.vision.image_size // config.vision.patch_size
    words = ["tokenizer=vq16", f"tokenizer.image_size={16 * grid}"] if name.startswith("janus") else ["tokenizer=tiny"]
    tokenizer = build(compose_config("train_tokenizer", words).tokenizer)
    return write_random_checkpoint(folder, fill_sizes(config, tokenizer, VOCABULARY), tokenizer, dtype)
