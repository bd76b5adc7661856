"""`unimm bench device`: which parts there are on which device, and what of them goes into one JSON file and one table."""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import unimm
from unimm.bench.device import MINUTES, Outcome, Part, run_parts
from unimm.bench.provenance import provenance
from unimm.runtime.atomic_files import check_writable, replace_json
from unimm.runtime.devices import choose_device
from unimm.training.signals import StopRequest

console = Console(highlight=False)

ROOT = Path(unimm.__file__).resolve().parent.parent
UNIMM = [sys.executable, "-c", "from unimm.cli import main; main()"]
NO_TESTS = "tests are not installed: clone the repository and pip install -e '.[test]' there"

SIZES = {
    100: ("janus_pro_1b", 64, ["--rows", "16", "--micro-batches", "2"]),
    70: ("janus_pro_1b", 64, ["--rows", "16", "--micro-batches", "8"]),
    40: ("janus_pro_1b", 64, ["--rows", "16", "--micro-batches", "16", "--activation-checkpointing", "selective"]),
    0: ("janus_110m", 16, ["--rows", "16", "--micro-batches", "16"]),
}
"""From so many GiB of a GPU on: model, images at once, how a step of pretraining goes. The first was seen on an H200 (81.7 GiB
with two micro-batches of eight rows); the others follow from it by arithmetic."""

TESTS = {"test_triton": (2.0, 50.0), "test_engine_on_a_gpu": (1.5, 20.0), "test_on_a_gpu": (2.0, 30.0)}
"""Files of tests that come first: their weight and least seconds."""

LARGE = ("tokenizer", "codes", "look", "unified")
"""Of the quickstart's folders: its model, scores and report are kept, not what they were made from."""

TOY_SECONDS = 30.0
"""That a toy may need: most of it is for importing."""

TOY_STEPS = ["--positions", "512", "--rows", "4", "--micro-batches", "2", "--steps", "2", "--warm-up", "1", "--workers", "0"]


def run(minutes: float, device: str, toy: bool, out: Path, parts: list[Part] | None = None) -> None:
    """Run the parts, keep what is known after each, show a table.

    Args:
        minutes: for all of it.
        device: cuda, cuda:N, or cpu for toys.
        toy: tiny sizes.
        out: JSON file for all of it; what parts print and write lies in `OUT.parts`.
        parts: others than a device's own.

    Raises:
        SystemExit: 1 if a part failed or was not finished; after a signal, 128 and its number.
        ValueError: the device is not here, or no GPU and this is no toy.
    """
    deadline = time.monotonic() + 60 * minutes
    where = choose_device(device)
    if where.type != "cuda" and not toy:
        raise ValueError(f"The sizes are those of a GPU: add --toy to try all parts on {where.type}.")
    check_writable(out)
    logs = out.with_name(f"{out.name}.parts").absolute()  # a name of our own: what is there from before is removed
    shutil.rmtree(logs, ignore_errors=True)
    header: dict[str, Any] = {"bench": "device", "minutes": minutes, "toy": toy, "provenance": provenance(where)}

    def record(outcomes: list[Outcome], new: Outcome) -> None:
        replace_json(out, {**header, "status": "running", "parts": [asdict(one) for one in outcomes]})
        console.print(progress_line(new), markup=False, soft_wrap=True)

    with tempfile.TemporaryDirectory() as folder, stop_on_signals() as stop:
        parts = device_parts(where, toy, logs, Path(folder) / "model") if parts is None else parts
        outcomes = run_parts(parts, deadline - time.monotonic(), logs, record, lambda: stop.made)
        status = f"interrupted by {signal.Signals(stop.number).name}" if stop.made else "done"
        replace_json(out, {**header, "status": status, "parts": [asdict(one) for one in outcomes]})
    for name in LARGE:
        shutil.rmtree(logs / "quickstart" / name, ignore_errors=True)
    show(header["provenance"]["device"], outcomes)
    console.print(str(out))
    if stop.made:
        stop.obey()
    if any(one.status in ("failed", "timed out") for one in outcomes):
        raise SystemExit(1)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Ctrl-C, SIGTERM and SIGUSR1 are noted; and a lost terminal (SIGHUP) is a SIGTERM, unless nohup has it ignored."""
    with StopRequest() as stop:
        hang_up = getattr(signal, "SIGHUP", None)
        before = signal.getsignal(hang_up) if hang_up else signal.SIG_IGN
        if hang_up and before != signal.SIG_IGN:
            signal.signal(hang_up, lambda number, frame: signal.raise_signal(signal.SIGTERM))
        try:
            yield stop
        finally:
            if hang_up and before != signal.SIG_IGN:
                signal.signal(hang_up, before)


def device_parts(where: torch.device, toy: bool, logs: Path, weights: Path) -> list[Part]:
    """What is measured on a device, in order of worth.

    logs: the folder for what the parts write. weights: the folder for the random model that several of them use.
    """
    kind, visible = where.type, only(where)
    gib = torch.cuda.get_device_properties(where).total_memory / 2**30 if kind == "cuda" else 0.0
    model, many, steps = ("tiny", 2, TOY_STEPS) if toy else SIZES[max(least for least in SIZES if least <= gib)]
    dtype = "bfloat16" if kind == "cuda" else "float32"

    def unimm_part(name: str, arguments: list[str], weight: float, least: float, result: Path, **more: Any) -> Part:
        shown = " ".join(["unimm", *arguments]).replace(str(weights), model)
        whole_errors = {**visible, "UNIMM_DEBUG": "1"}
        return Part(name, [*UNIMM, *arguments], weight, least, shown, result, environment=whole_errors, **more)

    def bench(name: str, command: str, arguments: list[str], weight: float, least: float, **more: Any) -> Part:
        out = logs / f"{name}.json"
        asked = ["bench", command, "--device", kind, *arguments, "--out", str(out)]
        return unimm_part(name, asked, weight, TOY_SECONDS if toy else least, out, **more)

    drawing, one, several = ["--model", str(weights), "--dtype", dtype], ["--batch", "1"], ["--batch", str(many)]
    few = ["--dtype", "bfloat16", "--only-weights", "--weights", "int8", *(["--weights", "fp8"] if kind == "cuda" else [])]
    no_torchao = "" if kind == "cpu" or find_spec("torchao") else "it needs torchao: pip install 'unimm[quantize]'"
    kernels = ["--only-weights", "--kernels", "torch", "--kernels", "triton"]
    no_triton = "" if kind == "cuda" else "Triton's kernels are for CUDA devices"
    step = ["--model", model, *steps, *([] if toy else ["--steps", "15"])]
    step += [] if kind == "cuda" else ["--no-compile", "--precision", "no"]
    making = ["-m", "unimm.cli.bench.checkpoint", model, dtype, kind, str(weights)]
    small = {"needs": "weights"}
    quick = logs / "quickstart"
    return [
        *tests(visible, toy),
        Part(
            "weights",
            [sys.executable, *making],
            0.8,
            TOY_SECONDS if toy else 20.0,
            " ".join(["python", *making]),
            environment=visible,
        ),
        bench("generate-1", "generate", [*drawing, *one], 1.8, 40.0, **small),
        bench(f"generate-{many}", "generate", [*drawing, *several], 2.0, 40.0, **small),
        bench("few-bits", "generate", [*drawing[:2], *one, *several, *few], 1.5, 30.0, why_not=no_torchao, **small),
        bench("triton", "generate", [*drawing, *one, *several, *kernels], 1.5, 40.0, why_not=no_triton, **small),
        bench("pretrain", "pretrain", step, 2.6, 75.0),
        unimm_part(
            "quickstart",
            ["quickstart", "--minutes", MINUTES, "--device", kind, "--out", str(quick)],
            3.0,
            75.0,
            quick / "scores" / "scores.json",
        ),
    ]


def tests(visible: dict[str, str], toy: bool) -> list[Part]:
    """The tests for GPUs, a process a file: what breaks the device in one costs the others nothing."""
    if not ((ROOT / "pyproject.toml").is_file() and (ROOT / "tests").is_dir()) or find_spec("pytest") is None:
        return [Part("tests", ["pytest", "-m", "gpu"], why_not=NO_TESTS)]
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text("utf-8")]
    parts = []
    for path in sorted(files, key=lambda path: list(TESTS).index(path.stem) if path.stem in TESTS else len(TESTS)):
        weight, least = TESTS.get(path.stem, (0.3, 10.0))
        arguments = ["-m", "gpu", "--tb=short", "-rfE", str(path.relative_to(ROOT))]
        command, shown = (
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
            " ".join(["pytest", *arguments]),
        )
        name = path.stem.replace("_", "-")
        parts.append(Part(name, command, weight, TOY_SECONDS if toy else least, shown, folder=ROOT, environment=visible))
    return parts


def only(where: torch.device) -> dict[str, str]:
    """What lets a process see that device alone, as `cuda`; or none."""
    if where.type != "cuda":
        return {"CUDA_VISIBLE_DEVICES": ""}
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    number = where.index or 0
    return {"CUDA_VISIBLE_DEVICES": seen[number] if number < len(seen) else str(number)}


def progress_line(one: Outcome) -> str:
    """A part that begins, or what became of it."""
    if one.status == "running":
        return f"{one.name}: {one.command} (at most {one.limit_seconds:.0f} s)"
    return f"{one.name}: {one.status}, {headline(one)}" if one.status == "skipped" else f"  {one.status}, {one.seconds:.0f} s"


def headline(one: Outcome) -> str:
    """Why a part is not done, and its figures; of tests, and of what failed, the last line."""
    result, last = one.result or {}, one.tail[-1].strip("= ") if one.tail else ""
    figures = FIGURES["quickstart" if "tasks" in result else result.get("bench", "")](result)
    if not figures and (one.status == "failed" or (one.command.startswith("pytest") and re.search(r" in [\d.]+s", last))):
        figures = [last]
    return "; ".join(text for text in (one.reason, *figures) if text)


def _generate(result: dict[str, Any]) -> list[str]:
    figures = []
    for one in result["measured"]:
        who = one.get("kernels") or (one["who"] if one["weights"] == "as dtype" else one["weights"])
        floor = f" ({one['ms_a_step'] / one['floor_ms']:.2f} x floor)" if one["floor_ms"] else ""
        figures.append(f"{one['num_images']} at once, {who}: {one['ms_a_step']:.2f} ms a step{floor}")
    return figures


def _pretrain(result: dict[str, Any]) -> list[str]:
    measured = result["measured"]
    mfu = [f"MFU {measured['speed/mfu']:.1%}"] if "speed/mfu" in measured else []
    return [*mfu, f"{measured['speed/tokens_per_second']:,.0f} tokens/s", f"{measured['peak_gib']:.1f} GiB"]


def _quickstart(result: dict[str, Any]) -> list[str]:
    return [f"{name} {task['score']:.2f}" for name, task in result["tasks"].items()]


FIGURES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "generate": _generate,
    "pretrain": _pretrain,
    "quickstart": _quickstart,
    "": lambda result: [],
}


def show(device: str, outcomes: list[Outcome]) -> None:
    """The table, and the last lines of what failed."""
    wide = console if console.is_terminal else Console(highlight=False, width=120)
    for one in outcomes:
        if one.status in ("failed", "timed out"):
            wide.print(f"\n{one.name}, {one.output}:", *one.tail[-10:], sep="\n  ", markup=False)
    table = Table(title=device, title_justify="left")
    for title in ("part", "status", "s", "at most", "result"):
        table.add_column(title, justify="right" if title in ("s", "at most") else "left", no_wrap=title != "result")
    for one in outcomes:
        seconds = (f"{one.seconds:.0f}", f"{one.limit_seconds:.0f}") if one.status != "skipped" else ("-", "-")
        table.add_row(one.name, one.status, *seconds, headline(one).replace("[", "\\["))
    wide.print(table)
