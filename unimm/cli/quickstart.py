"""`unimm quickstart`: from nothing to a model that captions, answers and draws, in one command.

    out/tokenizer/   the image tokenizer's run          out/codes/      the data sets as codes
    out/look/        the vision tower learns to see     out/unified/    the unified model's run
    out/model/       the finished model                 out/scores/     scores, answers, pictures
    out/drawings.png 16 drawings with their prompts     out/report.html all of it on one page
    out/quickstart.json  what is done, and how long it took

Every part leaves whole folders behind or nothing, and a part that is done is not done again; the trainings go on from their
own checkpoints. So it can be interrupted at any moment and goes on with the same command.
"""

import json
import time
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console

from unimm.cli.build import compose_config
from unimm.cli.encode import encode
from unimm.cli.train_tokenizer import train_tokenizer
from unimm.devices import bf16_is_faster, choose_device
from unimm.eval.drawings import DrawingSettings
from unimm.eval.pictures import picture_drawings
from unimm.eval.report import write_report
from unimm.eval.runner import evaluate
from unimm.eval.suites import build_suite
from unimm.files import write_json
from unimm.inference.conventions import DrawingDefaults
from unimm.inference.load import load
from unimm.train import train

TOKENIZER_SHARE = 0.18
LOOK_SHARE = 0.08
EVALUATION_SHARE = 0.05
"""Of the whole time; the unified model gets what the others leave."""

COMPILE_FROM = 5.0
"""Minutes of the whole from which compiling, half a minute, comes back."""

NUM_DRAWINGS = 16
DRAWING = DrawingDefaults(guidance_scale=2.5, temperature=0.6)

console = Console(highlight=False)


def quickstart(out: Path, seed: int, minutes: float) -> None:
    """Make, score and show a small model of the built-in worlds.

    Args:
        out: folder for everything.
        seed: of data order and weights.
        minutes: for all of it, on the machine at hand.

    Raises:
        ValueError: `out` holds a quickstart with other settings.
    """
    clock = _Clock(out, seed, minutes)
    tokenizer, look, model = out / "tokenizer" / "model", out / "look" / "model", out / "model"
    common = [f"seed={seed}"]
    words = [*common, f"image_tokenizer={tokenizer}", f"codes={out / 'codes'}"]
    with clock.part("image tokenizer") as todo:
        if todo:
            budget = clock.budget("image tokenizer", TOKENIZER_SHARE * minutes)
            train_tokenizer(_compose("train_tokenizer", "quickstart_tokenizer", tokenizer.parent, budget, common))
    with clock.part("codes") as todo:
        if todo:
            encode(compose_config("encode", [f"out={out / 'codes'}", f"image_tokenizer={tokenizer}", *common]))
    with clock.part("vision tower") as todo:
        if todo:
            budget = clock.budget("vision tower", LOOK_SHARE * minutes)
            train(_compose("train", "quickstart_look", look.parent, budget, words))
    with clock.part("unified model") as todo:
        if todo:
            left = (1 - EVALUATION_SHARE) * minutes - clock.minutes
            budget = clock.budget("unified model", max(left, 0.2 * minutes))
            own = [f"init_from={look}", f"trainer.compile={minutes >= COMPILE_FROM}"]
            made = train(_compose("train", "quickstart", out / "unified", budget, [*words, *own]))
            engine = load(made)
            engine.drawing = DRAWING
            engine.save(model)
    with clock.part("evaluation") as todo:
        if todo:
            _evaluate(out, model, seed)
    page = write_report(out)
    _tell(out, model, page, clock)


def _compose(root: str, experiment: str, out: Path, minutes: float, words: list[str]) -> DictConfig:
    trainer = "tokenizer_trainer" if root == "train_tokenizer" else "trainer"
    length = f"{trainer}.budget.max_minutes={minutes}"
    return compose_config(root, [f"+experiment={experiment}", f"out={out}", length, *words])


def _evaluate(out: Path, model: Path, seed: int) -> None:
    """Scores on unseen data, and the picture of drawings."""
    is_bf16_cpu = choose_device().type == "cpu" and bf16_is_faster()
    engine = load(model, dtype=torch.bfloat16 if is_bf16_cpu else None)
    report = evaluate(engine, build_suite("quick", DrawingSettings(seed)), out / "scores")
    picture_drawings(report["shapes_drawings"].examples[:NUM_DRAWINGS]).save(out / "drawings.png")


def _tell(out: Path, model: Path, page: Path, clock: "_Clock") -> None:
    """What was made, and what to try next."""
    scores = json.loads((out / "scores" / "scores.json").read_text(encoding="utf-8"))
    console.print(f"\nDone, {clock.minutes:.1f} minutes of work.")
    console.print(f"  model     {model}\n  drawings  {out / 'drawings.png'}\n  scores    {out / 'scores'}")
    console.print(f"  report    {page} (open it in a browser)")
    console.print("  " + ", ".join(f"{name} {task['score']:.2f}" for name, task in scores["tasks"].items()))
    console.print("\nTry next:")
    console.print(f'  unimm generate "a large red circle and a small blue cross" -n 4 --model {model}')
    console.print(f"  unimm caption drawings/drawing-0000.png --model {model}")
    console.print(f'  unimm answer drawings/drawing-0000.png "What colour is the circle?" --model {model}')


class _Clock:
    """What is done and how long it took, kept in out/quickstart.json over interruptions."""

    def __init__(self, out: Path, seed: int, minutes: float) -> None:
        self._path = out / "quickstart.json"
        self._state = {"seed": seed, "minutes": minutes, "done": {}, "budgets": {}, "seconds": 0.0}
        if self._path.is_file():
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if (kept["seed"], kept["minutes"]) != (seed, minutes):
                raise ValueError(
                    f"{out} holds a quickstart with --seed {kept['seed']} --minutes {kept['minutes']:g}: "
                    f"repeat these to go on with it, or choose another --out."
                )
            self._state = kept
        out.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def minutes(self) -> float:
        """Minutes of work so far, over all interruptions."""
        return self._state["seconds"] / 60

    def budget(self, name: str, minutes: float) -> float:
        """Minutes for a training: fixed when it first starts, so that an interrupted one keeps its schedule."""
        budget = self._state["budgets"].setdefault(name, round(minutes, 3))
        self._write()
        return budget

    def part(self, name: str) -> "_Part":
        """A part of the work as a context; gives whether it is still to be done."""
        return _Part(self, name)

    def is_done(self, name: str) -> bool:
        """Whether a part was finished before."""
        return name in self._state["done"]

    def add(self, name: str, seconds: float, is_done: bool) -> None:
        """Count the time of a part."""
        self._state["seconds"] += seconds
        if is_done:
            self._state["done"][name] = round(seconds, 1)
        self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        write_json(temporary, self._state)
        temporary.replace(self._path)


class _Part:
    def __init__(self, clock: _Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> bool:
        self._started = time.monotonic()
        todo = not self._clock.is_done(self._name)
        console.print(f"\n[bold]{self._name}[/bold]" if todo else f"{self._name}: done before", style=None)
        return todo

    def __exit__(self, kind, error, trace) -> None:
        if not self._clock.is_done(self._name):
            self._clock.add(self._name, time.monotonic() - self._started, kind is None)
