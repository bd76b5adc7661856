"""`unimm quickstart`: a model that captions, answers and draws, in one command, in about the minutes that are given.

    out/codes/      the data sets as codes              out/scores/     scores, answers, pictures
    out/unified/    the unified model's run             out/drawings.png 16 drawings with their prompts
    out/model/      the finished model                  out/report.html all of it on one page
    out/quickstart.json  what was measured, planned and done, and how long it took
    out/tokenizer/, out/vision/  image tokenizer and vision tower, where they are trained too (from nothing)

By default it begins as Janus does, with a vision tower and an image tokenizer that have learned: those two of the demo model.
Projector, trunk, embeddings and heads are trained. It measures the machine first and chooses its sizes by that.

Every part leaves whole folders behind or nothing, and a part that is done is not done again; the trainings go on from their
own checkpoints. So it can be interrupted at any moment and goes on with the same command.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.drawing_defaults import DrawingDefaults
from unimm.cli.compose import compose_config
from unimm.cli.encode import encode
from unimm.cli.quickstart_plan import (
    CODES_SHARE,
    TRAINING_SHARE,
    Machine,
    Plan,
    make_plan,
    measure_machine,
    plain,
    plan_from,
    shortfall,
)
from unimm.cli.train import train
from unimm.cli.train_tokenizer import train_tokenizer
from unimm.eval.report.page import write_report
from unimm.eval.report.pictures import picture_drawings
from unimm.eval.runner import evaluate
from unimm.eval.suites import build_suite
from unimm.eval.tasks.drawings import DrawingSettings
from unimm.inference.engine import load
from unimm.runtime.atomic_files import write_json
from unimm.runtime.devices import choose_device, evaluation_dtype
from unimm.runtime.format_version import check_format, stamped
from unimm.training.logbook import read_numbers

TOKENIZER_SHARE, VISION_SHARE = 0.18, 0.08
"""Of the whole time, where these are trained too; the unified model gets what the others leave."""

MIN_TRAINING_SHARE = 0.2

FIRST_CODED = 0.125
"""Of the pictures that get codes: by their pace, as many as there is time for are coded."""

NUM_DRAWINGS = 16
DRAWING = DrawingDefaults(guidance_scale=2.5, temperature=0.6)

FORMAT = 1
"""Of quickstart.json: the newest version that is read, and the one that is written."""

STARTED_FROM = {
    False: "vision tower and image tokenizer of the demo model (not its projector, trunk, embeddings or heads)",
    True: "random weights",
}

console = Console(highlight=False, soft_wrap=True)


def quickstart(out: Path, seed: int, minutes: float, from_nothing: bool = False, device: str | None = None) -> None:
    """Make, score and show a small model of the built-in worlds.

    Args:
        out: folder for everything.
        seed: of data order and weights.
        minutes: for all of it, on the machine at hand.
        from_nothing: train the image tokenizer and the vision tower too, instead of taking the demo's.
        device: cuda, cuda:N, mps or cpu; None: the best that is here.

    Raises:
        ValueError: `out` holds a quickstart with other settings or on another device, or there is no such device.
    """
    where = None if device is None else str(choose_device(device))  # a mistake in it is reported before anything is written
    clock = _Clock(out, {"seed": seed, "minutes": minutes, "from_nothing": from_nothing})
    clock.keep("started_from", STARTED_FROM[from_nothing])
    with clock.part("machine") as todo:
        if todo:
            measured = measure_machine(device)
            clock.keep_all(plain(measured, make_plan(measured, minutes, TRAINING_SHARE[from_nothing], from_nothing)))
    machine, plan = plan_from(clock.state)
    if where not in (None, machine.device):
        raise ValueError(f"{out} holds a quickstart on {machine.device}: leave --device out, or choose another --out.")
    console.print(f"{machine.describe()}\n{plan.describe()}")
    common = [f"seed={seed}", f"device={machine.device}"]
    tokenizer = _image_tokenizer(clock, out, minutes, common) if from_nothing else "demo"
    with clock.part("codes") as todo:
        if todo:
            plan = _codes(plan, minutes, [f"out={out / 'codes'}", f"image_tokenizer={tokenizer}", *common])
            clock.keep("plan", asdict(plan))
    overrides = [*common, f"image_tokenizer={tokenizer}", f"codes={out / 'codes'}"]
    start = ["init_from=demo", "init_parts=[vision]", "text_tokenizer=new"]
    if from_nothing:
        start = [f"init_from={_vision_tower(clock, out, minutes, overrides, plan)}"]
    _unified_model(clock, out, minutes, [*overrides, *start, *plan.overrides], plan)
    with clock.part("evaluation") as todo:
        if todo:
            _evaluate(out, out / "model", seed, plan.suite, machine.device)
    _print_results(out, clock, machine, plan)


def _image_tokenizer(clock: "_Clock", out: Path, minutes: float, overrides: list[str]) -> Path:
    """The folder of an image tokenizer that has learned from random weights."""
    tokenizer = out / "tokenizer" / "model"
    with clock.part("image tokenizer") as todo:
        if todo:
            budget = clock.budget("image tokenizer", TOKENIZER_SHARE * minutes)
            train_tokenizer(_compose("train_tokenizer", "quickstart/tokenizer", tokenizer.parent, budget, overrides))
    return tokenizer


def _codes(plan: Plan, minutes: float, overrides: list[str]) -> Plan:
    """Code some of the shapes, then as many pictures as the codes' share of the time allows at the pace that these had.

    Returns:
        The plan with the number of pictures that have codes.
    """
    started = time.monotonic()
    encode(compose_config("encode", [*overrides, "names=[shapes]", *plan.with_codes(FIRST_CODED).overrides]))
    seconds = (time.monotonic() - started) / FIRST_CODED * plan.num_pictures / plan.num_shapes
    if seconds > CODES_SHARE * 60 * minutes:
        fewer = plan.with_codes(max(FIRST_CODED, CODES_SHARE * 60 * minutes / seconds))
        console.print(f"slower than measured: {fewer.num_pictures:,} pictures get codes instead of {plan.num_pictures:,}")
        plan = fewer
    encode(compose_config("encode", [*overrides, *plan.overrides]))
    return plan


def _vision_tower(clock: "_Clock", out: Path, minutes: float, overrides: list[str], plan: Plan) -> Path:
    """The folder of a model whose vision tower has learned to see."""
    older = out / "look"  # as it was called before
    tower = (older if older.is_dir() else out / "vision") / "model"
    with clock.part("vision tower") as todo:
        if todo:
            budget = clock.budget("vision tower", VISION_SHARE * minutes)
            sources = (("shapes", plan.num_shapes), ("digits", plan.num_digits))
            records = [f"data.sources.{name}.dataset.dataset.num_records={count}" for name, count in sources]
            train(_compose("train", "quickstart/vision", tower.parent, budget, [*overrides, *records]))
    return tower


def _unified_model(clock: "_Clock", out: Path, minutes: float, overrides: list[str], plan: Plan) -> None:
    """Trained for what is left of the time, and written with its drawing defaults."""
    with clock.part("unified model") as todo:
        if todo:
            left = minutes - plan.evaluation_minutes - clock.minutes
            budget = clock.budget("unified model", max(left, MIN_TRAINING_SHARE * minutes))
            own = [f"trainer.compile={plan.compile}", f"trainer.num_rows={plan.num_rows}"]
            own.append(f"+trainer.weights.text={plan.text_weight}")
            made = train(_compose("train", "quickstart/unified", out / "unified", budget, [*overrides, *own]))
            replace(ModelBundle.load(made), drawing=DRAWING).save(out / "model")


def _compose(root: str, experiment: str, out: Path, minutes: float, overrides: list[str]) -> DictConfig:
    trainer = "tokenizer_trainer" if root == "train_tokenizer" else "trainer"
    length = f"{trainer}.budget.max_minutes={minutes}"
    return compose_config(root, [f"+experiment={experiment}", f"out={out}", length, *overrides])


def _evaluate(out: Path, model: Path, seed: int, suite: str, device: str) -> None:
    """Scores on unseen data, and the picture of drawings."""
    engine = load(model, device, evaluation_dtype("auto", choose_device(device)))
    report = evaluate(engine, build_suite(suite, DrawingSettings(seed)), out / "scores", existing="replace")
    picture_drawings(report["shapes_drawings"].examples[:NUM_DRAWINGS]).save(out / "drawings.png")


def _print_results(out: Path, clock: "_Clock", machine: Machine, plan: Plan) -> None:
    """What was made, whether it is as good as was announced, and what to try next."""
    scores: dict[str, Any] = json.loads((out / "scores" / "scores.json").read_text(encoding="utf-8"))["tasks"]
    learned = _positions_learned(out / "unified")
    clock.keep("positions_learned", learned)
    clock.keep("shortfall", shortfall(plan, scores, learned))
    page, model = write_report(out), out / "model"
    console.print(f"\nDone, {clock.minutes:.1f} minutes of work on {machine.name}.")
    console.print(f"  began with {clock.state['started_from']}")
    console.print(f"  model     {model}\n  drawings  {out / 'drawings.png'}\n  scores    {out / 'scores'}")
    console.print(f"  report    {page} (open it in a browser)")
    console.print("  " + ", ".join(f"{name} {task['score']:.2f}" for name, task in scores.items()))
    if clock.state["shortfall"]:
        console.print(f"  {clock.state['shortfall']}")
    console.print("\nTry next:")
    console.print(f'  unimm generate "a large red circle and a small blue cross" -n 4 --model {model}')
    console.print(f"  unimm caption drawings/drawing-0000.png --model {model}")
    console.print(f'  unimm answer drawings/drawing-0000.png "What colour is the circle?" --model {model}')


def _positions_learned(run: Path) -> int:
    """Positions of all steps that a training has made."""
    steps = [line["step"] for line in read_numbers(run / "metrics.jsonl")]
    trainer = OmegaConf.load(run / "config.yaml").trainer
    return max(steps, default=0) * trainer.num_rows * trainer.num_positions


class _Clock:
    """What is done, how long it took, and what else is known, kept in out/quickstart.json over interruptions."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self._path = out / "quickstart.json"
        self.state: dict[str, Any] = stamped(FORMAT, {**settings, "done": {}, "budgets": {}, "seconds": 0.0})
        if self._path.is_file():
            kept = {"from_nothing": True, **json.loads(self._path.read_text(encoding="utf-8"))}
            check_format(kept, FORMAT, self._path)
            if any(kept[name] != value for name, value in settings.items()):
                nothing = " --from-nothing" * kept["from_nothing"]
                raise ValueError(
                    f"{out} holds a quickstart with --seed {kept['seed']} --minutes {kept['minutes']:g}{nothing}: "
                    f"repeat these to go on with it, or choose another --out."
                )
            self.state = kept
        out.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def minutes(self) -> float:
        """Minutes of work so far, over all interruptions."""
        return self.state["seconds"] / 60

    def keep(self, name: str, value: Any) -> None:
        """Write down something that is known from now on."""
        self.keep_all({name: value})

    def keep_all(self, values: dict[str, Any]) -> None:
        """Several of these at once."""
        self.state |= values
        self._write()

    def budget(self, name: str, minutes: float) -> float:
        """Minutes for a training: fixed when it first starts, so that an interrupted one keeps its schedule."""
        budget = self.state["budgets"].setdefault(name, round(minutes, 3))
        self._write()
        return budget

    def part(self, name: str) -> "_Part":
        """A part of the work as a context; gives whether it is still to be done."""
        return _Part(self, name)

    def is_done(self, name: str) -> bool:
        """Whether a part was finished before."""
        return name in self.state["done"]

    def add(self, name: str, seconds: float, is_done: bool) -> None:
        """Count the time of a part."""
        self.state["seconds"] += seconds
        if is_done:
            self.state["done"][name] = round(seconds, 1)
        self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        write_json(temporary, self.state)
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
