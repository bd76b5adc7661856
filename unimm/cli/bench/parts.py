"""Commands of `unimm bench` about models as they are and files that are broken, with their options; what each measures is in
`unimm.bench`."""

from pathlib import Path
from typing import Annotated

import typer

parts = typer.Typer(rich_markup_mode=None)


@parts.command()
def load(
    model: Annotated[str, typer.Option("--model", "-m", help="A size by name, with random weights, or a Janus' folder.")] = (
        "janus_pro_1b"
    ),
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the best that is here].")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="Trials of each; the median is reported.")] = 3,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = Path(
        "runs/bench/load.json"
    ),
) -> None:
    """How fast a checkpoint opens and how much memory it takes, against transformers.

    \b
    Examples:
      unimm bench load --model janus_pro_1b --dtype bfloat16
      unimm bench load --model runs/quickstart/model --dtype float32
    """
    from unimm.cli.bench.load import run

    run(model, device, dtype, repeats, out)


@parts.command()
def projectors(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, or folders of runs, each with its model.")],
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the best that is here].")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Images that are asked about at once.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Trials of each; the median is reported.")] = 20,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = Path(
        "runs/bench/projectors.json"
    ),
) -> None:
    """What projectors cost: visual tokens, time of a prefill, bytes of keys and values; with the scores of their runs.

    \b
    Examples:
      unimm bench projectors demo
      unimm bench projectors runs/projectors --batch 8
    """
    from unimm.cli.bench.projectors import run

    run(models, device, dtype, batch, repeats, out)


@parts.command("broken-data")
def broken_data(
    kills: Annotated[int, typer.Option(min=1, help="Of each command.")] = 2,
    images: Annotated[int, typer.Option(min=1, help="Good ones among the broken ones.")] = 8200,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the outcomes as JSON.")] = Path(
        "runs/bench/broken_data.json"
    ),
) -> None:
    """Whether trainings and encodings of broken files that are killed again and again end as those that were left alone.

    \b
    Example:
      unimm bench broken-data --kills 2
    """
    from unimm.cli.bench.broken_data import run

    run(kills, images, out)
