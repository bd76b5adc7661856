"""The process of `unimm doctor` that asks torch: what it reads, in the order in which it reads it."""

import time
from dataclasses import asdict
from typing import Any

from unimm.diagnosis import torch_probe
from unimm.diagnosis.apart import write_readings
from unimm.diagnosis.readings import Reading

DEMO_SAYS = "large red circle"
"""Part of what the demo model says of one."""

MINUTES = 15.0
"""Of the quickstart that is planned: its default."""


def read_choices() -> Reading:
    """As `torch_probe` has it, and what the configurations say for such a device."""
    import yaml

    from unimm.cli.choices import conf_folder
    from unimm.models.attention import choose_attention
    from unimm.runtime.environment import loader_processes

    chosen = torch_probe.read_choices()
    trainer = "gpu" if chosen["device"].startswith("cuda") else "cpu"
    settings: dict[str, Any] = yaml.safe_load((conf_folder() / "trainer" / f"{trainer}.yaml").read_text(encoding="utf-8"))
    kind = chosen["device"].partition(":")[0]
    attention = choose_attention(kind, is_compiled=bool(settings.get("compile")))
    workers = loader_processes(settings["num_workers"])
    return {**chosen, "trainer": trainer, "workers": workers, "attention": attention}


def read_demo() -> Reading:
    """What the demo model, which comes with the package, says of a picture: all libraries of an engine at work."""
    started = time.monotonic()
    from unimm.data.worlds.scenes import Scene, Shape, render
    from unimm.inference.engine import load

    said = load("demo").caption(render(Scene((Shape("large", "red", "circle", 32, 32),))))
    return {"said": said, "expected": DEMO_SAYS, "seconds": round(time.monotonic() - started, 1)}


def read_quickstart() -> Reading:
    """What a quickstart measures of the machine, and plans by it."""
    from unimm.cli.quickstart_plan import TRAINING_SHARE, make_plan, measure_machine

    machine = measure_machine()
    plan = make_plan(machine, MINUTES, TRAINING_SHARE[False], False)
    return {"machine": machine.describe(), "plan": plan.describe(), "measured": asdict(machine), "planned": asdict(plan)}


SECTIONS = {
    "kernels": torch_probe.read_kernels,
    "torch": torch_probe.read_torch,
    "devices": torch_probe.read_devices,
    "speeds": torch_probe.read_speeds,
    "choices": read_choices,
    "demo": read_demo,
    "compile": torch_probe.read_compile,
    "quickstart": read_quickstart,
}


def main() -> None:
    """Tell `unimm.diagnosis.apart.read_apart` all of it."""
    write_readings(SECTIONS)
