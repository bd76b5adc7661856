"""Options that several commands have, and the engine that they name."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimm.runtime.number_checks import MOST_DRAFTS, MOST_IMAGES

if TYPE_CHECKING:
    from unimm.inference.engine import Engine

QUICKSTART_MODEL = Path("runs/quickstart/model")
OWN = " [default: the model's own]."

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model folder, hub id or demo [default: $UNIMM_MODEL, the quickstart's, or the demo]."),
]
ImageFile = Annotated[str, typer.Argument(metavar="IMAGE", help="An image file; - is standard input.")]
"""A string, not a Path: that would make https:/ of https://, and the sentence about addresses would name another one."""

Device = Annotated[str | None, typer.Option(help="cuda, cuda:N, mps or cpu [default: the best that is here].")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 [default: what suits model and device].")]
Kernels = Annotated[
    str | None,
    typer.Option(help="triton: decode with a layer in few launches, on CUDA devices; no GPU has proven it faster yet [torch]."),
]
Weights = Annotated[str | None, typer.Option(help="int8 or int4 (fp8 on GPUs): decode with such weights, faster.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="At most so many tokens of text.")]
TextTemperature = Annotated[float, typer.Option(help="0 takes the likeliest tokens; of votes beyond the first it is 0.7.")]
Votes = Annotated[int, typer.Option(min=1, max=MOST_DRAFTS, help="Write so many, and say what most of them say.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Look again for each thing that is named, and leave out what is not there.")
]
NumFrames = Annotated[
    int | None,
    typer.Option(
        min=1, help="Of a video, at most; an animation or a folder of frames is taken for one [default: the model's own]."
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Of a model that draws by a flow: steps from noise to image [default: its own, 30].")
]
Solver = Annotated[
    str | None, typer.Option(metavar="euler|heun", help="Of a flow: one pass a step, or two [default: the model's, euler].")
]
DrawingWay = Annotated[
    str | None,
    typer.Option("--drawing", metavar="codes|latents", help="Where a model draws by both [default: codes where it has them]."),
]
BestOf = Annotated[
    int,
    typer.Option(min=1, max=MOST_DRAFTS, help="Draw each image so many times and keep the one the model itself finds best."),
]
Redraws = Annotated[
    int,
    typer.Option(
        "--redraw", min=0, help="Look at each drawing, and mend what does not show the prompt in so many tries at most."
    ),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
NumImages = Annotated[int, typer.Option("-n", "--num-images", min=1, max=MOST_IMAGES, help="How many images.")]
PicturesOut = Annotated[Path, typer.Option(help="A file (.png, .jpg, .webp), or a folder for numbered files.")]
GuidanceScale = Annotated[float | None, typer.Option(help="How closely to follow the prompt; 1 is off" + OWN)]
ImageGuidanceScale = Annotated[
    float | None, typer.Option(help="Of edits by instruction: how closely to follow IMAGE; 1 is off [default: 1].")
]
SourceBias = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        help="Of edits by instruction: what is added to the logits of IMAGE's codes; 0 is off [default: the model's].",
    ),
]
DrawingSize = Annotated[
    str | None,
    typer.Option("--size", metavar="WIDTHxHEIGHT", help="Of those that the model was taught, in pixels" + OWN),
]
DrawingTemperature = Annotated[float | None, typer.Option(help="Lower is safer; 0 takes the likeliest codes" + OWN)]
TopK = Annotated[int | None, typer.Option(help="Choose among the k likeliest codes; 0 is all" + OWN)]
TopP = Annotated[float | None, typer.Option(help="Choose among the likeliest that together reach p" + OWN)]
MinP = Annotated[float, typer.Option(help="Choose among those at least p times as likely as the likeliest.")]
Window = Annotated[
    int | None,
    typer.Option(
        min=1, help="Codes computed at once, for the same image; 1 is one by one [default: what is fast; 1 in bfloat16]."
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float],
    typer.Option(help="The part of a drawing that guidance is for, from 0 to 1; beyond it, it costs nothing."),
]


def default_model() -> str:
    """$UNIMM_MODEL; else the quickstart's where it is, else the demo."""
    return os.environ.get("UNIMM_MODEL") or (str(QUICKSTART_MODEL) if QUICKSTART_MODEL.is_dir() else "demo")


def open_model(
    model: str | None,
    device: str | None,
    dtype: str | None,
    weights: str | None,
    window: int | None = None,
    kernels: str | None = None,
) -> "Engine":
    """The engine of the model that is named, or of `default_model`. window: of `Limits`."""
    from unimm.inference.decode.workload import Limits
    from unimm.inference.engine import load

    limits = None if window is None else Limits(window=window)
    return load(model or default_model(), device, dtype, weights=weights, limits=limits, kernels=kernels)


def read_dash(image: str) -> str | bytes:
    """An image's argument as it is; for - the bytes of standard input. ValueError: nothing is piped in."""
    if image != "-":
        return image
    data = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    if not data:
        raise ValueError("- is an image on standard input, and there is none: name a file, or pipe one in, once.")
    return data


def expand_home(argument: str) -> str:
    """An option's value with the home folder for a leading ~, which shells put only at the beginning of an argument."""
    option, _, value = argument.partition("=")
    # Not Path's, which raises where there is no such user, and drops a slash at the end.
    return f"{option}={os.path.expanduser(value)}" if option.startswith("--") and value.startswith("~") else argument  # noqa: PTH111
