"""What `unimm quickstart` does on the machine at hand: its speed, measured in seconds, and the sizes that follow from it.

A quickstart has a time, not a number of steps, so what it reaches depends on how many positions are learned in that time. The
speed of one forward and backward pass of the trunk predicts that number; EXPECTED holds what runs of so many positions reached.
"""

import math
import time
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from unimm.checkpoints.folder import load_model
from unimm.checkpoints.weight_files import DEMO
from unimm.data.image import crop
from unimm.data.worlds.shapes import ShapesWorld
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.unified import UnifiedModel
from unimm.runtime.devices import choose_device, choose_precision, why_not_compile
from unimm.runtime.environment import processor_name

PROBED_ROWS, PROBED_POSITIONS, PROBED_IMAGES = 24, 128, 32
MIN_PROBE_SECONDS, MAX_PROBES = 1.0, 20

POSITIONS_PER_PROBED = {("no", False): 1.2, ("no", True): 1.3, ("bf16", False): 1.55, ("bf16", True): 2.3}
"""Positions that a training learns in the time of a probed one, by precision and whether it is compiled (which spares the casts
of bf16): the trunk of `tiny` is less deep than the demo's and attends within documents, but a training has heads, optimizers, a
tower and data (recipes/LOG.md)."""

COMPILE_SECONDS = 60.0
"""What compiling may cost on a slow machine; it pays where it is a small share of the training."""

POSITIONS_PER_SAMPLE, DRAWN = 125, 0.54
"""Of the quickstart's mixture: positions of a sample, and the share of samples that are drawn and so need codes."""


TRAINING_SHARE = {False: 0.75, True: 0.55}
"""What the unified model's training gets of the whole time, about, by whether everything begins from nothing."""


@dataclass(frozen=True)
class Machine:
    """What was measured. why_not_compile: None where torch.compile works.

    positions_per_second: of a training of the `tiny` model, predicted. images_per_second: coded by the demo's image tokenizer.
    """

    device: str
    name: str
    threads: int
    precision: str
    positions_per_second: float
    images_per_second: float
    why_not_compile: str | None

    def describe(self) -> str:
        """A line for a person."""
        dtype = "bfloat16" if self.precision == "bf16" else "float32"
        where = self.name if self.device != "cpu" else f"{self.name}, {self.threads} thread{'s' * (self.threads > 1)}"
        compiled = "" if self.why_not_compile is None else f"; not compiled: {self.why_not_compile}"
        return (
            f"{where}: about {self.positions_per_second:,.0f} positions a second in {dtype}, "
            f"{self.images_per_second:,.0f} images a second coded{compiled}"
        )


@dataclass(frozen=True)
class Preset:
    """Sizes that suit a number of positions.

    text_weight: of the loss of texts beside that of codes. records: coded pictures of shapes, and of digits. suite: that scores
    the model.
    """

    name: str
    from_positions: float
    num_rows: int
    text_weight: float
    max_records: tuple[int, int]
    suite: str


PRESETS = (
    Preset("trial", 0.0, 3, 1.0, (4_000, 600), "glance"),
    Preset("short", 0.3e6, 3, 1.0, (4_000, 600), "brief"),
    Preset("medium", 1.0e6, 4, 1.0, (10_000, 1_500), "brief"),
    Preset("usual", 5.0e6, 6, 2.0, (16_000, 2_400), "quick"),
    Preset("long", 4.0e7, 24, 2.0, (60_000, 9_000), "quick"),
)

Scores = tuple[float, float, float]

EXPECTED: dict[bool, tuple[tuple[float, Scores], ...]] = {
    False: (
        (0.5e6, (0.45, 0.10, 0.01)),
        (1.2e6, (0.63, 0.33, 0.05)),
        (3.4e6, (0.67, 0.41, 0.27)),
        (4.4e6, (0.70, 0.44, 0.27)),
        (6.2e6, (0.71, 0.46, 0.35)),
        (7.8e6, (0.75, 0.47, 0.41)),
    ),
    True: ((1.5e6, (0.40, 0.05, 0.00)), (4e6, (0.68, 0.33, 0.22)), (7e6, (0.73, 0.39, 0.33))),
}
"""By whether a quickstart began from nothing: positions that its unified model learned from, and the answers, captions and
drawings that were right (recipes/LOG.md)."""

NAMES = ("shapes_answers", "shapes_captions", "shapes_drawings")
TOLERANCE = 0.07
"""By so much a score of a few hundred items differs from run to run on the same machine."""


@dataclass(frozen=True)
class Plan:
    """What follows for this machine. minutes: of codes at most, and kept for the evaluation. expected: see NAMES; None where no
    run of about so many positions was recorded."""

    preset: str
    num_rows: int
    num_shapes: int
    num_digits: int
    suite: str
    compile: bool
    positions: float
    evaluation_minutes: float
    expected: Scores | None
    text_weight: float = 1.0

    @property
    def overrides(self) -> list[str]:
        """For Hydra: how many records have codes. The same for `encode` and `train`."""
        sources = (("shapes", self.num_shapes), ("digits", self.num_digits))
        return [f"data.sources.{name}_draw.dataset.dataset.num_records={count}" for name, count in sources]

    @property
    def num_pictures(self) -> int:
        """That get codes."""
        return self.num_shapes + self.num_digits

    def with_codes(self, share: float) -> "Plan":
        """The same with codes of fewer pictures: of the first ones, since a world's pictures do not depend on their number."""
        return replace(
            self, num_shapes=max(8, round(self.num_shapes * share)), num_digits=max(8, round(self.num_digits * share))
        )

    def describe(self) -> str:
        """A line for a person."""
        if self.expected is None:
            return (
                f"preset '{self.preset}': about {self.positions / 1e6:.1f} million positions; no such run was recorded before"
            )
        scores = ", ".join(
            f"{name} {value:.2f}" for name, value in zip(("answers", "captions", "drawings"), self.expected, strict=True)
        )
        return f"preset '{self.preset}': about {self.positions / 1e6:.1f} million positions; expect {scores}"


def measure_machine(device: str | None = None) -> Machine:
    """Try what a quickstart spends its time on; a few seconds, and half a minute where torch.compile has to warm up."""
    where = choose_device(device)
    precision = choose_precision("auto", where)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else processor_name()
    reason = why_not_compile(where)
    demo = load_model(DEMO, where, torch.float32)
    speed = _positions_per_second(demo.model, where, precision) * POSITIONS_PER_PROBED[precision, reason is None]
    coded = _images_per_second(demo.image_tokenizer, where, precision)
    return Machine(str(where), name, torch.get_num_threads(), precision, round(speed, 1), round(coded, 1), reason)


def make_plan(machine: Machine, minutes: float, training_share: float, from_nothing: bool) -> Plan:
    """Sizes for so many minutes, of which the unified model's training gets about a share."""
    seconds = 60 * minutes
    positions = machine.positions_per_second * seconds * training_share
    preset = PRESETS[bisect_right([preset.from_positions for preset in PRESETS], positions) - 1]
    drawn = positions / POSITIONS_PER_SAMPLE * DRAWN
    # Each picture once is enough; and coding takes its share of the time at most.
    affordable = min(machine.images_per_second * seconds * CODES_SHARE, max(drawn, MIN_RECORDS), sum(preset.max_records))
    shapes, digits = (max(8, round(affordable * most / sum(preset.max_records))) for most in preset.max_records)
    return Plan(
        preset=preset.name,
        num_rows=preset.num_rows,
        num_shapes=shapes,
        num_digits=digits,
        suite=preset.suite,
        compile=machine.why_not_compile is None and training_share * seconds > 5 * COMPILE_SECONDS,
        positions=round(positions),
        evaluation_minutes=EVALUATION_SHARE * minutes,
        expected=expected(positions, from_nothing),
        text_weight=preset.text_weight,
    )


CODES_SHARE, EVALUATION_SHARE = 0.15, 0.08
MIN_RECORDS = 640


def expected(positions: float, from_nothing: bool) -> Scores | None:
    """What runs of so many positions reached, by the logarithm between those that were recorded; None beyond twice the most."""
    table = EXPECTED[from_nothing]
    if positions > 2 * table[-1][0]:
        return None
    if positions <= table[0][0]:
        factor = positions / table[0][0]
        return tuple(round(value * factor, 2) for value in table[0][1])  # pyright: ignore[reportReturnType]
    upper = min(len(table) - 1, bisect_right([known for known, _ in table], positions))
    (low, below), (high, above) = table[upper - 1], table[upper]
    part = min(1.0, math.log(positions / low) / math.log(high / low))
    return tuple(round(b + part * (a - b), 2) for b, a in zip(below, above, strict=True))  # pyright: ignore[reportReturnType]


def shortfall(plan: Plan, scores: dict[str, Any], positions: float) -> str | None:
    """A sentence where a model is worse than was announced, and why; None where it is not."""
    if plan.expected is None:
        return None
    pairs = [(name, value, scores[name]["score"]) for name, value in zip(NAMES, plan.expected, strict=True) if name in scores]
    worse = [f"{name} {score:.2f} instead of {value:.2f}" for name, value, score in pairs if score < value - TOLERANCE]
    if not worse:
        return None
    if positions < 0.95 * plan.positions:
        reason = (
            f"it learned from {positions / 1e6:.1f} million positions instead of {plan.positions / 1e6:.1f}: the machine was "
            f"busier than when it was measured. Run it again when it is idle, or with more --minutes."
        )
    else:
        reason = "it learned as long as planned, so this is chance from run to run, or a fault: try another --seed."
    return f"Worse than announced: {', '.join(worse)}; {reason}"


def plan_from(kept: dict[str, Any]) -> tuple[Machine, Plan]:
    """What quickstart.json keeps of both."""
    plan = {**kept["plan"], "expected": kept["plan"]["expected"] and tuple(kept["plan"]["expected"])}
    return Machine(**kept["machine"]), Plan(**plan)


def plain(machine: Machine, plan: Plan) -> dict[str, Any]:
    """Both as plain data, for quickstart.json."""
    return {"machine": asdict(machine), "plan": asdict(plan)}


def _positions_per_second(model: UnifiedModel, device: torch.device, precision: str) -> float:
    """Forward and backward passes of a trunk, not compiled, over rows as long as a sample."""
    embedded_RTD = torch.randn(PROBED_ROWS, PROBED_POSITIONS, model.trunk.config.hidden_size, device=device)
    positions_RT = torch.arange(PROBED_POSITIONS, device=device).expand(PROBED_ROWS, -1)
    sees = torch.ones(PROBED_POSITIONS, PROBED_POSITIONS, dtype=torch.bool, device=device).tril()[None, None]

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            hidden_RTD = model.hidden(embedded_RTD, sees, positions_RT)
        hidden_RTD.float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return PROBED_ROWS * PROBED_POSITIONS / _seconds(run, device)


def _images_per_second(tokenizer: ImageTokenizer, device: torch.device, precision: str) -> float:
    """Pictures made and coded by an image tokenizer: beside a GPU most of the time is the making."""
    world = ShapesWorld()

    @torch.inference_mode()
    def run() -> None:
        images = (world[index].image for index in range(PROBED_IMAGES))
        pixels = [crop(one, tokenizer.image_size) for one in images if one is not None]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            tokenizer.encode(torch.from_numpy(np.stack(pixels)).to(device))

    return PROBED_IMAGES / _seconds(run, device)


def _seconds(run: Any, device: torch.device) -> float:
    """The median time of a call, after one that warms up."""
    times: list[float] = []
    for _ in range(MAX_PROBES):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
        if len(times) > 2 and sum(times) > MIN_PROBE_SECONDS:
            break
    measured = sorted(times[1:])
    return measured[len(measured) // 2]
