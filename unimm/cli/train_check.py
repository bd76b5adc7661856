"""`unimm train --check`: what a training will need and take, on one page, before its queue is paid for.

It takes the words of `unimm train`, opens the data and reads the first step; nothing is trained, downloaded or written. Memory
is that of `unimm.training.memory`; time is the operations of the first step (`unimm.training.flops`) by an assumed share of the
device's peak. What is wrong in the configuration, or does not go together (codes of another image tokenizer), ends as it
would in the training, with exit code 2; what does not fit is said on the page, and the exit code is 1.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from unimm.cli.compose import build, run_with_hydra, seed_everything
from unimm.cli.learner import open_learner
from unimm.cli.train import build_settings
from unimm.data.mixture import Mixture
from unimm.data.plan import Plan, StepBatch, Steps
from unimm.data.records import known_length
from unimm.data.stores.codes import CodedDataset
from unimm.runtime.devices import choose_device, choose_precision, measure_speed
from unimm.runtime.environment import cgroup_memory, usable_cores
from unimm.training.flops import PEAKS, peak_of
from unimm.training.memory import Machine, Memory, PassSizes, estimate
from unimm.training.objectives.likelihood import Objective
from unimm.training.sharding import check_context, num_groups
from unimm.training.trainable_parts import freeze
from unimm.training.trainer_config import TrainerConfig

CHECK = "--check"
GIGABYTES = {
    "B200": 180, "GH200": 96, "H200": 141, "H100 NVL": 94, "H100": 80, "A100": 80, "L40S": 48, "L4": 24, "RTX 4090": 24,
    "RTX 3090": 24, "V100": 32,
}  # fmt: skip
"""Memory of GPUs, by a piece of the name (the first that fits); of those that come in two sizes the larger."""

OWN_OF_GPU = 1.5e9
"""Bytes of a GPU that its driver, its libraries and exchanges take."""

SPARE = 0.9
"""The share of a device's memory that may be planned with: an allocator leaves gaps."""

DAY = 86_400.0


@dataclass(frozen=True)
class Options:
    """Where the training is to run. gpu: its name; None: this machine's device. mfu: the share of its peak that is used."""

    gpus: int = 1
    gpu: str | None = None
    mfu: float = 0.4
    is_json: bool = False


@dataclass
class Report:
    """What a check has found: figures by name, and what does not fit."""

    figures: dict[str, Any]
    problems: list[str] = field(default_factory=list)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"unimm train --check: {message}")


def take_options(arguments: list[str]) -> tuple[Options, list[str]]:
    """The options of the check, and the words of the training.

    Raises:
        ValueError: a value makes no sense.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(CHECK, action="store_true")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gpu")
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--json", action="store_true")
    own, rest = parser.parse_known_args(arguments)
    if own.gpus < 1:
        raise ValueError(f"--gpus is a number of processes, not {own.gpus}.")
    if not 0 < own.mfu <= 1:
        raise ValueError(f"--mfu is a share of the peak, above 0 and at most 1, not {own.mfu}.")
    if own.gpu is not None and gpu_named(own.gpu) is None:
        raise ValueError(f"The GPU '{own.gpu}' is not known: use one of {', '.join(PEAKS)}.")
    return Options(own.gpus, own.gpu and gpu_named(own.gpu), own.mfu, own.json), rest


def gpu_named(name: str) -> str | None:
    """The known name that a person means."""
    return next((piece for piece in PEAKS if piece.lower().replace(" ", "") == name.lower().replace(" ", "")), None)


def check(config: DictConfig, options: Options) -> Report:
    """Find out what a training needs and takes.

    Raises:
        ValueError: the configuration is wrong, or what it names does not go together.
    """
    trainer, _, _ = build_settings(config)
    seed_everything(config.seed)
    learner = open_learner(config, with_weights=config.init_from is not None)
    objective: Objective = build(config.objective, model=learner.bundle.model)
    freeze(objective.parts(), trainer.stage)
    device = torch.device("cuda") if options.gpu else choose_device(config.device)
    is_bf16 = trainer.precision != "no" and (bool(options.gpu) or choose_precision(trainer.precision, device) == "bf16")
    machine = Machine(options.gpus, device.type, is_bf16)
    check_context(objective, trainer.sharding, trainer.num_positions)
    plan = Plan(learner.mixture, trainer.num_positions, trainer.num_rows)
    groups = num_groups(trainer.sharding, options.gpus)
    step = Steps(plan, trainer.num_micro_batches, 0, groups)[0]
    for batch in step.batches:
        objective.check(batch)
    degree = trainer.sharding.context_parallel_degree
    sizes = [PassSizes.of(batch, objective.model, degree) for batch in step.batches]
    largest = replace(sizes[0], **_largest(sizes))
    memory = estimate(objective, trainer, largest, machine)
    report = Report({"memory": memory.parts()})
    _fit_memory(report, memory, options, device)
    _fit_time(report, objective, trainer, step, options, device, is_bf16)
    _fit_data(report, learner.mixture, trainer, step, groups)
    _fit_disk(report, objective, memory, config, options, trainer)
    report.figures["notes"] = learner.notes
    return report


def _largest(sizes: list[PassSizes]) -> dict[str, Any]:
    """Of each number of some micro-batches the largest: other steps have others."""
    return {
        "num_rows": max(one.num_rows for one in sizes),
        "elements": {kind: max(one.elements[kind] for one in sizes) for kind in sizes[0].elements},
        "learned": {kind: max(one.learned[kind] for one in sizes) for kind in sizes[0].learned},
        "looked": max(one.looked for one in sizes),
        "stored": max(one.stored for one in sizes),
    }


def _fit_memory(report: Report, memory: Memory, options: Options, device: torch.device) -> None:
    if options.gpu is not None:
        name, total, own = options.gpu, GIGABYTES[options.gpu] * 1e9, OWN_OF_GPU
    elif device.type == "cuda":
        name, total, own = torch.cuda.get_device_name(device), float(torch.cuda.mem_get_info(device)[1]), OWN_OF_GPU
    else:
        limited = cgroup_memory()  # of a container, or a job
        whole = psutil.virtual_memory().total if limited is None else min(psutil.virtual_memory().total, limited[0])
        name, total, own = f"this {device.type}", whole / options.gpus, 0.0
    report.figures |= {"device": name, "processes": options.gpus, "device_bytes": int(total)}
    room = max(0.0, SPARE * total - own)
    if memory.peak > room:
        report.problems.append(
            f"A process needs {memory.peak / 1e9:.1f} GB, and {name} has {room / 1e9:.1f} GB to plan with: raise "
            f"trainer.num_micro_batches, take trainer.activation_checkpointing=selective, or share the model by "
            f"trainer.sharding.strategy=fsdp over more GPUs; what long rows take, GPUs share by "
            f"trainer.sharding.context_parallel_degree=2."
        )


def _fit_time(
    report: Report,
    objective: Objective,
    trainer: TrainerConfig,
    step: StepBatch,
    options: Options,
    device: torch.device,
    is_bf16: bool,
) -> None:
    """Tokens, images and seconds a step; all processes are taken to have as much to do as the first."""
    count, degree = objective.flop_count(), trainer.sharding.context_parallel_degree
    groups = options.gpus // degree
    figures = {
        "tokens_a_step": groups * sum(batch.num_elements for batch in step.batches),
        "positions_a_step": trainer.num_rows * trainer.num_positions,
        "images_a_step": groups * sum(batch.num_images for batch in step.batches),
        "steps": trainer.budget.max_steps,
    }
    peak = 1e12 * trainer.peak_tflops if trainer.peak_tflops else _peak(options, device, is_bf16)
    if count is not None and peak is not None:
        flops = sum(count.of(batch) for batch in step.batches) / degree
        seconds = flops / (options.mfu * peak)
        figures |= {"tflop_a_step": options.gpus * flops / 1e12, "mfu": options.mfu, "peak_tflops": peak / 1e12}
        figures |= {"seconds_a_step": seconds, "steps_a_day": DAY / seconds}
        minutes, steps = trainer.budget.max_minutes, trainer.budget.max_steps
        by_clock = None if minutes is None else int(60 * minutes / seconds)
        figures["steps"] = steps = min(one for one in (steps, by_clock) if one is not None)
        figures |= {"hours": steps * seconds / 3600, "gpu_hours": options.gpus * steps * seconds / 3600}
    if figures["steps"] is not None:
        figures["tokens"] = figures["steps"] * figures["tokens_a_step"]
    report.figures["step"] = figures


def _peak(options: Options, device: torch.device, is_bf16: bool) -> float | None:
    if options.gpu is not None:
        return PEAKS[options.gpu]
    if device.type == "cuda":
        return peak_of(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return None
    return 1e9 * measure_speed(torch.bfloat16 if is_bf16 else torch.float32).product * min(1.0, usable_cores() / options.gpus)


def _fit_data(report: Report, mixture: Mixture, trainer: TrainerConfig, step: StepBatch, groups: int) -> None:
    """Records of each source, how often they are seen, and how many codes are missing. groups: of processes that share rows."""
    samples, steps = len(step.samples) * groups, report.figures["step"]["steps"]
    report.figures["samples_a_step"] = samples
    shares = mixture.mean_shares(steps or 1)
    report.figures["data"] = {}
    for source, share in zip(mixture.sources, shares, strict=True):
        records = known_length(source.dataset)
        told: dict[str, Any] = {"records": records, "share": share}
        if steps is not None and records:
            told["times_seen"] = steps * samples * share / records
        missing = sum(len(one.codes.bad_rows) for one in _coded(source.dataset))
        if missing:
            told["without_codes"] = missing
        if share and records and missing > mixture.max_bad * records:
            report.problems.append(
                f"{missing:,} of {records:,} records of '{source.name}' have no codes, more than max_bad={mixture.max_bad:g}: "
                f"encode them again, or raise max_bad."
            )
        report.figures["data"][source.name] = told


def _coded(dataset: Any) -> Iterator[CodedDataset]:
    while dataset is not None:
        if isinstance(dataset, CodedDataset):
            yield dataset
        dataset = getattr(dataset, "dataset", None)


def _fit_disk(
    report: Report, objective: Objective, memory: Memory, config: DictConfig, options: Options, trainer: TrainerConfig
) -> None:
    """Checkpoints hold weights, averages and optimizer state, whatever the shards; the finished model its weights alone."""
    weights = sum(p.numel() * p.element_size() for p in objective.parameters())
    shards = 1
    if trainer.sharding.strategy != "ddp" and options.gpus > 1:
        shards = trainer.sharding.mesh_shape(options.gpus)[-1]
    one = weights + (memory.averages + memory.optimizer) * shards
    models = 2 if trainer.validate_every else 1
    needed = (trainer.checkpoint.keep + 1) * one + models * weights  # the next one is written before the oldest goes
    there = next(folder for folder in (Path(config.out).absolute(), *Path(config.out).absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    report.figures["disk"] = {"a_checkpoint": one, "all": needed, "free": free, "folder": str(config.out)}
    if needed > free:
        report.problems.append(f"{config.out} needs {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB: name another.")


def show(report: Report, console: Console) -> None:
    """One page."""
    figures = report.figures
    step, memory, disk = figures["step"], figures["memory"], figures["disk"]
    table = Table(title=f"{figures['processes']:,} x {figures['device']}", title_justify="left")
    for name in ("", "GB a process"):
        table.add_column(name, justify="right" if name else "left")
    for name, size in memory.items():
        if size or name == "peak":
            table.add_row(name.replace("_", " "), f"{size / 1e9:,.2f}", end_section=name == "update")
    console.print(table)
    lines = [
        f"a step: {step['tokens_a_step']:,} tokens, {step['images_a_step']:,} images, {figures['samples_a_step']:,} samples"
    ]
    if "seconds_a_step" in step:
        lines.append(
            f"time: {step['seconds_a_step']:.3g} s a step ({step['tflop_a_step']:,.2f} TFLOP at {step['mfu']:.0%} of "
            f"{step['peak_tflops']:,.2f} TFLOP/s), {step['steps_a_day']:,.0f} steps a day"
        )
        lines.append(
            f"all: {step['steps']:,} steps, {step['tokens']:,} tokens, {step['hours']:,.1f} hours, "
            f"{step['gpu_hours']:,.1f} of all processes together"
        )
    for name, told in figures["data"].items():
        records = "in shards, not counted" if told["records"] is None else f"{told['records']:,} records"
        seen = f", each seen {told['times_seen']:.2f} times" if "times_seen" in told else ""
        without = f", {told['without_codes']:,} without codes" if "without_codes" in told else ""
        lines.append(f"data: {name}: {records}, {told['share']:.0%} of samples{seen}{without}")
    lines.append(
        f"disk: {disk['a_checkpoint'] / 1e9:,.2f} GB a checkpoint, {disk['all'] / 1e9:,.2f} GB for all that is kept, "
        f"{disk['free'] / 1e9:,.1f} GB free"
    )
    lines += [f"note: {note}" for note in figures["notes"]]
    lines += [f"DOES NOT FIT: {problem}" for problem in report.problems] or ["It fits."]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def main(arguments: list[str]) -> None:
    """The command: exits with 1 where something does not fit."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before its library is loaded: nothing is downloaded here
    found: list[Report] = []
    options, words = take_options(arguments)
    run_with_hydra("train", lambda config: found.append(check(config, options)), words)
    for report in found:
        if options.is_json:
            print(json.dumps({"options": asdict(options), **report.figures, "problems": report.problems}))
        else:
            show(report, Console(highlight=False))
    if any(report.problems for report in found):
        sys.exit(1)
