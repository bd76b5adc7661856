"""The commands that Hydra configures: it reads their arguments, `--help` among them; each is done in a module of its name."""

from typing import Annotated

import typer

HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

configured = typer.Typer(rich_markup_mode=None)
data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look at your data before it is learned from.",
)


@configured.command(context_settings=HYDRA, add_help_option=False)
def train(ctx: typer.Context) -> None:
    """Train a unified model. Arguments are Hydra's; `unimm train --help` lists groups, experiments and keys.

    \b
    Examples:
      unimm train +experiment=NAME
      unimm train +experiment=NAME key=value other.key=value
    """
    from unimm.cli.train import main

    main(ctx.args)


@configured.command("train-tokenizer", context_settings=HYDRA, add_help_option=False)
def train_tokenizer(ctx: typer.Context) -> None:
    """Train an image tokenizer. Arguments are Hydra's; `unimm train-tokenizer --help` lists groups, experiments and keys.

    \b
    Example:
      unimm train-tokenizer key=value
    """
    from unimm.cli.train_tokenizer import main

    main(ctx.args)


@configured.command(context_settings=HYDRA, add_help_option=False)
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


@configured.command(context_settings=HYDRA, add_help_option=False)
def encode(ctx: typer.Context) -> None:
    """Store images as codes. Names choose data sets; `unimm encode --help` lists groups and keys.

    \b
    Examples:
      unimm encode image_tokenizer=FOLDER out=runs/codes
      unimm encode shapes image_tokenizer=FOLDER
    """
    from unimm.cli.encode import main

    main(ctx.args)


@configured.command("encode-features", context_settings=HYDRA, add_help_option=False)
def encode_features(ctx: typer.Context) -> None:
    """Store a frozen vision tower's features. Arguments are Hydra's; `unimm encode-features --help` lists groups and keys.

    \b
    Example:
      unimm encode-features init_from=FOLDER data=llava data.paths=llava.json out=runs/features
    """
    from unimm.cli.encode_features import main

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
