"""`unimm score`: FID, CLIPScore, and what an image tokenizer keeps, of folders of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unimm.cli.options import Device, Dtype, Model, open_model

if TYPE_CHECKING:
    from unimm.eval.image_scores import ImageScores

scoring = typer.Typer(rich_markup_mode=None)


@scoring.command()
def score(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of images; folders in it are read, too.")],
    reference: Annotated[Path | None, typer.Option(help="FID: a folder of real images.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help='CLIPScore: a JSONL with {"file", "caption"} a line, as unimm export coco writes.')
    ] = None,
    reconstruct: Annotated[
        bool,
        typer.Option("--reconstruct", help="What MODEL's image tokenizer keeps of IMAGES: rFID, PSNR, SSIM, LPIPS, usage."),
    ] = False,
    model: Model = None,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side in pixels to resize images to [default: IMAGES', or the tokenizer's]."),
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="Inception's weights, torch-fidelity's file [default: where PyTorch keeps downloads].")
    ] = None,
    clip: Annotated[str, typer.Option(help="Folder or hub id of the CLIP.")] = "openai/clip-vit-large-patch14",
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first images of each folder.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    out: Annotated[Path | None, typer.Option(help="File to write [default: image_scores.json beside IMAGES].")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Score a folder of images: FID against real ones, CLIPScore against captions, or an image tokenizer's reconstructions.

    \b
    Examples:
      unimm score runs/coco/images --reference val2014 --captions runs/coco/captions.jsonl --size 256
      unimm score photos --reconstruct --model MODEL
    """
    from rich.console import Console

    from unimm.runtime.atomic_files import check_writable, replace_json

    if reconstruct == (reference is not None or captions is not None):
        raise ValueError("Say what to score: --reference FOLDER (FID), --captions FILE (CLIPScore), or --reconstruct alone.")
    target = out or images.absolute().parent / "image_scores.json"
    check_writable(target)
    if reconstruct:
        found = _reconstruct(images, size, inception, limit, batch, open_model(model, device, dtype, None))
    else:
        found = _score(images, reference, captions, size, (inception, clip), limit, batch, device)
    console = Console(highlight=False)
    console.print(_as_table(found))
    for note in found.notes:
        console.print(note, soft_wrap=True)
    replace_json(target, found.as_json())
    console.print(str(target), soft_wrap=True)


def _score(
    images: Path,
    reference: Path | None,
    captions: Path | None,
    size: int | None,
    networks: tuple[Path | None, str],
    limit: int | None,
    batch: int,
    device: str | None,
) -> "ImageScores":
    from unimm.eval.image_networks import open_clip, open_inception
    from unimm.eval.image_scores import SquareImages, read_captions, score_images
    from unimm.precompute.pass_progress import images_progress
    from unimm.runtime.devices import choose_device

    inception, clip = networks
    mine = SquareImages(images, size, limit)
    real = None if reference is None else SquareImages(reference, mine.size, limit)
    texts = None if captions is None else read_captions(captions)
    features = None if real is None else open_inception(inception)
    pair = None if texts is None else open_clip(clip)
    total = (0 if real is None else real.count + mine.count) + (0 if texts is None else mine.count)
    with images_progress("scoring", total) as advance:
        return score_images(mine, real, texts, features, pair, choose_device(device), batch, advance)


def _reconstruct(images: Path, size: int | None, inception: Path | None, limit: int | None, batch: int, engine: Any) -> Any:
    from unimm.eval.image_networks import open_inception
    from unimm.eval.image_scores import SquareImages, score_reconstructions
    from unimm.precompute.pass_progress import images_progress, say
    from unimm.training.image_tokenizer.reconstruction_loss import load_lpips

    own = engine.image_tokenizer.image_size
    if size not in (None, own):
        raise ValueError(f"The image tokenizer takes images of {own} px, not {size}: leave --size out.")
    mine = SquareImages(images, own, limit)
    networks: dict[str, Any] = {}
    for name, load in (("rFID", lambda: open_inception(inception)), ("LPIPS", lambda: load_lpips("go without it"))):
        try:
            networks[name] = load()
        except ValueError as error:
            if name == "rFID" and inception is not None:
                raise
            networks[name] = None
            say(f"{name} is left out: {error}")
    with images_progress("scoring", mine.count) as advance:
        return score_reconstructions(engine, mine, networks["rFID"], networks["LPIPS"], batch, advance)


def _as_table(found: "ImageScores") -> Any:
    from rich.table import Table

    shown = Table("score", box=None)
    for column in ("value", "standard error", "n", "unit"):
        shown.add_column(column, justify="right")
    for one in found.scores:
        error = "-" if one.error is None else f"{one.error:.4f}"
        shown.add_row(one.name, f"{one.value:.4f}", error, f"{one.count:,}", one.unit)
    for name, value in found.measures.items():
        shown.add_row(name.replace("_", " "), f"{value:.4g}", "-", "", "")
    return shown
