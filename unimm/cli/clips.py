"""`unimm data clips`: example videos as files, to try commands and trainings on."""

from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.options import Seed


def write_clips(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the clips and their questions.")],
    num_clips: Annotated[int, typer.Option("-n", "--num-clips", min=1, help="How many.")] = 10,
    form: Annotated[str, typer.Option("--format", help="mp4, webm, avi (these by the extra video), gif or webp.")] = "mp4",
    language: Annotated[str, typer.Option(help="Of the questions: en or zh.")] = "en",
    split: Annotated[str, typer.Option(help="Of the world of clips: train, validation or test.")] = "test",
    seed: Seed = 0,
) -> None:
    """Write example videos: clips of moving shapes, and questions about them in LLaVA-Video's JSON lines.

    \b
    Examples:
      unimm data clips runs/clips_files
      unimm train data=llava data.paths=runs/clips_files/clips.jsonl init_from=runs/clips/model out=runs/mine
    """
    from unimm.data.worlds import clips

    typer.echo(clips.write_clips(out, clips.ClipsWorld(split, num_clips, seed), form.lower().lstrip("."), language))
