"""The commands that draw: generate, edit and outpaint. Every picture that they write says where it comes from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unimm.cli.options import (
    BestOf,
    Device,
    DrawingSize,
    DrawingTemperature,
    DrawingWay,
    Dtype,
    GuidanceInterval,
    GuidanceScale,
    ImageFile,
    ImageGuidanceScale,
    Kernels,
    MinP,
    Model,
    NumImages,
    PicturesOut,
    Redraws,
    Seed,
    Solver,
    SourceBias,
    Steps,
    TopK,
    TopP,
    Weights,
    Window,
    open_model,
    read_dash,
)

if TYPE_CHECKING:
    from PIL import Image


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_PICTURES = (".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".jfif", ".svg", ".pdf")
SETTINGS = ("guidance_scale", "temperature", "top_k", "top_p", "min_p", "guidance_interval")
SETTINGS += ("size", "drawing", "steps", "solver")
MADE_OTHERWISE = {
    "inpaint": ("is an image of which a part was painted anew", "its image and mask"),
    "edit": ("was edited", "the image that it was made of"),
}
"""What images say of how they were made, where that was not from a prompt alone; and what that takes."""

drawings = typer.Typer(rich_markup_mode=None)


@drawings.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw, in quotes.")] = None,
    again: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DRAWING", help="Draw again what a file of unimm's shows; what is given beside it is changed."
        ),
    ] = None,
    model: Model = None,
    num_images: NumImages = 1,
    size: DrawingSize = None,
    out: PicturesOut = Path("drawings"),
    seed: Seed = 0,
    guidance_scale: GuidanceScale = None,
    temperature: DrawingTemperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = 0.0,
    guidance_interval: GuidanceInterval = (0.0, 1.0),
    drawing: DrawingWay = None,
    steps: Steps = None,
    solver: Solver = None,
    best_of: BestOf = 1,
    redraw: Redraws = 0,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    window: Window = None,
    kernels: Kernels = None,
) -> None:
    """Draw images from a prompt, and print the files written. Each holds its prompt, seed and settings.

    \b
    Examples:
      unimm generate "a large red circle left of a small blue square" -n 4 --out drawings
      unimm generate --from drawings/drawing-0000.png --guidance-scale 4
    """
    from unimm.cli.progress import drawing_bar

    given = {
        name: context.params[name]
        for name in ("prompt", "seed", "num_images", "best_of", "redraw", "dtype", "weights", *SETTINGS)
    }
    said = None if again is None else _read_drawing(again)
    if said is not None:
        given |= _settings_of(said, context)
    if given["prompt"] is None:
        raise typer.BadParameter("say what to draw, in quotes, or name a drawing with --from.", context, param_hint="PROMPT")
    engine = open_model(model, device, given.pop("dtype"), given.pop("weights"), window, kernels)
    if said is not None and said["model"] != engine.model_hash:
        told = f"{again} was drawn by another model ({said['model'][:12]}) than this one ({engine.model_hash[:12]})"
        typer.echo(f"{told}: the drawing will differ, name its model with --model.", err=True)
    paths = picture_paths(out, num_images)  # before the work, so that a folder that cannot be written costs no wait
    with drawing_bar() as advance:
        images = engine.generate_images(**given, callback=advance)
    _write(paths, images)


@drawings.command()
def edit(
    image: ImageFile,
    prompt: Annotated[
        str, typer.Argument(metavar="INSTRUCTION", help="What to change; with a mask, what the whole image shall show then.")
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="An image of its size: what is transparent, or else white, is painted anew [default: where IMAGE is]."
        ),
    ] = None,
    margin: Annotated[
        int | None,
        typer.Option(
            min=0, help="Look at so many pixels around the mask alone: more detail for a small part of a large image."
        ),
    ] = None,
    square: Annotated[
        bool, typer.Option("--square", help="Write the square at IMAGE's centre, at the model's size, and not all of IMAGE.")
    ] = False,
    model: Model = None,
    num_images: NumImages = 1,
    out: PicturesOut = Path("drawings"),
    seed: Seed = 0,
    guidance_scale: GuidanceScale = None,
    image_guidance_scale: ImageGuidanceScale = None,
    source_bias: SourceBias = None,
    temperature: DrawingTemperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = 0.0,
    best_of: BestOf = 1,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    window: Window = None,
    kernels: Kernels = None,
) -> None:
    """Change an image as an instruction says, and print the files written; or paint a part of it anew, where a mask says.

    An instruction is followed by models that were taught to edit. With a mask, or an image that is transparent somewhere, every
    model that draws paints that part, and all outside of it stays as it is, to the byte.

    \b
    Examples:
      unimm edit photo.png "make the circle blue" --model MODEL
      unimm edit photo.png "a green cross" --mask mask.png
    """
    from unimm.cli.progress import drawing_bar
    from unimm.data.image import decode_image, transparent_part
    from unimm.inference.windows_of_images import lay_over

    source = read_dash(image)
    has_mask = mask is not None or bool(transparent_part(source).any())
    for name, given in {} if has_mask else {"--margin": margin is not None, "--best-of": best_of > 1}.items():
        if given:
            raise ValueError(f"{name} is for a part that a mask names: leave it out, or add --mask.")
    of_instructions = {"image_guidance_scale": image_guidance_scale, "source_bias": source_bias}
    for name, value in of_instructions.items() if has_mask else ():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for edits by instruction, and here a mask says where to paint: leave it out.")
    engine = open_model(model, device, dtype, weights, window, kernels)
    if not has_mask:
        engine.prompt_format.check_edits()
    paths = picture_paths(out, num_images)
    settings = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    with drawing_bar() as advance:
        if has_mask:
            settings |= {"best_of": best_of, "margin": margin, "keep_size": not square}
            images = engine.inpaint(source, mask, prompt, num_images, seed, advance, **settings)
        else:
            settings |= of_instructions
            images = engine.edit_images(source, prompt, num_images, seed, callback=advance, **settings)
            images = images if square else [lay_over(decode_image(source), one) for one in images]
    _write(paths, images)


@drawings.command()
def outpaint(
    image: ImageFile,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the whole image shall show then, in quotes.")],
    left: Annotated[int, typer.Option(help="Pixels that are new on the left; below 0, so many are cut off.")] = 0,
    right: Annotated[int, typer.Option(help="The same, on the right.")] = 0,
    top: Annotated[int, typer.Option(help="The same, above.")] = 0,
    bottom: Annotated[int, typer.Option(help="The same, below.")] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Instead of these: of the new image, with IMAGE in its middle.")
    ] = None,
    model: Model = None,
    num_images: NumImages = 1,
    out: PicturesOut = Path("drawings"),
    seed: Seed = 0,
    guidance_scale: GuidanceScale = None,
    temperature: DrawingTemperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = 0.0,
    best_of: BestOf = 1,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    window: Window = None,
) -> None:
    """Put an image on a larger canvas, paint what is around it, and print the files written. The image stays, to the byte.

    \b
    Examples:
      unimm outpaint photo.png "a red circle left of a blue square" --right 64
      unimm outpaint photo.png "a red circle" --size 128x96 --out wide.png
    """
    from unimm.cli.progress import drawing_bar

    source = read_dash(image)
    engine = open_model(model, device, dtype, weights, window)
    paths = picture_paths(out, num_images)
    settings = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    settings |= {"best_of": best_of, "size": size}
    with drawing_bar() as advance:
        images = engine.outpaint(source, prompt, left, right, top, bottom, num_images, seed, callback=advance, **settings)
    _write(paths, images)


def picture_paths(out: Path, count: int) -> list[Path]:
    """Where to write `count` pictures: the file, numbered if there are several; or new files in the folder, none replaced."""
    if out.suffix.lower() in OTHER_PICTURES and not out.is_dir():
        raise ValueError(f"A picture is written as {', '.join(PICTURE_SUFFIXES)}, not as {out}: give it such a name.")
    if out.suffix.lower() in PICTURE_SUFFIXES:
        out.parent.mkdir(parents=True, exist_ok=True)
        return [out] if count == 1 else [out.with_stem(f"{out.stem}-{index}") for index in range(count)]
    out.mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem[8:]) for path in out.glob("drawing-*.png") if path.stem[8:].isdecimal()]
    first = max(taken, default=-1) + 1
    return [out / f"drawing-{number:04d}.png" for number in range(first, first + count)]


def _write(paths: list[Path], images: "list[Image.Image]") -> None:
    from unimm.runtime.provenance import write_image

    for path, image in zip(paths, images, strict=True):
        write_image(image, path)
        typer.echo(path)


def _read_drawing(path: Path) -> dict[str, Any]:
    """What a drawing says of how it was made. ValueError: it says nothing, or is none."""
    from unimm.runtime.provenance import DRAWN, read_provenance

    said = read_provenance(path)
    if said is None:
        raise ValueError(f"{path} does not say how it was drawn: only images as unimm wrote them do, not copies without it.")
    if said["task"] != DRAWN:
        made, needed = MADE_OTHERWISE.get(said["task"], ("was not drawn from a prompt alone", "what it was made of"))
        raise ValueError(f"{path} {made}, and is not made again without {needed}: unimm generate --from reads drawings.")
    return said


def _settings_of(said: dict[str, Any], context: typer.Context) -> dict[str, Any]:
    """What a drawing was made with, but for what the command line says otherwise; and which image of its seed it is."""
    own = {name: said["settings"][name] for name in SETTINGS if name in said["settings"]}
    own |= {name: said.get(name) for name in ("prompt", "seed", "dtype", "weights")}
    is_given = {name for name in own if context.get_parameter_source(name).name == "COMMANDLINE"}  # pyright: ignore[reportOptionalMemberAccess]
    return {name: value for name, value in own.items() if name not in is_given} | {"first_index": said["index"]}
