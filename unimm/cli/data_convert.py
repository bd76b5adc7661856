"""`unimm data convert`: the records of any data configuration, written in another format that people use."""

import shlex
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from unimm.cli.compose import check_given, run_with_hydra
from unimm.cli.data import named_datasets
from unimm.data.conversion.run import ConversionConfig, Converted, convert
from unimm.precompute.pass_progress import images_progress
from unimm.runtime.environment import usable_cores


def convert_data(config: DictConfig) -> Converted:
    """Write the data set of a configuration in the format `to`, into the folder `out`.

    Raises:
        ValueError: several data sets are named, the format cannot hold the records, or too many of them cannot be used.
    """
    check_given(config.data, "data")
    found = named_datasets(config)
    if config.source is not None:
        found = {name: one for name, one in found.items() if config.source in name.split(", ")}
    if len(found) != 1:
        names = ", ".join(map(str, config.data.sources))
        raise ValueError(f"A data set is converted by itself: add source=NAME, with NAME one of {names}.")
    settings = ConversionConfig(
        to=config.to,
        leave_out=tuple(config.leave_out),
        shard_megabytes=config.shard_megabytes,
        num_workers=usable_cores() if config.num_workers is None else config.num_workers,
        max_bad=config.max_bad,
        settings={"config": OmegaConf.to_container(config.data, resolve=True)},
    )
    (dataset,) = found.values()
    return convert(dataset, Path(config.out), settings, lambda *what: images_progress(*what, unit="records"))


def print_converted(made: Converted, out: Path) -> None:
    """How many records there are, how many were left out, and how they are read."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    left = f"; {len(made.bad):,} could not be used, see {out.name}.bad_records.txt beside it" if made.bad else ""
    console.print(f"{out}: {made.num_records:,} records{left}")
    console.print(f"Read it with: {shlex.join(made.overrides)}")


def main(argv: list[str] | None = None) -> None:
    """The command: overrides in, a folder out."""
    run_with_hydra("data_convert", lambda config: print_converted(convert_data(config), Path(config.out)), argv)


if __name__ == "__main__":
    main()
