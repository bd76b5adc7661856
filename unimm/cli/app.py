"""The commands. Each reads its arguments, calls the engine or a module of its own, and prints; the work is done elsewhere.
Those that Hydra configures (`train`, `encode`, ...) leave their arguments to it, `--help` among them.

Heavy imports stay inside the commands: `unimm --help` must not wait for torch.
"""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from unimm.cli.bench.app import bench
from unimm.cli.bench.eval_resume import eval_resume
from unimm.cli.bench.search import bench_search
from unimm.cli.clips import write_clips
from unimm.cli.doctor.command import doctor
from unimm.cli.drawing_commands import drawings
from unimm.cli.errors import plain_errors
from unimm.cli.evaluate import evaluation
from unimm.cli.export import exporting
from unimm.cli.locate_command import locating
from unimm.cli.model_commands import models
from unimm.cli.options import (
    Device,
    Dtype,
    MaxNewTokens,
    Model,
    NumFrames,
    TextTemperature,
    Verify,
    Votes,
    Weights,
    expand_home,
    open_model,
    read_dash,
)
from unimm.cli.prefer import prefer
from unimm.cli.score import scoring
from unimm.cli.search_commands import retrieval
from unimm.cli.serve import serving
from unimm.runtime.plugins import take_allow_code

ORDER = (
    *("demo", "quickstart", "caption", "answer", "generate", "edit", "outpaint", "locate", "serve"),
    *("classify", "index", "search"),
    *("data", "train-tokenizer", "encode", "encode-features", "join", "plan", "train"),
    *("eval", "export", "score", "reproduce", "report", "compare", "scaling", "convert", "average", "bench", "doctor"),
)
"""The order of `unimm --help`: a model at once, then how one is made, then what is done with it; others come last."""


class Commands(TyperGroup):
    """A group whose commands are listed in that order, and end in one sentence when something goes wrong."""

    def list_commands(self, ctx):
        place = {name: number for number, name in enumerate(ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: place.get(name, len(ORDER)))

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, [expand_home(argument) for argument in take_allow_code(args)])

    def invoke(self, ctx):
        with plain_errors():
            return super().invoke(ctx)


HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Of a command that Hydra configures."""

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look at your data before it is learned from, or write it in another format.",
)
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(drawings)
app.add_typer(locating)
app.add_typer(models)
app.add_typer(exporting)
app.add_typer(scoring)
app.add_typer(evaluation)
app.add_typer(serving)
app.add_typer(retrieval)
app.add_typer(doctor)
data.command("clips")(write_clips)
app.add_typer(data, name="data")
data.command()(prefer)
bench.add_typer(bench_search)
bench.command("eval-resume")(eval_resume)
app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="With any command: import the packages that a model folder names parts of.")
    ] = False,
) -> None:
    """Train, run and measure models that understand and generate images.

    Begin with `unimm demo`, to see what a small model does, and `unimm quickstart`, which makes one on any computer.
    """
    if version:
        import unimm

        typer.echo(unimm.__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the pictures that it looks at and draws, and the sheet of them all.")
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Another seed, other drawings.")] = 7,
    device: Device = None,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Open the page or the sheet, where there is a screen.")] = True,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Open the web page, where the extra serve is installed; else the sheet.")
    ] = True,
) -> None:
    """See at once what the model that comes with unimm can do: captions, answers and drawings, on one sheet and on a web page.

    It takes seconds and downloads nothing. The pictures that it writes are there to try the other commands on. Where there is
    a screen, it goes on as a server of the page, for this machine alone, until Ctrl-C.

    \b
    Example:
      unimm demo --out runs/demo
    """
    from unimm.cli.demo import run

    run(out, seed, device, show, page)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Another seed, another model.")] = 0,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for all of it, on the machine at hand.")] = 15.0,
    from_nothing: Annotated[
        bool, typer.Option("--from-nothing", help="Train the image tokenizer and the vision tower, too, instead of the demo's.")
    ] = False,
    device: Device = None,
) -> None:
    """Train, evaluate and draw with a small model, without a download: on a CPU in minutes, on a GPU where there is one.

    It measures the machine, says what to expect, and begins with the demo's vision tower and image tokenizer.
    Interrupt it at any time; the same command goes on where it stopped.

    \b
    Example:
      unimm quickstart --out runs/quickstart --minutes 15
    """
    from unimm.cli.quickstart import quickstart as run

    run(out, seed, minutes, from_nothing, device)


@app.command()
def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image or video files; - is standard input.")],
    model: Model = None,
    language: Annotated[str, typer.Option(help="Language to ask in: en or zh.")] = "en",
    max_new_tokens: MaxNewTokens = 128,
    temperature: TextTemperature = 0.0,
    votes: Votes = 1,
    verify: Verify = False,
    num_frames: NumFrames = None,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
) -> None:
    """Describe images or videos. Several give one line each: file, tab, caption.

    \b
    Examples:
      unimm caption photo.jpg --language zh --verify
      curl -s https://example.com/photo.jpg | unimm caption -
    """
    given = [read_dash(image) for image in images]
    checks = {"votes": votes, "verify": verify, "num_frames": num_frames}
    captions = open_model(model, device, dtype, weights).caption(given, max_new_tokens, temperature, language, **checks)
    for image, text in zip(images, captions, strict=True):
        typer.echo(text if len(images) == 1 else f"{image}\t{' '.join(text.split())}")


@app.command()
def answer(
    words: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE... QUESTION", help="Images or videos, then what to ask about all of them, in quotes."),
    ],
    model: Model = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGE=ANSWER", help="An image and the right answer to this question; repeat it (few-shot)."),
    ] = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: TextTemperature = 0.0,
    votes: Votes = 1,
    verify: Verify = False,
    num_frames: NumFrames = None,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
) -> None:
    """Answer a question about an image, or about several at once; about a video where the model was made for them.

    \b
    Examples:
      unimm answer photo.jpg "How many circles are there?"
      unimm answer photo.jpg "How many circles are there?" --votes 5
      unimm answer before.png after.png "What differs?"
      unimm answer new.png "Is this a dax or a wug?" --example a.png=dax --example b.png=wug
      unimm answer clip.mp4 "Which way does the circle move?" --num-frames 8
    """
    from unimm.cli.answer import read_images, read_pairs

    images, question = read_images(words)
    checks = {"examples": read_pairs(example or []), "votes": votes, "verify": verify, "num_frames": num_frames}
    typer.echo(open_model(model, device, dtype, weights).answer(images, question, max_new_tokens, temperature, **checks))


@app.command(context_settings=HYDRA, add_help_option=False)
def train(ctx: typer.Context) -> None:
    """Train a unified model. Arguments are Hydra's; `unimm train --help` lists groups, experiments and keys.

    \b
    Examples:
      unimm train +experiment=NAME
      unimm train +experiment=NAME key=value other.key=value
    """
    from unimm.cli.train import main

    main(ctx.args)


@app.command("train-tokenizer", context_settings=HYDRA, add_help_option=False)
def train_tokenizer(ctx: typer.Context) -> None:
    """Train an image tokenizer. Arguments are Hydra's; `unimm train-tokenizer --help` lists groups, experiments and keys.

    \b
    Example:
      unimm train-tokenizer key=value
    """
    from unimm.cli.train_tokenizer import main

    main(ctx.args)


@app.command(context_settings=HYDRA, add_help_option=False)
def plan(ctx: typer.Context) -> None:
    """Store which samples share which row of a training. Arguments are those of `unimm train`, and trainer.plan=FOLDER.

    Ranks and workers then need not plan: worth it for many of them, or where samples are slow to make.

    \b
    Example:
      unimm plan +experiment=NAME trainer.plan=FOLDER
      unimm train +experiment=NAME trainer.plan=FOLDER
    """
    from unimm.cli.plan import main

    main(ctx.args)


@app.command(context_settings=HYDRA, add_help_option=False)
def encode(ctx: typer.Context) -> None:
    """Store images as codes. Names choose data sets; `unimm encode --help` lists groups and keys.

    \b
    Examples:
      unimm encode image_tokenizer=FOLDER out=runs/codes
      unimm encode shapes image_tokenizer=FOLDER
    """
    from unimm.cli.encode import main

    main(ctx.args)


@app.command("encode-features", context_settings=HYDRA, add_help_option=False)
def encode_features(ctx: typer.Context) -> None:
    """Store a frozen vision tower's features. Arguments are Hydra's; `unimm encode-features --help` lists groups and keys.

    \b
    Example:
      unimm encode-features init_from=FOLDER data=llava data.paths=llava.json out=runs/features
    """
    from unimm.cli.encode_features import main

    main(ctx.args)


@app.command(context_settings=HYDRA, add_help_option=False)
def reproduce(ctx: typer.Context) -> None:
    """Measure Janus-Pro as its report does: GenEval, DPG-Bench, POPE and MMBench, beside what the paper and others found.

    Every setting is a key of conf/reproduce.yaml; `unimm reproduce --help` lists them. Stopped at any time, it goes on.

    \b
    Example:
      unimm reproduce init_from=FOLDER geneval.prompts=evaluation_metadata.jsonl out=runs/reproduce
    """
    from unimm.cli.reproduce import main

    main(ctx.args)


@data.command(context_settings=HYDRA, add_help_option=False)
def inspect(ctx: typer.Context, sample: Annotated[int | None, typer.Option("--sample", min=1)] = None) -> None:
    """Tell what is in data: counts, lengths, what is cut or refused, broken files, near-duplicates; a table, JSON and a page.

    Arguments are the data=... of `unimm encode` and `unimm train`; `unimm data inspect --help` lists groups and keys.
    --sample N looks at so many records of each data set; open_images=false opens no images.

    \b
    Examples:
      unimm data inspect data=image_folder data.folder=photos init_from=demo out=runs/inspect
      unimm data inspect data=jsonl data.paths=captions.jsonl --sample 10000
    """
    from unimm.cli.data import main

    main([*ctx.args, *([] if sample is None else [f"sample={sample}"])])


@data.command("convert", context_settings=HYDRA, add_help_option=False)
def convert_data(ctx: typer.Context) -> None:
    """Write data in another format: jsonl, llava, image_folder, webdataset or parquet; image files are copied as they are.

    Arguments are the data=... of `unimm encode` and `unimm train`; `unimm data convert --help` lists groups and keys.

    \b
    Examples:
      unimm data convert data=image_folder data.folder=photos to=webdataset out=shards
      unimm data convert data=llava data.paths=llava.json to=parquet out=tables
    """
    from unimm.cli.data_convert import main

    main(ctx.args)
