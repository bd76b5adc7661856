"""`unimm data inspect`: what a training would learn from, before it does.

The data sets and views are those of the data configuration, as `unimm encode` and `unimm train` take it; what is cut and what
is refused is found by making the sequences that a training would make, for the text tokenizer and the lengths of its model.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from unimm.cli.builders import NEW, build_prompt_format, build_text_tokenizer, without_codes
from unimm.cli.compose import build, check_given, run_with_hydra
from unimm.data.inspection.measure import Measure
from unimm.data.inspection.page import write_result
from unimm.data.inspection.run import InspectionConfig, drop_parts, measure_all
from unimm.data.records import Dataset, Record, unchecked
from unimm.data.template import PromptFormat, Template
from unimm.precompute.pass_progress import images_progress
from unimm.runtime.environment import usable_cores

IMAGE_SIZE, IMAGE_POSITIONS, NUM_CODES = 64, 64, 64
"""Where neither the configuration nor a model says: those of the built-in models for the built-in worlds."""

Told = dict[str, Any]


def inspect(config: DictConfig) -> Told:
    """Inspect the data sets of a configuration, and write the folder `out`.

    Returns:
        What its inspection.json holds.

    Raises:
        ValueError: something that is named is not there, or `out` holds something else.
    """
    check_given(config.data, "data")
    names, datasets = _datasets(config)
    limits = _limits(config, list(datasets.values()))
    views = {str(name): build(source.view) for name, source in config.data.sources.items()}
    measures = {
        ", ".join(sources): Measure(
            datasets[key],
            {source: views[source] for source in sources},
            limits.template,
            limits.num_codes,
            config.seed,
            config.open_images,
        )
        for key, sources in names.items()
    }
    workers = usable_cores() if config.num_workers is None else config.num_workers
    settings = {"data": OmegaConf.to_container(config.data, resolve=True), **limits.told, "open_images": config.open_images}
    out = Path(config.out)
    measured = measure_all(
        measures,
        out,
        InspectionConfig(config.sample, config.seed, workers, settings),
        lambda *what: images_progress(*what, unit="records"),
    )
    told = write_result(out, measured, limits.told)
    drop_parts(out)
    return told


def _datasets(config: DictConfig) -> tuple[dict[str, list[str]], dict[str, Dataset]]:
    """The sources of each data set, by a key of its own, and the data sets; stored codes need not be there."""
    names: dict[str, list[str]] = {}
    datasets: dict[str, Dataset] = {}
    for name, source in config.data.sources.items():
        node = without_codes(source.dataset)
        key = hashlib.sha256(json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True).encode()).hexdigest()
        names.setdefault(key, []).append(str(name))
        if key not in datasets:
            datasets[key] = build(node)
    return names, datasets


def named_datasets(config: DictConfig) -> dict[str, Dataset]:
    """The data sets of a configuration, without codes, by the names of the sources that share each."""
    names, datasets = _datasets(config)
    return {", ".join(sources): datasets[key] for key, sources in names.items()}


@dataclass(frozen=True)
class _Limits:
    """What lengths are counted by. told: the same for a person."""

    template: Template
    num_codes: int
    told: dict[str, Any]


def _limits(config: DictConfig, datasets: list[Dataset]) -> _Limits:
    sizes = {"image_size": IMAGE_SIZE, "image_positions": IMAGE_POSITIONS, "num_codes": NUM_CODES}
    own, prompt_format, longest = None, PromptFormat(), None
    if config.init_from is not None:
        from unimm.checkpoints.bundle import ModelBundle  # slow to import

        bundle = ModelBundle.load(config.init_from, "cpu", None)
        codes = bundle.model.config.codes
        sizes["image_size"], sizes["image_positions"] = bundle.model.config.vision.image_size, bundle.model.num_image_positions
        sizes["num_codes"] = sizes["num_codes"] if codes is None or codes.num_codes is None else codes.num_codes
        own, prompt_format, longest = bundle.tokenizer, bundle.prompt_format, bundle.model.config.max_positions
    sizes |= {name: config[name] for name in sizes if config[name] is not None}
    is_own = own is not None and config.text_tokenizer is None
    tokenizer = own if is_own else build_text_tokenizer(config, [_Readable(dataset) for dataset in datasets])
    assert tokenizer is not None
    prompt_format = build_prompt_format(config.prompt_format, prompt_format)
    template = Template(tokenizer, prompt_format, sizes["image_size"], sizes["image_positions"], max_positions=longest)
    template = template.limited(config.num_positions)
    made = config.text_tokenizer in (None, NEW)
    named = config.init_from if is_own else f"new, {len(tokenizer)} ids" if made else config.text_tokenizer
    return _Limits(
        template, sizes["num_codes"], {"text_tokenizer": str(named), "max_positions": template.max_positions, **sizes}
    )


class _Readable:
    """A data set whose bad records are empty: the text tokenizer is made of the others."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record:
        try:
            return unchecked(self._dataset, index)
        except (ValueError, OSError):
            return Record(f"record {index}")


def print_result(told: Told, out: Path) -> None:
    """The result as tables, and where the rest lies."""
    console = Console(highlight=False)
    for name, data in told["data_sets"].items():
        table = Table(title=name, title_justify="left", show_header=False, title_style="bold", min_width=60)
        table.add_column(no_wrap=True)
        table.add_column()
        for label, text in _rows(data):
            table.add_row(label, text)
        console.print(table)
        for warning in data["warnings"]:
            console.print(f"WARNING: {warning}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"{out / 'inspection.html'}\n{out / 'inspection.json'}", markup=False, soft_wrap=True)


def _rows(data: Told) -> list[tuple[str, str]]:
    images, duplicates = data["images"], data["near_duplicates"]
    looked = f", {data['inspected']:,} looked at" if data["inspected"] < data["records"] else ""
    rows = [("records", f"{data['records']:,}{looked}")]
    rows += [("with", ", ".join(f"{name} {number:,}" for name, number in data["records_with"].items()) or "nothing")]
    rows += [
        (f"language {language}", ", ".join(f"{number:,} texts in {script} letters" for script, number in scripts.items()))
        for language, scripts in data["languages"].items()
    ]
    rows += [(f"{kind}, tokens", _spread(one)) for kind, one in data["tokens"].items()]
    for name, source in data["sources"].items():
        lost = f"; cut {source['cut']:,}, refused {source['refused']['count']:,}"
        rows.append((f"{name}, positions", _spread(source["positions"]) + lost))
    if images["decoded"]:
        rows.append(("images", ", ".join(f"{number:,} {name}" for name, number in images["formats"].items())))
        rows += [(f"{side}, px", _spread(images[side])) for side in ("width", "height")]
        rows += [("tiles an image", _spread(images["tiles"]))] if "tiles" in images else []
        rows.append(("near-duplicates", f"{duplicates['records']:,} records in {duplicates['groups']:,} groups"))
    for label, what in (("bad records", data["bad_records"]), ("bad images", data["bad_images"])):
        rows += [(label, f"{reason['count']:,}: {reason['reason']}") for reason in what["reasons"][:5]]
    return rows


def _spread(one: Told) -> str:
    if not one["count"]:
        return "none"
    return f"median {one['median']:,.0f}, 95 % {one['p95']:,.0f}, largest {one['max']:,}"


def main(argv: list[str] | None = None) -> None:
    """The command: overrides in, a table and a folder out."""
    run_with_hydra("data_inspect", lambda config: print_result(inspect(config), Path(config.out)), argv)


if __name__ == "__main__":
    main()
