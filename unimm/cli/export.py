"""`unimm export`: a public benchmark's prompts drawn into the files that its scorer takes; and its results as one table."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unimm.cli.options import (
    Device,
    DrawingTemperature,
    Dtype,
    GuidanceScale,
    Model,
    Seed,
    TopK,
    TopP,
    Weights,
    default_model,
    open_model,
)

if TYPE_CHECKING:
    from unimm.eval.benchmarks.benchmark import Benchmark, ScoreTable
    from unimm.eval.benchmarks.export import Export, Shard

exporting = typer.Typer(rich_markup_mode=None)

NAMES = "geneval, dpg, wise, t2i-compbench, coco, geneval2, oneig; of editing imgedit, gedit"


@exporting.command()
def export(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help=f"{NAMES}.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="With --scores: the scorer's results, or folders of them [default: OUT]."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="The benchmark's own prompt file, or the folder of them, as it publishes them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write [default: runs/BENCHMARK].")] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Draw nothing: read the scorer's results into a table and OUT/scores.json.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="With --scores: items may be missing.")] = False,
    model: Model = None,
    num_images: Annotated[
        int | None, typer.Option("-n", "--num-images", min=1, help="Images a prompt [default: the benchmark's own].")
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, help="Only so many of the prompts, always the same [default: all; coco 30,000].")
    ] = None,
    seed: Seed = 0,
    guidance_scale: GuidanceScale = None,
    temperature: DrawingTemperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at once [default: 64 on a GPU, 16 elsewhere].")] = None,
    shard: Annotated[
        str, typer.Option(metavar="NUMBER/COUNT", help="Which of several processes this is, from 0 on: each draws its share.")
    ] = "0/1",
    name: Annotated[str | None, typer.Option(help="The model's name in folders (oneig) [default: MODEL's].")] = None,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
) -> None:
    """Draw a public benchmark's prompts, into the files that its own scorer takes; then read the scorer's results.

    Stopped at any time, the same command goes on where it was. An image's seed comes from the benchmark, the prompt and the
    image's number, so any number of processes draws the same images.

    \b
    Examples:
      unimm export geneval --prompts evaluation_metadata.jsonl --model MODEL --out runs/geneval
      unimm export geneval --prompts evaluation_metadata.jsonl --model MODEL --out runs/geneval --shard 1/2
      unimm export geneval --scores runs/geneval/results.jsonl --out runs/geneval
    """
    from unimm.eval.benchmarks.benchmark import choose_prompts
    from unimm.eval.benchmarks.export import Export, ExportSettings, digest_of
    from unimm.eval.benchmarks.table import BENCHMARKS

    if benchmark not in BENCHMARKS:
        raise ValueError(f"There is no benchmark '{benchmark}': choose one of {', '.join(BENCHMARKS)}.")
    chosen, out = BENCHMARKS[benchmark], out or Path("runs") / benchmark
    if scores:
        _read_scores(chosen, files or [], out, partial)
        return
    if files:
        raise ValueError(f"What is {files[0]}? Results of a scorer are named behind --scores, prompts with --prompts.")
    if prompts is None:
        raise ValueError(f"Name {chosen.title}'s own prompts with --prompts ({chosen.source}).")
    share = _shard(shard)
    settings = ExportSettings(
        num_images=num_images or chosen.num_images,
        seed=seed,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch=batch or (64 if _is_gpu(device) else 16),
        name=name or folder_name(model or default_model()),
    )
    # What is wrong with prompts is said before the model is opened, which takes longer.
    read = choose_prompts(chosen.read(prompts), num_prompts or chosen.num_chosen)
    for prompt in read:
        chosen.files(prompt, settings.num_images, settings.name)
    engine = open_model(model, device, dtype, weights)
    run_export(Export(chosen, engine, read, digest_of(prompts), settings, out), share)


def folder_name(model: str) -> str:
    """What a model is called where a benchmark's folders name it."""
    return re.sub(r"[^\w-]+", "-", Path(model).name)


def run_export(making: "Export", shard: "Shard") -> None:
    """Draw what is missing of a process' share, with progress, and say how it is scored."""
    from unimm.precompute.pass_progress import images_progress, say

    if making.note:
        say(making.note)
    if len(making.prompts) < making.benchmark.num_prompts:
        whole = f"{making.benchmark.title} has {making.benchmark.num_prompts:,} prompts"
        say(f"{whole}, these are {len(making.prompts):,}: scores of them are not the benchmark's.")
    making.begin()
    missing = making.missing(shard)
    num_missing, num_all = making.num_images(missing), making.num_images(making.batches(shard))
    with images_progress(f"{making.benchmark.title}, {making.settings.batch} at once", num_missing) as advance:
        making.draw(missing, advance)
    left = making.finish()
    typer.echo(f"{making.out}: {num_all:,} images, {num_missing:,} of them drawn now, {len(making.prompts):,} prompts.")
    if left:
        typer.echo(f"{left:,} files of other processes are missing: run them, or this command without --shard.")
        return
    scorer = making.benchmark.scorer_line(making.out, making.manifest)
    typer.echo(f"Score them ({making.benchmark.source}): {scorer}")


def _read_scores(chosen: "Benchmark", files: list[str], out: Path, partial: bool) -> None:
    from rich.console import Console

    from unimm.eval.benchmarks.scores import SCORES, score

    table = score(chosen, files, out, partial)
    console = Console(highlight=False)
    console.print(as_table(chosen.title, table))
    if table.judge:
        console.print(f"Judge: {table.judge}.", soft_wrap=True)
    if table.missing:
        console.print(f"Missing: {table.missing:,} of {table.expected:,} items.")
    console.print(str(out / SCORES), soft_wrap=True)


def as_table(title: str, table: "ScoreTable") -> Any:
    """A table for a person."""
    from rich.table import Table

    digits = 2 if table.unit == "percent" else 4
    shown = Table(title=f"{title}, {table.unit}", title_justify="left", box=None)
    shown.add_column("score")
    for column in ("value", "standard error", "n"):
        shown.add_column(column, justify="right")
    for row in [*([table.total] if table.total else []), *table.rows]:
        error = "-" if row.error is None else f"{row.error:.{digits}f}"
        shown.add_row(row.label, f"{row.value:.{digits}f}", error, f"{row.count:,}" if row.count else "-")
    return shown


def _shard(text: str) -> "Shard":
    from unimm.eval.benchmarks.export import Shard

    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"--shard is NUMBER/COUNT with numbers from 0 on, such as 0/2 and 1/2, not {text}.")
    return Shard(int(match[1]), int(match[2]))


def _is_gpu(device: str | None) -> bool:
    from unimm.runtime.devices import choose_device

    return choose_device(device).type == "cuda"
