"""`unimm bench generate --explain`: the composition root of `unimm.bench.explain`; a table a step, JSON with its provenance."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimm.bench.explain import explain_step
from unimm.bench.generate import Trial
from unimm.bench.provenance import provenance
from unimm.cli.bench.checkpoint import checkpoint
from unimm.cli.bench.generate import label, name_of, read_batch
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import load
from unimm.runtime.atomic_files import check_writable, replace_json
from unimm.runtime.devices import choose_device, choose_dtype

console = Console(highlight=False)
status = Console(stderr=True)

COLUMNS = ("part", "MB", "GFLOP", "calls", "floor, ms", "measured, ms", "x floor")


def run(
    model: str,
    place: tuple[str | None, str | None],
    batches: list[str],
    guidance_scale: float,
    named: tuple[list[str], list[str], list[int]],
    out: Path,
) -> None:
    """Explain a decode step of each batch, with each of the weights, kernels and windows.

    Args:
        model, place, batches: as `unimm bench generate` has them; the model may be demo, too.
        named: weights of fewer bits beside the model's own, names of kernels, and windows.

    Raises:
        ValueError: there is no such size, folder, weights, kernels or window, or a batch is none.
    """
    weights, kernels, windows = named
    where = choose_device(place[0])
    dtype = choose_dtype(place[1], where)
    sizes = [read_batch(batch) for batch in batches]
    check_writable(out)
    measured: list[dict[str, Any]] = []
    with (
        status.status("") as shown,
        nullcontext(model) if model == "demo" else checkpoint(model, dtype, shown.update) as folder,
    ):
        for size, bits, name, window in product(sizes, [None, *weights], kernels or [None], windows):
            of_dtype = str(dtype).removeprefix("torch.")
            trial = Trial("unimm", str(folder), str(where), of_dtype, *size, guidance_scale=guidance_scale, kernels=name)
            trial = replace(trial, weights=bits or trial.weights)
            shown.update(f"{label(asdict(trial))} at once: {name_of(asdict(trial))}, window {window}")
            limits = Limits(window=window, max_rows=trial.num_rows)
            engine = load(folder, where, dtype, weights=bits, limits=limits, kernels=name)
            measured.append({**asdict(trial), "folder": model, "window": window, **explain_step(engine, trial, window)})
            replace_json(out, {"bench": "explain", "provenance": provenance(where), "measured": measured})
    for one in measured:
        show(one)
    console.print(str(out))


def show(one: dict[str, Any]) -> None:
    """The table of one step, under what it is of and how fast the device is."""
    speeds, launches = one["speeds"], one["launches_a_layer"]
    console.print(
        f"{one['folder']} in {one['dtype']}, {label(one)} at once ({name_of(one)}, window {one['window']}): {one['rows']} rows "
        f"of {one['length']:.0f} positions on average, {one['positions']} new ones a step, by {one['computed_by']}"
        + (f", {launches} launches a layer" if launches else ""),
        soft_wrap=True,
    )
    shared = ": as much of each row as of the longest, and padding" if one["read"] > one["held"] else ""
    console.print(
        f"Keys and values: {one['cache_bytes'] / 1e6:.1f} MB; rows hold {one['held']:,} positions, and a step reads "
        f"{one['read']:,}{shared}",
        soft_wrap=True,
    )
    stated = [f"{speeds['stated_bandwidth'] / 1e9:.0f} GB/s"] if speeds["stated_bandwidth"] else []
    stated += [f"{speeds['stated_flops'] / 1e12:.0f} TFLOP/s"] if speeds["stated_flops"] else []
    console.print(
        f"Probed: {speeds['bandwidth'] / 1e9:.1f} GB/s over the bytes of a step, {speeds['flops'] / 1e9:,.0f} GFLOP/s, "
        f"{1e6 * speeds['call_seconds']:.2f} us a call" + (f"; by its maker: {', '.join(stated)}" if stated else ""),
        soft_wrap=True,
    )
    table = Table(title_justify="left")
    for title in COLUMNS:
        table.add_column(title, justify="left" if title == "part" else "right", no_wrap=True)
    for part in one["parts"]:
        _add(table, part["name"], part, part["floor_seconds"], part["seconds"])
    total = {name: sum(part[name] for part in one["parts"]) for name in ("bytes", "flops")} | {"calls": one["calls"]}
    _add(table, "the step", total, one["floor"], one["step"])
    wide = console if console.is_terminal else Console(highlight=False, width=120)
    wide.print(table)
    console.print(f"Calls alone: {1e3 * one['calls_seconds']:.2f} ms. {_verdict(one)}\n", soft_wrap=True)


def _add(table: Table, name: str, part: dict[str, Any], floor: float, seconds: float | None) -> None:
    calls = "-" if part["calls"] is None else str(part["calls"])
    ratio = f"{seconds / floor:.2f}" if seconds is not None and floor else "-"
    measured = "-" if seconds is None else f"{1e3 * seconds:.2f}"
    floors = f"{1e3 * floor:.2f}" if floor else "-"
    table.add_row(name, f"{part['bytes'] / 1e6:.1f}", f"{part['flops'] / 1e9:.3f}", calls, floors, measured, ratio)


def _verdict(one: dict[str, Any]) -> str:
    """What bounds the step, by this model."""
    speeds, total = one["speeds"], {name: sum(part[name] for part in one["parts"]) for name in ("bytes", "flops")}
    times = {
        "reading memory": total["bytes"] / speeds["bandwidth"],
        "computing": total["flops"] / speeds["flops"],
        "starting calls": one["calls_seconds"],
    }
    most = max(times, key=lambda name: times[name])
    rest = one["step"] - one["floor"] - one["calls_seconds"]
    return f"Most is {most}; floor and calls explain {100 * (1 - max(rest, 0.0) / one['step']):.0f} % of the step."
