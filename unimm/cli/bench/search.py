"""`unimm bench search`: the composition root of `unimm.bench.search`; figures as a table, and as JSON."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

bench_search = typer.Typer(rich_markup_mode=None)


@bench_search.command("search")
def search(
    num: Annotated[int, typer.Option(min=1, help="Vectors in the index.")] = 100_000,
    dim: Annotated[int, typer.Option(min=1, help="Numbers a vector.")] = 512,
    queries: Annotated[int, typer.Option(min=1, help="Queries that are timed, one by one.")] = 200,
    kills: Annotated[int, typer.Option(min=0, help="Also kill -9 an indexing so often, and compare what comes of it.")] = 0,
    images: Annotated[int, typer.Option(min=1, help="Pictures of that indexing.")] = 400,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = Path(
        "runs/bench/search.json"
    ),
) -> None:
    """How long a query of an index takes; and, with --kills, whether one that is killed ends whole, with nothing twice.

    \b
    Examples:
      unimm bench search --num 100000
      unimm bench search --kills 10
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from unimm.bench.provenance import provenance
    from unimm.bench.search import Setting, kill_indexing, time_queries
    from unimm.runtime.atomic_files import check_writable, write_json

    check_writable(out)
    console, status = Console(highlight=False), Console(stderr=True)
    with TemporaryDirectory() as folder, status.status("Timing queries") as shown:
        measured = time_queries(Setting(num, dim, queries), Path(folder) / "timed")
        killed = kill_indexing(kills, images, Path(folder) / "kills", shown.update) if kills else {}
    table = Table("", f"{num:,} vectors of {dim}", box=None)
    for name, value in {**measured, **killed}.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    console.print(table)
    given = {"num": num, "dim": dim, "queries": queries}
    write_json(out, {"bench": "search", **given, "provenance": provenance(torch.device("cpu")), **measured, **killed})
    console.print(out)
