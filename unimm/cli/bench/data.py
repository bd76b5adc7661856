"""`unimm bench data`: the composition root of `unimm.bench.data`; tables, and JSON with where they were measured."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from unimm.bench.data import PEERS, Scale, Speed, check_peers
from unimm.bench.data_files import FORMS, write_photographs, write_records
from unimm.bench.provenance import provenance
from unimm.bench.subprocess_trials import run_in_turns
from unimm.runtime.atomic_files import check_writable, write_json

console = Console(highlight=False)
status = Console(stderr=True)

MODULE = "unimm.bench.data"
MOST_GROWTH_MB, MOST_START_SECONDS, LEAST_RATIO = 200.0, 10.0, 0.95
WITHOUT_BAR = "parquet"
"""Of Parquet `datasets` makes a copy in Arrow's format before it begins: that is no reading of the same files."""

Told = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is measured. records: of each form; reads: so many of them are learned from. images: of each pipeline. peers: beside
    which, "webdataset", "datasets". size: of the photographs, width and height; image_size: of what becomes of them."""

    records: int
    reads: int
    images: int
    pairs: int
    peers: list[str]
    image_size: int
    size: tuple[int, int] = (640, 480)
    workers: int = 2


def run(setting: Setting, out: Path) -> bool:
    """Measure, print, and write JSON.

    Returns:
        Whether all bars are kept.

    Raises:
        ValueError: a peer is not installed, a file cannot be written, or a trial failed.
    """
    check_writable(out)
    if setting.images:
        check_peers(setting.peers)
    with tempfile.TemporaryDirectory(prefix="unimm-data-", dir=out.parent) as folder, status.status("") as shown:
        scales = [_scale(Path(folder), form, setting, shown.update) for form in FORMS if setting.records]
        pairs = [(peer, form) for peer in setting.peers for form in PEERS[peer] if setting.images]
        speeds = [_pair(Path(folder), peer, form, setting, shown.update) for peer, form in pairs]
    show(scales, speeds)
    is_kept = all(one["is_kept"] for one in (*scales, *speeds))
    told = {"setting": vars(setting), "scale": scales, "speed": speeds, "is_kept": is_kept}
    write_json(out, {"bench": "data", "provenance": provenance(torch.device("cpu")), **told})
    console.print(str(out), soft_wrap=True)
    return is_kept


def _scale(folder: Path, form: str, setting: Setting, say: Any) -> Told:
    """One form at scale, twice: an archive is indexed when it is first opened, and that is timed apart."""
    say(f"Writing {setting.records:,} records: {form}")
    home = write_records(folder / "records", form, setting.records)
    first, second = (
        run_in_turns(MODULE, [Scale(form, str(home), reads)], 1, lambda trial: say(f"Learning from records: {trial.who}"))[0]
        for reads in (1, setting.reads)
    )
    is_kept = second["worker_mb"] < MOST_GROWTH_MB and second["start_seconds"] < MOST_START_SECONDS
    return {**second, "folder": form, "first_start_seconds": first["start_seconds"], "is_kept": is_kept}


def _pair(folder: Path, peer: str, form: str, setting: Setting, say: Any) -> Told:
    """Ours and a peer's in turns; the median of the pairs' ratios."""
    say(f"Writing {setting.images:,} photographs: {form}")
    home = write_photographs(folder / "photographs", form, setting.images, *setting.size)
    measured: list[tuple[float, float]] = []
    for number in range(setting.pairs):
        names = ("unimm", peer) if number % 2 == 0 else (peer, "unimm")  # neither is always the first
        trials = [Speed(who, form, str(home), setting.images, setting.image_size, num_workers=setting.workers) for who in names]
        found = run_in_turns(MODULE, trials, 1, lambda trial, pair=number: say(f"Loading {form}, pair {pair + 1}: {trial.who}"))
        rates = {one["who"]: one["images_a_second"] for one in found}
        measured.append((rates["unimm"], rates[peer]))
    ratio = median(ours / theirs for ours, theirs in measured)
    ours, theirs = (median(rates) for rates in zip(*measured, strict=True))
    is_kept = form == WITHOUT_BAR or ratio >= LEAST_RATIO
    return {"peer": peer, "form": form, "unimm": ours, "theirs": theirs, "ratio": ratio, "pairs": measured, "is_kept": is_kept}


def show(scales: list[Told], speeds: list[Told]) -> None:
    """The tables."""
    if scales:
        table = Table(title=f"{scales[0]['records']:,} records, one loading process", title_justify="left")
        for title in ("", "start, s", "first start, s", "it grows, MB", "half way", "opening, MB", "records/s"):
            table.add_column(title, justify="right" if title else "left")
        for one in scales:
            names = ("start_seconds", "first_start_seconds", "worker_mb", "worker_half_mb", "main_mb")
            table.add_row(one["who"], *(f"{one[name]:.1f}" for name in names), f"{one['records_a_second']:,.0f}")
        console.print(table)
    if speeds:
        table = Table(title="Images a second, the same JPEGs, decoded and resized alike", title_justify="left")
        for title in ("", "unimm", "peer", "ratio"):
            table.add_column(title, justify="right" if title else "left")
        for one in speeds:
            table.add_row(f"{one['peer']}, {one['form']}", f"{one['unimm']:.0f}", f"{one['theirs']:.0f}", f"{one['ratio']:.2f}")
        console.print(table)
