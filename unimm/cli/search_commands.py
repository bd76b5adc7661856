"""The commands that embed: classify, index, search. What they do is in `unimm.retrieval`."""

from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.options import Device, Dtype, ImageFile, default_model, read_dash

TowersModel = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="A model with contrastive heads, or a CLIP or SigLIP: folder or hub id [default: $UNIMM_MODEL]."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

retrieval = typer.Typer(rich_markup_mode=None)


@retrieval.command()
def classify(
    image: ImageFile,
    labels: Annotated[list[str], typer.Argument(metavar="LABEL...", help="Phrases to choose among, each in quotes.")],
    model: TowersModel = None,
    template: Annotated[
        list[str] | None, typer.Option(help="A sentence with {} where a label stands; repeat it, they are averaged.")
    ] = None,
    as_json: AsJson = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Say which of some labels an image shows, without having been trained on them (zero-shot).

    Probabilities add up to 1 for a model that learned to choose (CLIP), and stand each for itself for a SigLIP.

    \b
    Examples:
      unimm classify photo.png "a red circle" "a blue square"
      unimm classify photo.png cat dog --template "a photo of a {}" --model openai/clip-vit-base-patch32
    """
    from unimm.cli.search import classify as run

    run(read_dash(image), labels, model or default_model(), template, as_json, (device, dtype))


@retrieval.command()
def index(
    images: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A folder of images, or a .jsonl, .csv, .parquet or .tar file of records.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the index; one that is there is extended.")],
    model: TowersModel = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass of the image tower.")] = 32,
    num_threads: Annotated[int, typer.Option("--threads", min=1, help="That read and prepare images.")] = 2,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Embed all images of a folder, to be searched. Given again, it embeds what is new and drops what is gone.

    Interrupted, also by a kill, it goes on where it stopped. Needs the extra search.

    \b
    Example:
      unimm index photos --model runs/retrieval/model --out runs/index
    """
    from unimm.cli.search import index as run

    run(images, out, model or default_model(), batch_size, num_threads, (device, dtype))


@retrieval.command()
def search(
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="What the images are to show, in quotes.")] = None,
    where: Annotated[Path | None, typer.Option("--index", help="Folder that `unimm index` wrote.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many are shown.")] = 10,
    image: Annotated[
        str | None, typer.Option(help="Search for images like this one, instead of a QUERY; - is standard input.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="With --image: a file with a text a line; those that fit best are found.")
    ] = None,
    rerank: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Order the first again by a unified model: folder, hub id or demo.")
    ] = None,
    rerank_by: Annotated[str, typer.Option(help="alignment (VQAScore), likelihood (of the text), or both.")] = "both",
    out: Annotated[Path | None, typer.Option(help="A picture (.png) or a page (.html) of what was found.")] = None,
    as_json: AsJson = False,
    model: TowersModel = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Find the images of an index that fit a text or are like an image; or, of some texts, those that fit an image.

    The score is the cosine similarity. Without --model, it asks with the model that made the index.

    \b
    Examples:
      unimm search "two red circles" --index runs/index
      unimm search "a red circle left of a blue square" --index runs/index --rerank demo --out found.png
      unimm search --image photo.png --index runs/index
      unimm search --image photo.png --texts captions.txt --model openai/clip-vit-base-patch32
    """
    from unimm.cli.search import Asked
    from unimm.cli.search import search as run

    given = None if image is None else read_dash(image)
    run(Asked(query, given, texts, where, k), model, (rerank, rerank_by), out, as_json, (device, dtype))
