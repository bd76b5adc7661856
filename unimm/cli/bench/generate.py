"""`unimm bench generate`: the composition root of `unimm.bench.generate`; a table, a plot, JSON with where it was measured."""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimm.bench import deepseek as deepseek_script
from unimm.bench.generate import Trial
from unimm.bench.plot import plot_bars
from unimm.bench.provenance import provenance
from unimm.bench.subprocess_trials import PEERS, run_in_turns
from unimm.cli.bench.checkpoint import checkpoint
from unimm.inference.kernels.decode_kernels import kernels_of
from unimm.inference.kernels.quantized_linear import QUANTIZED
from unimm.runtime.atomic_files import check_writable, replace_json
from unimm.runtime.devices import choose_device, choose_dtype

console = Console(highlight=False)
status = Console(stderr=True)

COLUMNS = ("batch", "who", "s", "ms a step", "images/s", "ids/s", "first, s", "x theirs", "x floor", "pixels, s", "GiB")


def run(
    model: str,
    place: tuple[str | None, str | None],
    batches: list[str],
    guidance_scale: float,
    few: tuple[list[str], bool, list[str]],
    repeats: int,
    out: Path,
    deepseek: tuple[Path | None, str] = (None, sys.executable),
) -> None:
    """Time drawing and writing with a model, here and in transformers.

    Args:
        model: a size by name (a file of conf/model, then with random weights), or a Janus' folder.
        place: device and dtype.
        batches: "IMAGES" or "IMAGES+TEXTS" at once.
        few: weights of fewer bits, to time unimm with too; whether to time nothing but what is named; and names of kernels.
        out: JSON file for the figures; the plot lies beside it.
        deepseek: DeepSeek's repository, to time its loop too, and the Python that its code works in.

    Raises:
        ValueError: there is no such size or folder, or a batch or weights are none.
    """
    repository, python = deepseek
    if repository is not None and not (repository / "generation_inference.py").is_file():
        raise ValueError(f"{repository} is no clone of github.com/deepseek-ai/Janus: generation_inference.py is missing.")
    where = choose_device(place[0])
    dtype = choose_dtype(place[1], where)
    name = str(dtype).removeprefix("torch.")
    sizes = [read_batch(batch) for batch in batches]
    peers = choose_peers(*few, guidance_scale)
    for kernels in few[2]:
        kernels_of(where, kernels)  # or it says why not
    check_writable(out)
    origin = provenance(where)
    with status.status("") as shown, checkpoint(model, dtype, shown.update) as folder:
        trials = [
            Trial(who, str(folder), str(where), name, *size, guidance_scale=guidance_scale, weights=bits, kernels=kernels)
            for size in sizes
            for who, bits, kernels in peers
            + ([("deepseek", "as dtype", None)] if repository is not None and not size[1] else [])
        ]
        others = {"deepseek": [python, deepseek_script.__file__, str(repository)]}

        def keep(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
            """After each trial: one that fails or is given up costs no figure of those before it."""
            named = [{**one, "folder": model} for one in measured]
            replace_json(out, {"bench": "generate", "repeats": repeats, "provenance": origin, "measured": named})
            return named

        def report(trial: Trial) -> None:
            shown.update(f"{trial.num_images} images and {trial.num_texts} texts: {name_of(asdict(trial))}")

        measured = run_in_turns("unimm.bench.generate", trials, repeats, report, others, keep)
    show(model, name, keep(measured))
    picture = out.with_suffix(".png")
    groups = {label(one): {name_of(other): other["ms_a_step"] for other in alike(one, measured)} for one in measured}
    plot_bars(picture, groups, title=f"{model}, {name}: milliseconds a step", axis="ms a step")
    console.print(f"{out}\n{picture}")


def choose_peers(
    weights: list[str], only_weights: bool, kernels: list[str], guidance_scale: float
) -> list[tuple[str, str, str | None]]:
    """Who is timed, with which weights and kernels. ValueError: there are no such weights, or nothing is named."""
    if unknown := set(weights) - set(QUANTIZED):
        raise ValueError(f"There are no weights '{unknown.pop()}': choose one of {', '.join(QUANTIZED)}.")
    if only_weights and not weights and not kernels:
        raise ValueError("--only-weights times what is named: add --weights int8, int4 or fp8, or --kernels.")
    chosen: list[str | None] = [*kernels] or [None]
    own = [("unimm", "as dtype", one) for one in chosen if kernels or not only_weights]
    # Without guidance transformers cannot draw.
    theirs = [(who, "as dtype", None) for who in PEERS[1:] if not only_weights and guidance_scale > 1]
    return own + theirs + [("unimm", few, one) for few in weights for one in chosen]


def read_batch(text: str) -> tuple[int, int]:
    """ "8" is 8 images, "8+4" 8 images and 4 texts. ValueError: it is neither."""
    found = re.fullmatch(r"(\d+)(?:\+(\d+))?", text)
    numbers = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    if not any(numbers):
        raise ValueError(f"A batch is IMAGES or IMAGES+TEXTS, such as 8 or 8+4, not '{text}'.")
    return numbers


def alike(one: dict[str, Any], measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All trials of the same batch."""
    return [other for other in measured if label(other) == label(one)]


def label(one: dict[str, Any]) -> str:
    """A batch as it is asked for."""
    return f"{one['num_images']}+{one['num_texts']}" if one["num_texts"] else str(one["num_images"])


def name_of(one: dict[str, Any]) -> str:
    """A peer, its weights where they are not the model's, and its kernels where they were named."""
    return ", ".join([one["who"], *([] if one["weights"] == "as dtype" else [one["weights"]]), *filter(None, [one["kernels"]])])


def show(model: str, dtype: str, measured: list[dict[str, Any]]) -> None:
    """The table: every peer at every batch, with its ratio to transformers and to the floor."""
    table = Table(title=f"{model} in {dtype}", title_justify="left")
    for title in COLUMNS:
        table.add_column(title, justify="left" if title == "who" else "right", no_wrap=True)
    for one in measured:
        theirs = next((other for other in alike(one, measured) if other["who"] == "transformers"), None)
        floors = [other["floor_ms"] for other in alike(one, measured) if other["floor_ms"]]
        floor = one["floor_ms"] or (floors[0] if floors else 0.0)
        table.add_row(
            label(one),
            name_of(one),
            f"{one['seconds']:.1f}",
            f"{one['ms_a_step']:.1f}",
            f"{one['images_a_second']:.2f}" if one["num_images"] else "-",
            f"{one['ids_a_second']:.0f}",
            f"{one['first_seconds']:.2f}",
            f"{theirs['seconds'] / one['seconds']:.2f}" if theirs else "-",
            f"{one['ms_a_step'] / floor:.2f}" if floor else "-",
            f"{one['decode_seconds']:.2f}" if one["num_images"] else "-",
            f"{one['peak_gib']:.1f}",
        )
    wide = console if console.is_terminal else Console(highlight=False, width=120)
    wide.print(table)
