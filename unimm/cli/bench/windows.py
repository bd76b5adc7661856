"""`unimm bench generate --window`: the composition root of `unimm.bench.windows`; a table, JSON with where it was measured."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimm.bench.provenance import provenance
from unimm.bench.windows import measure_windows
from unimm.cli.bench.checkpoint import checkpoint
from unimm.cli.bench.generate import read_batch
from unimm.inference.engine import load
from unimm.runtime.atomic_files import check_writable, replace_json
from unimm.runtime.devices import choose_device, choose_dtype

console = Console(highlight=False)
status = Console(stderr=True)

COLUMNS = ("batch", "window", "steps", "codes a step", "acceptance", "one at a time, s", "s", "times as fast", "differ", "near")


def run(
    model: str,
    place: tuple[str | None, str | None],
    batches: list[str],
    windows: list[int],
    settings: tuple[float, float, int],
    weights: list[str],
    repeats: int,
    out: Path,
) -> None:
    """Time drawing with windows beside one code at a time.

    Args:
        model: as `unimm bench generate` has it, or demo.
        batches: numbers of images at once.
        windows: 0 is the engine's own choice.
        settings: guidance scale, temperature and top-k.
        weights: of fewer bits, at most one kind.

    Raises:
        ValueError: there is no such size or folder, or a batch has texts.
    """
    sizes = [read_batch(batch) for batch in batches]
    if any(texts for _, texts in sizes) or len(weights) > 1:
        raise ValueError(
            "--window times batches of drawings with one kind of weights: name a batch as 1 or 8, and --weights once."
        )
    where = choose_device(place[0])
    dtype = choose_dtype(place[1], where)
    check_writable(out)
    measured: list[dict[str, Any]] = []
    with status.status("") as shown:
        opened = nullcontext(model) if model == "demo" else checkpoint(model, dtype, shown.update)
        with opened as folder:
            engine = load(folder, where, dtype, weights=weights[0] if weights else None)
            for images, _ in sizes:
                chosen: list[int | None] = [window or None for window in windows]
                report = lambda window, images=images: shown.update(f"{images} images, window {window or 'chosen'}")  # noqa: E731
                measured += measure_windows(engine, images, chosen, settings, repeats, report)
                told = {"bench": "generate", "folder": model, "settings": settings, "repeats": repeats}
                replace_json(out, {**told, "provenance": provenance(where), "measured": measured})
    guidance_scale, temperature, top_k = settings
    title = f"{model} in {dtype}, guidance {guidance_scale:g}, temperature {temperature:g}, top-k {top_k or 'off'}"
    show(title.replace("torch.", ""), measured)
    console.print(str(out))


def show(title: str, measured: list[dict[str, Any]]) -> None:
    """The table: every window at every batch."""
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for one in measured:
        table.add_row(
            str(one["num_images"]),
            str(one["window"] or "chosen"),
            f"{one['steps']:.1f}",
            f"{one['codes_a_step']:.2f}",
            f"{one['acceptance']:.2f}",
            f"{one['plain_seconds']:.3f}",
            f"{one['seconds']:.3f}",
            f"{one['ratio']:.2f} ({one['least']:.2f} to {one['most']:.2f})",
            f"{one['different']} of {one['images']}",
            str(one["near"]),
        )
    (console if console.is_terminal else Console(highlight=False, width=140)).print(table)
