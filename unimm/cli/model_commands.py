"""The commands that run no model: models made out of models (convert, join, average), and what is made of scores (report,
compare, scaling)."""

from pathlib import Path
from typing import Annotated

import typer

OWN = " [default: the model's own]."

models = typer.Typer(rich_markup_mode=None)


@models.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Model folder or hub id; a run's folder, or a checkpoint's.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; a model that is there is replaced.")],
    from_pickle: Annotated[
        bool,
        typer.Option(
            "--from-pickle", help="Read PyTorch's .bin files, as DeepSeek's repositories have; only tensors are read."
        ),
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 [default: as stored].")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="The default of its drawings" + OWN)] = None,
    temperature: Annotated[float | None, typer.Option(help="The default of its drawings" + OWN)] = None,
    notes: Annotated[Path | None, typer.Option(help="A Markdown file for the model card: recipe, scores, licence.")] = None,
    adapter: Annotated[str | None, typer.Option(help="A LoRA adapter of SOURCE, folder or hub id, to merge into it.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Of a SOURCE that is diffusers' AutoencoderKL: the size of images in pixels.")
    ] = None,
    latents_tokenizer: Annotated[
        str | None, typer.Option(help="Of a SOURCE that is a JanusFlow: folder of the image tokenizer that it draws with.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Then upload OUT to the Hugging Face hub.")
    ] = None,
    private: Annotated[bool | None, typer.Option(help="Whether a new hub repository is private.")] = None,
) -> None:
    """Write a model so that transformers opens it too. DeepSeek's own layout, transformers' and unimm's are read; and the
    folder of an autoencoder of Stable Diffusion or SDXL, which becomes an image tokenizer. A training's folder stands for its
    newest checkpoint, whoever wrote it: its averaged weights where it has some.

    \b
    Examples:
      unimm convert deepseek-ai/Janus-Pro-1B janus-pro-1b --from-pickle
      unimm convert runs/quickstart/model out --dtype bfloat16 --push-to-hub user/name
      unimm convert deepseek-community/Janus-Pro-1B out --adapter runs/mine/adapter
      unimm convert runs/mine/checkpoints/step-00000500 out
      unimm convert sdxl-vae runs/vae --image-size 384
      unimm convert JanusFlow-1.3B janus-flow --latents-tokenizer runs/vae
    """
    from unimm.cli.convert import convert as run

    given = {"guidance_scale": guidance_scale, "temperature": temperature}
    drawing = {name: value for name, value in given.items() if value is not None}
    run(source, out, from_pickle, dtype, push_to_hub, private, drawing, notes, adapter, image_size, latents_tokenizer)


@models.command()
def join(
    trunk: Annotated[str, typer.Option(help="Language model of transformers: folder or hub id.")],
    vision: Annotated[str, typer.Option(help="SigLIP of transformers: folder or hub id.")],
    image_tokenizer: Annotated[str, typer.Option(help="Image tokenizer's folder, or a model with one, as a Janus.")],
    out: Annotated[Path, typer.Option(help="Folder to write; a model that is there is replaced.")],
    seed: Annotated[int, typer.Option(help="Of what is new.")] = 0,
) -> None:
    """Put a model together from pretrained parts; projector and image head are untrained. What stage I starts from.

    \b
    Example:
      unimm join --trunk LLM --vision SIGLIP --image-tokenizer runs/tokenizer/model --out runs/start
    """
    from unimm.cli.join import join as run

    run(trunk, vision, image_tokenizer, out, seed)


@models.command()
def average(
    sources: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Model folders or hub ids, two or more.")],
    out: Annotated[Path, typer.Option(help="Folder to write; a model that is there is replaced.")],
    weight: Annotated[list[float] | None, typer.Option(help="Of each model in turn; repeat it [default: all alike].")] = None,
) -> None:
    """Average the weights of models that were trained on from one and the same: often better than each, at no cost.

    \b
    Examples:
      unimm average runs/a/model runs/b/model --out runs/both
      unimm average runs/a/model runs/b/model --weight 0.7 --weight 0.3 --out runs/both
    """
    from unimm.cli.average import average as run

    run(sources, out, weight or None)


@models.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a quickstart, a training or an evaluation.")],
    out: Annotated[Path | None, typer.Option(help="The page to write [default: RUN/report.html].")] = None,
) -> None:
    """Write one page that shows what a run has learned: scores, failures, drawings, curves, settings.

    \b
    Example:
      unimm report runs/quickstart
    """
    from unimm.eval.report.page import write_report

    typer.echo(write_report(run, out))


@models.command()
def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUNS...", help="A folder of runs named VARIANT-SEED, such as two-0; or evaluations, runs, models."
        ),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Score to show; repeat it [default: all].")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of scores, a number of the trainings, such as loss/codes [default: losses, without scores]."
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The variant to compare the others with [default: the first].")] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Show what papers and others report of the same benchmarks, with sources; without RUNS of all."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.json and compare.png [default: RUNS, or runs/compare].")
    ] = None,
) -> None:
    """Put scores beside each other, means over seeds: which differ by more than chance, a table and a plot.

    Evaluations of the same items are compared item by item: McNemar's exact test, or a paired bootstrap where items are not
    just right or wrong; p values are Holm's.

    \b
    Example:
      unimm compare runs/encoders --task shapes_answers --task shapes_drawings
      unimm compare runs/lr --metric loss/codes
      unimm compare runs/before/scores runs/after/scores
      unimm compare --published --task geneval
    """
    from unimm.cli.compare import run

    run(runs or [], task or [], out, metric or [], baseline, published)


@models.command()
def scaling(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of trainings of several sizes and lengths.")],
    predict: Annotated[
        list[str] | None,
        typer.Option(metavar="PARAMETERS:TOKENS", help="A run to come, such as 1e9:20e9; repeat it [default: none]."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for scaling.json and scaling.png [default: RUNS].")] = None,
) -> None:
    """Fit a scaling law to trainings: how the loss falls with the trunk's parameters and with what was learned from.

    \b
    Example:
      unimm scaling runs/scaling --predict 1e9:20e9
    """
    from unimm.cli.scaling import run

    run(runs, predict or [], out)
