"""`unimm reproduce`: Janus-Pro's numbers from its weights, every setting in conf/reproduce.yaml, beside what others report.

GenEval and DPG-Bench are drawn as `unimm export` does, POPE is asked as `unimm eval` does, into a folder each below `out`: what
was begun there, by these commands too, goes on. A part whose files are not named is skipped. The official scorers run outside
of unimm; what they have written into these folders is read. MMBench is lmms-eval's, whose command is shown.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unimm.cli.compose import run_with_hydra
from unimm.cli.export import folder_name, run_export
from unimm.cli.options import open_model
from unimm.eval.answer_folder import SCORES as ANSWER_SCORES
from unimm.eval.benchmarks.benchmark import choose_prompts
from unimm.eval.benchmarks.export import MANIFEST, WHOLE, Export, ExportSettings, digest_of
from unimm.eval.benchmarks.scores import score
from unimm.eval.benchmarks.table import BENCHMARKS
from unimm.eval.report.published import Figure, benchmarks, find_published
from unimm.eval.runner import evaluate
from unimm.eval.tasks.question_files import STRATEGIES, PopeFiles
from unimm.inference.engine import Engine
from unimm.precompute.pass_progress import say
from unimm.runtime.atomic_files import read_json

DRAWN = ("geneval", "dpg")


class Outcome(NamedTuple):
    """A benchmark's key in published.json; our score in the unit that it has there, None where there is none yet; and a note:
    what is to do for it, or what it is of."""

    published: str
    ours: float | None
    note: str = ""


def reproduce(config: DictConfig) -> list[Outcome]:
    """Do what is left to do of every part whose files are named, then read what scores there are.

    Raises:
        ValueError: files have another form, a folder holds something else's images or answers, nothing is published of
            `figures_of`, or the model has another prompt format.
    """
    _figures(config)
    engine = cache(lambda: _open(config))  # none, where every part is skipped
    for name in DRAWN:
        _draw(name, config, engine)
    _ask(config, engine)
    drawn = [_read_drawn(name, config) for name in DRAWN]
    command = f"run by hand ({config.mmbench.scorer}): {config.mmbench.command}"
    return [*drawn, _read_pope(config), Outcome(config.mmbench.published, None, command)]


def _open(config: DictConfig) -> Engine:
    engine = open_model(config.init_from, config.device, config.dtype, None)
    own, expected = engine.template.prompt_format, config.prompt_format
    if (own.user, own.assistant) != (expected.user, expected.assistant):
        raise ValueError(
            f"{config.init_from} calls the roles of a prompt {own.user} and {own.assistant}, not {expected.user} and "
            f"{expected.assistant}: set prompt_format.user and prompt_format.assistant, if this is meant."
        )
    return engine


def _draw(name: str, config: DictConfig, engine: Callable[[], Engine]) -> None:
    """Draw what is missing of a benchmark's images."""
    benchmark, part = BENCHMARKS[name], config[name]
    if part.prompts is None:
        say(f"{benchmark.title} is skipped: name its own prompts with {name}.prompts=PATH ({part.scorer}).")
        return
    prompts = Path(part.prompts)
    read = choose_prompts(benchmark.read(prompts), config.num_items)  # before the model is opened, which takes longer
    settings = ExportSettings(
        num_images=part.num_images,
        seed=config.seed,
        guidance_scale=part.guidance_scale,
        temperature=part.temperature,
        top_k=part.top_k,
        top_p=part.top_p,
        batch=config.batch,
        name=folder_name(config.init_from),
    )
    run_export(Export(benchmark, engine(), read, digest_of(prompts), settings, Path(config.out) / name), WHOLE)


def _ask(config: DictConfig, engine: Callable[[], Engine]) -> None:
    """Ask what is left of POPE's questions."""
    part = config.pope
    if part.paths is None or part.images is None:
        say("POPE is skipped: name its files and COCO's images with pope.paths=coco_pope_*.json pope.images=FOLDER.")
        return
    paths = OmegaConf.to_container(part.paths) if OmegaConf.is_list(part.paths) else part.paths
    task = PopeFiles(paths, part.images, prompt=part.prompt, num_items=config.num_items)  # pyright: ignore[reportArgumentType]
    evaluate(engine(), [task], Path(config.out) / "pope")


def _read_drawn(name: str, config: DictConfig) -> Outcome:
    """The score that a benchmark's own scorer has written beside the images, or how it is called."""
    benchmark, part, out = BENCHMARKS[name], config[name], Path(config.out) / name
    manifest = read_json(out / MANIFEST)
    if manifest is None:
        return Outcome(part.published, None, "not drawn yet")
    if not any(path for pattern in benchmark.results for path in out.glob(pattern)):
        return Outcome(part.published, None, f"not scored yet ({part.scorer}): {benchmark.scorer_line(out, manifest)}")
    total = score(benchmark, [], out).total
    return Outcome(part.published, None if total is None else total.value)


def _read_pope(config: DictConfig) -> Outcome:
    """POPE's F1 in percent, the mean over its files."""
    scores = read_json(Path(config.out) / "pope" / ANSWER_SCORES) or {}
    task = scores.get("tasks", {}).get("pope")
    if task is None or not scores["finished"]:
        return Outcome(config.pope.published, None, "not asked yet")
    others = task["other_scores"]
    each = [others[f"f1 {strategy}"]["score"] for strategy in STRATEGIES if f"f1 {strategy}" in others]
    note = "" if len(each) == len(STRATEGIES) else f"of {max(len(each), 1)} of its {len(STRATEGIES)} files"
    return Outcome(config.pope.published, 100 * fmean(each or [others["f1"]["score"]]), note)


def _figures(config: DictConfig) -> list[Figure]:
    """What is published of the model. ValueError: nothing is."""
    figures = find_published([config[part].published for part in (*DRAWN, "pope", "mmbench")])
    if own := [one for one in figures if one.model == config.figures_of and one.value is not None]:
        return own
    models = ", ".join(dict.fromkeys(one.model for one in figures))
    raise ValueError(f"Nothing is published of '{config.figures_of}': figures_of is one of {models}.")


def show(config: DictConfig, outcomes: list[Outcome]) -> None:
    """The table: ours, the paper's, others'; what is to do; the sources."""
    figures, console = _figures(config), Console(highlight=False, soft_wrap=True)
    origins = list(dict.fromkeys(figure.origin for figure in figures))
    table = Table("benchmark", "ours", f"{config.figures_of}, paper", "reproduced by others", box=None)

    def said(name: str, kind: str) -> str:
        chosen = [one for one in figures if one.benchmark == name and one.source.kind == kind]
        return ", ".join(f"{one.value:g} [{origins.index(one.origin) + 1}]" for one in chosen) or "-"

    for name, ours, _ in outcomes:
        row = (_title(name), "-" if ours is None else f"{ours:.4g}", said(name, "paper"), said(name, "reproduced"))
        table.add_row(*map(escape, row))
    console.print(table)
    if config.num_items is not None:
        console.print(f"With num_items={config.num_items} ours are not the benchmarks' scores.")
    for name, _, note in outcomes:
        if note:
            console.print(f"{_title(name)}: {note}", markup=False)
    for number, origin in enumerate(origins, 1):
        console.print(f"[{number}] {origin}", markup=False)


def _title(published: str) -> str:
    return benchmarks()[published].title.partition(" (")[0]


def main(argv: list[str] | None = None) -> None:
    """The command: overrides in, images, answers and a table out."""
    run_with_hydra("reproduce", lambda config: show(config, reproduce(config)), argv)


if __name__ == "__main__":
    main()
