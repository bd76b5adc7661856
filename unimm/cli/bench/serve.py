"""`unimm bench serve` and `serve-ray`: their composition root; tables, and JSON with where it was measured."""

import signal
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimm.bench.provenance import provenance
from unimm.bench.serve import Setting, measure
from unimm.checkpoints.weight_files import find_folder
from unimm.inference.engine import Engine, load
from unimm.runtime.atomic_files import check_writable, write_json
from unimm.runtime.devices import choose_device, choose_dtype

console = Console(highlight=False)
status = Console(stderr=True)

MAX_HEALTH_SECONDS, MIN_RATIO = 0.25, 3.0
"""What /health may take (p99), and requests a second over the peer's, for the exit code to be 0."""


ENDED = (0, -signal.SIGTERM)
"""Exit codes after SIGTERM: uvicorn finishes, and then ends by the signal that it got."""


def run(setting: Setting, out: Path) -> None:
    """Load a server and its peer, and print what came of it.

    Raises:
        ValueError: the model cannot be read, or a server does not start.
        SystemExit: an answer was wrong, a request failed, a row was lost, or a bar was missed (1).
    """
    folder = str(find_folder(setting.model))
    with status.status("") as shown:
        measured = measure(setting, open_engine(setting), folder, open_logs(out), shown.update)
    show(setting, measured)
    finish("serve", setting, measured, find_missed(measured), out)


def run_ray(setting: Setting, replicas: int, scales: bool, out: Path) -> None:
    """Load replicas of Ray Serve, kill one (or, with `scales`, let Ray add and remove some), and print what came of it.

    Raises:
        ValueError: the model cannot be read, Ray is not installed, or it does not start.
        SystemExit: an answer was wrong, a request failed that no dead replica had, or there were not as many replicas as there
            should be (1).
    """
    from unimm.bench.serve_ray import measure as measure_ray
    from unimm.bench.serve_ray import measure_scaling

    if find_spec("ray") is None:
        raise ValueError('Replicas need Ray, which is not installed: pip install "unimm[ray]".')
    with status.status("") as shown:
        trial = measure_scaling if scales else measure_ray
        measured = trial(setting, open_engine(setting), replicas, open_logs(out), shown.update)
    what = "1 to {} replicas of {}" if scales else "{} replicas of {}, one of them killed"
    table = Table(title=what.format(replicas, setting.model), title_justify="left", show_header=False)
    for name in (name for name in RAY_LINES if name in measured):
        value = measured[name]
        table.add_row(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
    console.print(table)
    missed = [f"{measured[name]} {name.replace('_', ' ')}" for name in ("wrong", "failed_otherwise") if measured[name]]
    missed += [said for name, said in RAY_MISSED.items() if name in measured and measured[name] is None]
    finish("serve-ray", setting, measured, missed, out)


def open_engine(setting: Setting) -> Engine:
    """The engine that knows the right answers."""
    where = choose_device(setting.device)
    return load(setting.model, where, choose_dtype(setting.dtype, where))


def open_logs(out: Path) -> Path:
    """The folder beside `out` for what servers print. ValueError: `out` cannot be written."""
    check_writable(out)
    logs = out.with_name(f"{out.stem}.logs")
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def finish(bench: str, setting: Setting, measured: dict[str, Any], missed: list[str], out: Path) -> None:
    """Write the figures, and say what was missed. SystemExit: something was (1)."""
    origin = provenance(choose_device(setting.device))
    write_json(out, {"bench": bench, "setting": asdict(setting), "provenance": origin, **measured, "missed": missed})
    console.print(out)
    if missed:
        console.print("Missed: " + "; ".join(missed))
        raise SystemExit(1)


def find_missed(measured: dict[str, Any]) -> list[str]:
    """What a server must keep, and this one did not."""
    ours = measured["unimm"]
    found = []
    for name in ("wrong", "failed", "refused", "unhealthy"):
        if ours[name]:
            found.append(f"{ours[name]} {name}")
    if ours["free_seconds"] is None:
        found.append("rows were taken after the load")
    if ours["exit_code"] not in ENDED:
        found.append(f"exit code {ours['exit_code']} after SIGTERM")
    if (ours["health"] or {"p99": 0.0})["p99"] > MAX_HEALTH_SECONDS:
        found.append(f"/health took {ours['health']['p99']:.2f} s")
    if measured["ratio"] is not None and measured["ratio"] < MIN_RATIO:
        found.append(f"{measured['ratio']:.1f} times the peer's requests a second, not {MIN_RATIO:g}")
    return found


def show(setting: Setting, measured: dict[str, Any]) -> None:
    """The table: a line a figure, ours beside the peer's."""
    ours, peer = measured["unimm"], measured["peer"]
    table = Table(title=f"{setting.num_clients} clients of {setting.model} in {setting.dtype}", title_justify="left")
    for title in ("", "unimm serve", "plain server"):
        table.add_column(title, justify="right" if title else "left")
    for name, read in LINES.items():
        table.add_row(name, read(ours), "" if peer is None else read(peer))
    if measured["ratio"] is not None:
        table.add_row("requests a second, ratio", f"{measured['ratio']:.1f}", "1")
    console.print(table)


def _seconds(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['p50']:.3g} / {value['p99']:.3g}"


def _free(one: dict[str, Any]) -> str:
    if "free_seconds" not in one:
        return "-"
    return "never" if one["free_seconds"] is None else f"after {one['free_seconds']:.1f} s"


LINES = {
    "requests sent": lambda one: f"{one['sent']:,}",
    "answered": lambda one: f"{one['answered']:,}",
    "clients hung up": lambda one: f"{one['left']:,}",
    "refused / failed": lambda one: f"{one['refused']} / {one['failed']}",
    "wrong, of those compared": lambda one: f"{one['wrong']} of {one['compared']:,}" if "wrong" in one else "-",
    "  off by a level of 255": lambda one: f"{one['off_by_a_level']}" if "wrong" in one else "-",
    "drawn with previews / without": lambda one: f"{one['drawn_with_previews']:,} / {one['drawn_without']:,}",
    "rows free": _free,
    "requests a second": lambda one: f"{one['requests_a_second']:.2f}",
    "images a second": lambda one: f"{one['images_a_second']:.2f}",
    "text, s, p50 / p99": lambda one: _seconds(one["latency"]["text"]),
    "drawing, s, p50 / p99": lambda one: _seconds(one["latency"]["image"]),
    "first token, s": lambda one: _seconds(one["first_token"]),
    "  of one client alone": lambda one: _seconds(one["alone"]["first_token"]) if "alone" in one else "-",
    "first preview, s": lambda one: _seconds(one["first_preview"]),
    "  of a client alone": lambda one: _seconds(one["alone"]["first_preview"]) if "alone" in one else "-",
    "/health, s": lambda one: _seconds(one["health"]),
    "peak memory, MiB": lambda one: f"{one['peak_mib']:,.0f}",
    "start, s": lambda one: f"{one['start_seconds']:.1f}",
}
"""What the table shows of each server."""

RAY_LINES = (
    *("sent", "answered", "left", "compared", "wrong", "failed_with_replica", "failed_otherwise", "answered_after"),
    *("seconds_until_back", "seconds_until_more", "seconds_until_fewer", "requests_a_second", "start_seconds"),
)
"""What the table shows of replicas, where it was measured."""

RAY_MISSED = {
    "seconds_until_back": "the replica did not come back",
    "seconds_until_more": "no replicas were added",
    "seconds_until_fewer": "replicas were not removed again",
}
"""What it means where there was none of these."""
