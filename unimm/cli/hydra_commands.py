"""The commands that Hydra configures: it reads their arguments, `--help` among them; each is done in a module of its name."""

import typer

HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

configured = typer.Typer(rich_markup_mode=None)


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
