"""`unimm bench pretrain`: the composition root of `unimm.bench.pretrain`; a table, JSON with where it was measured."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from unimm.bench.pretrain import Setting, run_pretraining
from unimm.bench.provenance import provenance
from unimm.cli.bench.checkpoint import sizes_of
from unimm.runtime.atomic_files import check_writable, write_json
from unimm.runtime.devices import choose_device

SHARE = "share/"
console = Console(highlight=False)


def run(model: str, device: str | None, setting: Setting, out: Path, profiles: bool = False) -> None:
    """Pretrain a model with random weights for some steps, and report how much of the device it used.

    Args:
        model: a size by name (a file of conf/model).
        out: JSON file for the figures.
        profiles: also say where the time of a step goes.

    Raises:
        ValueError: there is no such size, or the setting makes no sense.
    """
    config, _ = sizes_of(model)
    if setting.num_rows < setting.num_micro_batches:
        raise ValueError(f"{setting.num_rows} rows cannot be cut into {setting.num_micro_batches} micro-batches: raise --rows.")
    if profiles and not setting.num_warm_up:
        raise ValueError("The first step is like no other: with --profile give --warm-up at least 1.")
    check_writable(out)
    where = choose_device(device)
    measured = run_pretraining(config, setting, where, profiles)
    show(model, setting, measured)
    result = {"model": model, "setting": vars(setting), "measured": measured}
    write_json(out, {"bench": "pretrain", "provenance": provenance(where), **result})
    console.print(str(out))


def show(model: str, setting: Setting, measured: dict[str, float]) -> None:
    """The table: what was measured, a row each."""
    table = Table(title=f"{model}, rows of {setting.num_positions:,}, {setting.precision}", title_justify="left")
    table.add_column("measured")
    table.add_column("", justify="right")
    rows = {
        "MFU": f"{measured['speed/mfu']:.1%}" if "speed/mfu" in measured else "unknown peak: --peak-tflops",
        "TFLOP/s": f"{measured['speed/tflops_per_second']:.1f}",
        "tokens/s": f"{measured['speed/tokens_per_second']:,.0f}",
        "images looked at/s": f"{measured['speed/images_per_second']:.1f}",
        "waiting for data": f"{measured['speed/data_wait']:.2%}",
        "fill": f"{measured['data/fill']:.1%}",
        "ms a step": f"{measured['ms_a_step']:.0f}",
        "GiB": f"{measured['peak_gib']:.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if any(name.startswith(SHARE) for name in measured):
        show_shares(measured)


def show_shares(measured: dict[str, float]) -> None:
    """Where the time of a step goes, the largest first."""
    table = Table(title="where the time of a step goes, by PyTorch's profiler", title_justify="left")
    table.add_column("part")
    table.add_column("share", justify="right")
    shares = {name.removeprefix(SHARE): share for name, share in measured.items() if name.startswith(SHARE)}
    for name, share in sorted(shares.items(), key=lambda one: -one[1]):
        table.add_row(name, f"{share:.1%}")
    console.print(table)
