"""`unimm bench projectors`: the composition root of `unimm.bench.projectors`; a table, and JSON with where it comes from."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimm.bench.projectors import measure
from unimm.bench.provenance import provenance
from unimm.runtime.atomic_files import check_writable, write_json
from unimm.runtime.devices import choose_device, choose_dtype

console = Console(highlight=False)


def run(models: list[str], device: str | None, dtype: str, batch: int, repeats: int, out: Path) -> None:
    """Measure models that look through different projectors, and show them beside each other.

    Raises:
        ValueError: one is no model.
    """
    check_writable(out)
    where = choose_device(device)
    name = str(choose_dtype(dtype, where)).removeprefix("torch.")
    measured = measure(models, str(where), name, batch, repeats)
    show(measured, name)
    setting = {"dtype": name, "batch": batch, "repeats": repeats}
    write_json(out, {"bench": "projectors", **setting, "provenance": provenance(where), "measured": measured})
    console.print(out)


def show(measured: list[dict[str, Any]], dtype: str) -> None:
    """The table: a model a row, its scores last."""
    tasks = list(dict.fromkeys(task for one in measured for task in one["scores"]))
    table = Table("model", "projector", title=f"Projectors, in {dtype}", title_justify="left", box=None)
    for title in ("visual tokens", "parameters", "prefill, ms", "KV, kB an image", *(task.replace("_", " ") for task in tasks)):
        table.add_column(title, justify="right")
    for one in measured:
        scores = (f"{one['scores'][task]:.3f}" if task in one["scores"] else "-" for task in tasks)
        sizes = f"{one['positions']} of {one['patches']}", f"{one['parameters']:,}"
        table.add_row(
            one["name"], one["projector"], *sizes, f"{one['prefill_ms']:.2f}", f"{one['kv_bytes'] / 1e3:.0f}", *scores
        )
    console.print(table)
