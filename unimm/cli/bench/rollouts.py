"""`unimm bench rollouts`: how many drawings a second a training with GRPO gets of its own model, against `transformers`.

The same weights, prompts, group size, number of codes, guidance and temperature; a trial is a process of its own, and who comes
first changes from pair to pair. Here the engine fills its rows as it does in a training; `transformers`
draws all of a step in one call of `generate`.
"""

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimm.bench.generate import Trial
from unimm.bench.provenance import provenance
from unimm.bench.subprocess_trials import PEERS, run_in_turns
from unimm.checkpoints.weight_files import DEMO
from unimm.cli.bench.checkpoint import checkpoint
from unimm.data.prompts import ShapesPrompts
from unimm.runtime.atomic_files import check_writable, replace_json
from unimm.runtime.devices import choose_device, choose_dtype

console = Console(highlight=False)
status = Console(stderr=True)

SHOWN = {"unimm": "unimm", "transformers": "transformers' generate"}


def run(
    model: str,
    place: tuple[str | None, str | None],
    groups: tuple[int, int],
    sampling: tuple[float, float],
    repeats: int,
    out: Path,
) -> dict[str, Any]:
    """Time the rollouts of a step, here and in transformers.

    Args:
        model: demo, a folder of a Janus, or a size by name (a file of conf/model, with random weights then).
        place: device and dtype. groups: prompts, and drawings of each. sampling: guidance scale and temperature.
        repeats: pairs of trials. out: JSON file for the figures.

    Returns:
        What is written: medians by peer, and the ratio of each pair.

    Raises:
        ValueError: there is no such model, or transformers cannot draw so.
    """
    guidance_scale, temperature = sampling
    if guidance_scale <= 1:
        raise ValueError("transformers draws with guidance alone: give --guidance-scale above 1.")
    device = choose_device(place[0])
    dtype = choose_dtype(place[1], device)
    check_writable(out)
    record = ShapesPrompts(groups[0])
    prompts = [record[number].prompts[0].text for number in range(groups[0]) for _ in range(groups[1])]
    words: dict[str, Any] = {"guidance_scale": guidance_scale, "temperature": temperature, "prompts": prompts}
    content: dict[str, Any] = {
        "bench": "rollouts",
        "model": model,
        "groups": groups,
        "on": device.type,
        "provenance": provenance(device),
    }
    with status.status("") as shown, checkpoint(folder_of(model), dtype, shown.update) as folder:
        name = str(dtype).removeprefix("torch.")
        trials = [Trial(who, str(folder), str(device), name, len(prompts), as_trained=True, **words) for who in PEERS]
        pairs: list[dict[str, dict[str, Any]]] = []
        for number in range(repeats):
            turn = trials if number % 2 == 0 else trials[::-1]
            said = f"pair {number + 1} of {repeats}, {len(prompts)} drawings"
            found = run_in_turns("unimm.bench.generate", turn, 1, lambda trial, said=said: shown.update(f"{said}: {trial.who}"))
            pairs.append({one["who"]: one for one in found})
            content |= {"repeats": number + 1, **summary(pairs)}
            replace_json(out, content)  # after each pair: one that fails costs no figure of those before it
    show(content, f"{model}, {name}: {groups[0]} prompts, {groups[1]} drawings of each")
    console.print(f"{out}")
    return content


def folder_of(model: str) -> str:
    """A model that is measured, as a folder or the name of a size: demo is the trained one."""
    return str(DEMO) if model == "demo" else model


def summary(pairs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each peer, how many times as many rollouts a second unimm made in each pair, and how many times less it
    computed for them, which does not depend on what else a machine does."""
    names = ("images_a_second", "seconds", "cpu_seconds", "decode_seconds", "peak_gib")
    medians = {who: {name: statistics.median(pair[who][name] for pair in pairs) for name in names} for who in PEERS}
    ratios = [pair["unimm"]["images_a_second"] / pair["transformers"]["images_a_second"] for pair in pairs]
    computed = [pair["transformers"]["cpu_seconds"] / pair["unimm"]["cpu_seconds"] for pair in pairs]
    found = {"ratios": ratios, "ratio": statistics.median(ratios)}
    return {"medians": medians, **found, "cpu_ratios": computed, "cpu_ratio": statistics.median(computed)}


def show(content: dict[str, Any], title: str) -> None:
    """The table, and the ratio."""
    table = Table(title=title, title_justify="left")
    for column in ("", "rollouts/s", "s a step", "pixels, s", "GiB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for who, one in content["medians"].items():
        rates = (f"{one['images_a_second']:.2f}", f"{one['seconds']:.1f}", f"{one['decode_seconds']:.2f}")
        table.add_row(SHOWN[who], *rates, f"{one['peak_gib']:.1f}")
    console.print(table)
    ratios = content["ratios"]
    many = f" (median of {len(ratios)} pairs, {min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    console.print(f"{content['ratio']:.2f} times as many rollouts a second{many}")
    if content["on"] == "cpu":
        console.print(f"{content['cpu_ratio']:.2f} times as many a second of the processor's time")
