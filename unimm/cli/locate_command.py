"""The command that locates. What it does is in `unimm.cli.locate`."""

from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.options import Device, Dtype, ImageFile, Model, Weights, open_model, read_dash

locating = typer.Typer(rich_markup_mode=None)


@locating.command()
def locate(
    image: ImageFile,
    phrases: Annotated[list[str], typer.Argument(metavar="PHRASE...", help="What to find, each in quotes.")],
    out: Annotated[Path | None, typer.Option(help="A picture to write, with what was found drawn on it.")] = None,
    points: Annotated[bool, typer.Option("--points", help="Centres instead of boxes.")] = False,
    heat_map: Annotated[
        bool, typer.Option("--heat-map", help="Heat maps instead of boxes, of any model; several stand side by side.")
    ] = False,
    by: Annotated[
        str | None, typer.Option(help="With --heat-map: similarity or attention [default: similarity, where the model can].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
) -> None:
    """Find what phrases name in a picture: boxes in its pixels (left, top, right, bottom), or "none".

    Boxes need a model that was taught to locate; heat maps need none.

    \b
    Examples:
      unimm locate photo.png "the red circle" --out marked.png --model runs/locate/model
      unimm locate photo.png "the red circle" "the square" --heat-map --out hot.png
    """
    from unimm.cli.locate import check_out
    from unimm.cli.locate import locate as run

    check_out(out)
    if by is not None and not heat_map:
        raise ValueError("--by says how heat maps are made: add --heat-map, or leave it out.")
    if points and heat_map:
        raise ValueError("--points and --heat-map are two ways to show where something is: choose one.")
    source = read_dash(image)
    engine = open_model(model, device, dtype, weights)
    run(engine, source, phrases, out, as_json, points=points, heat=(by or "default") if heat_map else None)
