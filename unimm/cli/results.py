"""What a training says at its end: how long it learned, how well it did, where everything lies, and the next command.

All of it is read from the files of the run, so a run that has nothing left to do says the same again.
"""

import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from unimm.cli.compose import build
from unimm.eval.validation import LOSS, MEAN, RECORD
from unimm.precompute.reconstructions import TOO_LOW
from unimm.runtime.atomic_files import read_json
from unimm.training.checkpoint import CHECKPOINTS, peek
from unimm.training.logbook import read_numbers

LABEL_WIDTH = 11
WORLDS = ("unimm.data.ShapesWorld", "unimm.data.DigitsWorld")

Line = tuple[str, str]
"""A label and its text."""


def print_training_results(config: DictConfig) -> None:
    """The results of `unimm train`, by the first of its processes."""
    if not _is_first():
        return
    out = Path(config.out)
    last = _last_numbers(out)
    trainer = config.trainer
    positions = trainer.num_rows * trainer.num_positions
    title = f"Trained (stage '{config.stage.name}'): {_length(out, positions, 'positions')}"
    lines = [("loss", text) for text in _losses(last, _codebook_size(out / "model"))]
    lines += [*_best(config, out), *_scores(config, out), ("model", str(out / "model"))]
    if config.lora is not None:
        lines.append(("adapter", str(out / "adapter")))
    lines += _newest(out, "drawings")
    _print(title, lines, _next_of_training(config, out, last))


def print_tokenizer_results(config: DictConfig) -> None:
    """The results of `unimm train-tokenizer`, by the first of its processes."""
    if not _is_first():
        return
    out = Path(config.out)
    last = _last_numbers(out)
    title = f"Image tokenizer trained: {_length(out, config.images.batch_size, 'images')}"
    lines = [*_fidelity(config, last), ("model", str(out / "model")), *_newest(out, "reconstructions")]
    _print(title, lines, [_next_of_tokenizer(config, out), f"unimm report {_path(out)}"])


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _print(title: str, lines: list[Line], commands: list[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"\n{title}", "bold"))
    before = ""
    for label, text in lines:
        console.print(Text.assemble((f"  {'' if label == before else label:{LABEL_WIDTH}}", "dim"), text))
        before = label
    console.print(Text("\nNext:", "bold"))
    for command in commands:
        console.print(Text(f"  {command}"))


def _last_numbers(out: Path) -> dict[str, float]:
    """The last value of every number that was logged: a report of few samples may lack one."""
    path, last = out / "metrics.jsonl", {}
    for line in read_numbers(path) if path.is_file() else ():
        last |= line
    return last


def _length(out: Path, size: int, things: str) -> str:
    """Steps, what they learned from, and how long that took. size: of a step, in those things."""
    state = peek(out / CHECKPOINTS) or {"step": 0, "seconds": 0.0}
    steps = state["step"]
    return (
        f"{steps:,} step{'s' * (steps != 1)} of {size:,} {things} ({_rounded(steps * size)} together), "
        f"{state['seconds'] / 60:.1f} minutes"
    )


def _rounded(number: int) -> str:
    return f"{number / 1e6:,.1f} million" if number >= 1_000_000 else f"{number:,}"


def _losses(last: dict[str, float], num_codes: int | None) -> Iterator[str]:
    """Each loss with what is right of it, and with what guessing would give where that is known."""
    for key, loss in last.items():
        if not key.startswith("loss/"):
            continue
        name = key.removeprefix("loss/")
        text = f"{name} {loss:.3f}"
        if name == "codes" and num_codes:
            text += f" (guessing: ln {num_codes:,} = {math.log(num_codes):.3f})"
        right = last.get(f"accuracy/{name}")
        yield text if right is None else f"{text}, {100 * right:.1f} % right"


def _codebook_size(model: Path) -> int | None:
    """How many codes there are to choose among, as the model's config.json says in either layout."""
    raw = read_json(model / "config.json") or {}
    codes = (raw.get("model") or {}).get("codes") or {}
    return codes.get("codebook_size") or (raw.get("vq_config") or {}).get("num_embeddings")


def _best(config: DictConfig, out: Path) -> Iterator[Line]:
    """The validation that was the best, where there was one."""
    record = read_json(out / "best" / RECORD) if config.trainer.validate_every else None
    if record is None:
        return
    first = [record["monitor"]] if record["monitor"] in record["scores"] else []
    names = [*first, *(name for name in record["scores"] if name not in first)]
    text = ", ".join(f"{name} {record['scores'][name]:.3f}" for name in names)
    yield "validation", f"{text} (best by {_chosen_by(record['monitor'])}, at step {record['step']:,})"
    yield "best", str(out / "best")


def _chosen_by(monitor: str) -> str:
    return {MEAN: "the mean", LOSS: "the lowest loss"}.get(monitor, monitor)


def _scores(config: DictConfig, out: Path) -> Iterator[Line]:
    """Of the suite that the finished model was scored by."""
    scores: dict[str, Any] | None = read_json(out / "scores" / "scores.json") if config.suite is not None else None
    if scores is not None:
        text = ", ".join(f"{name} {task['score']:.2f}" for name, task in scores["tasks"].items())
        yield "scores", f"{text}; see {out / 'scores'}"


def _newest(out: Path, name: str) -> Iterator[Line]:
    """The last picture that the run has made."""
    pictures = sorted((out / "samples").glob(f"*-{name}.png"))
    if pictures:
        yield name if len(name) < LABEL_WIDTH else "pictures", str(pictures[-1])


def _next_of_training(config: DictConfig, out: Path, last: dict[str, float]) -> list[str]:
    model, report = _path(out / "model"), f"unimm report {_path(out)}"
    if str(config.objective._target_).endswith(".VisionPretraining"):
        codes = "..." if OmegaConf.is_missing(config, "codes") else config.codes  # the loss of words alone needs none
        overrides = " ".join(shlex.quote(one) for one in (f"init_from={out / 'model'}", f"codes={codes}"))
        return [f"unimm train stage=pretrain {overrides} out=...", report]
    if str(config.objective._target_).endswith(".Contrastive"):
        return [f"unimm index FOLDER --out INDEX --model {model}", f"unimm search {_prompt(out)} --index INDEX", report]
    if str(config.objective._target_).endswith(".QFormerAlignment"):
        start = shlex.quote(f"init_from={out / 'model'}")
        return [f"unimm train +experiment=blip2/generate {start} out=...", report]
    commands = [f"unimm caption photo.png --model {model}"]
    if "loss/codes" in last or "loss/latents" in last:
        commands.insert(0, f"unimm generate {_prompt(out)} --model {model}")
    return [*commands, report]


def _prompt(out: Path) -> str:
    """A prompt of the training's kind: the first of those that it drew last."""
    texts = sorted((out / "samples").glob("*-captions.txt"))
    first = texts[-1].read_text(encoding="utf-8").partition("\n")[0] if texts else ""
    return shlex.quote(first) if first else '"YOUR PROMPT"'


def _fidelity(config: DictConfig, last: dict[str, float]) -> Iterator[Line]:
    """How well images are given back, and how many codes are used for it; of the last training steps where nothing was
    validated."""
    psnr, ssim = last.get("validation/psnr"), last.get("validation/ssim")
    group, where = ("", "in the last training steps") if psnr is None else ("validation/", _validated_on(config))
    usage, perplexity = last.get(f"{group}codes/usage"), last.get(f"{group}codes/perplexity")
    text = [] if psnr is None else [f"PSNR {psnr:.1f} dB"]
    text += [] if ssim is None else [f"SSIM {ssim:.2f}"]
    if usage is not None and perplexity is not None:  # of codes; latents have none
        kept = (read_json(Path(config.out) / "model/config.json") or {}).get("quantizer") or {}
        size = kept.get("codebook_size") or build(config.tokenizer).quantizer.codebook_size
        text.append(f"{100 * usage:.0f} % of {size:,} codes used (perplexity {perplexity:.0f})")
    if text:
        yield "quality", f"{', '.join(text)}, {where}"
    if psnr is not None and psnr < TOO_LOW:
        yield "quality", f"WARNING: under {TOO_LOW:.0f} dB it does not show these images: train longer, or on more of them"


def _validated_on(config: DictConfig) -> str:
    """Which images were measured: those of training may serve, but then it is said."""
    images = config.images
    count = min(config.num_validation, len(build(images.validation)))
    is_learned = any(source.dataset == images.validation for source in images.sources.values())
    return f"on {count:,} {'images that it was trained on' if is_learned else 'validation images'}"


def _next_of_tokenizer(config: DictConfig, out: Path) -> str:
    """Code the images; data of one's own is named again."""
    overrides = [f"image_tokenizer={out / 'model'}"]
    targets = [str(source.dataset._target_) for source in config.images.sources.values()]
    if not all(target.startswith(WORLDS) for target in targets):
        folder = config.images.get("folder")
        overrides += ["data=..."] if folder is None else ["data=image_folder", f"data.folder={folder}"]
    return " ".join(["unimm encode", *map(shlex.quote, [*overrides, f"out={out / 'codes'}"])])


def _path(path: Path) -> str:
    return shlex.quote(str(path))
