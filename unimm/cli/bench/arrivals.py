"""`unimm bench generate --rate`: the composition root of `unimm.bench.arrivals`; a table, JSON with where it was measured."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimm.bench.arrivals import PERCENTILES, measure_arrivals
from unimm.bench.provenance import provenance
from unimm.cli.bench.checkpoint import checkpoint
from unimm.inference.engine import load
from unimm.runtime.atomic_files import check_writable, replace_json
from unimm.runtime.devices import choose_device, choose_dtype

console = Console(highlight=False)
status = Console(stderr=True)


def run(model: str, place: tuple[str | None, str | None], requests: int, rate: float, num_busy: int, out: Path) -> None:
    """Time mixed requests that come at random.

    Args:
        model: as `unimm bench generate` has it, or demo.
        requests, rate: how many, and how many a second.
        num_busy: processes that compute beside it, as its caller has started them.

    Raises:
        ValueError: there is no such size or folder.
    """
    where = choose_device(place[0])
    dtype = choose_dtype(place[1], where)
    check_writable(out)
    with status.status("") as shown:
        opened = nullcontext(model) if model == "demo" else checkpoint(model, dtype, shown.update)
        with opened as folder:
            engine = load(folder, where, dtype)
            measured = measure_arrivals(
                engine, requests, rate, report=lambda number: shown.update(f"Request {number + 1} of {requests}")
            )
    replace_json(
        out,
        {
            "bench": "arrivals",
            "folder": model,
            "rate": rate,
            "busy": num_busy,
            "provenance": provenance(where),
            "measured": measured,
        },
    )
    beside = f", {num_busy} busy processes beside it" if num_busy else ""
    show(f"{model}: {requests} requests, {rate:g} a second{beside}", measured)
    console.print(out)


def show(title: str, measured: list[dict[str, Any]]) -> None:
    """The table: a row for all requests and one a kind."""
    table = Table(title=title, title_justify="left")
    names = [f"{name}_p{percent}" for name in ("first", "total") for percent in PERCENTILES]
    for column in ("kind", "requests", *(f"{name.replace('_', ' ')}, s" for name in names)):
        table.add_column(column, justify="left" if column == "kind" else "right", no_wrap=True)
    for one in measured:
        table.add_row(one["kind"], str(one["requests"]), *(f"{one[name]:.2f}" for name in names))
    wide = console if console.is_terminal else Console(highlight=False, width=120)
    wide.print(table)
    whole = measured[0]
    console.print(
        f"{whole['ids_a_second']:.0f} codes and tokens a second; {whole['codes_a_step']:.2f} codes a step of a drawing, "
        f"{100 * whole['acceptance']:.0f} % of guesses right."
    )
