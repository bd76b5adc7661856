"""Hydra: a configuration composed from files and overrides, and a job run with it. Layers below know plain objects only.

`conf/` stands at the top of a checkout and travels inside the wheel as `unimm/conf`, so commands find it from any folder.
"""

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from accelerate import PartialState
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from unimm.cli.choices import conf_folder
from unimm.cli.config_help import help_template
from unimm.cli.errors import plain_errors
from unimm.cli.hydra_errors import CommandLine, check_overrides, explained
from unimm.cli.library_warnings import quiet_libraries
from unimm.cli.overrides import Arguments, as_typed, quote, split_arguments
from unimm.runtime.devices import choose_device
from unimm.runtime.number_checks import check_whole
from unimm.runtime.plugins import TARGET, take_allow_code, trust
from unimm.runtime.rank_sync import Ranks

MAX_SEED = 2**63 - 1


def compose_config(root: str, overrides: list[str]) -> DictConfig:
    """A root configuration (`train`, `train_tokenizer`, `encode`) with overrides, as the shell's commands compose it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base=None):
        config = compose(root, overrides=as_typed(overrides), return_hydra_config=True)
        choices = dict(config.hydra.runtime.choices)
        with open_dict(config):
            del config["hydra"]
        return _noted(config, overrides, root, choices)


_GIVEN: dict[int, tuple[str, ...]] = {}


def given_sizes(config: DictConfig) -> tuple[str, ...]:
    """The keys below `model`, or `tokenizer` of an image tokenizer, that a configuration was composed with, on the command line
    or in a file, beside the option of the group; its name alone: the option itself was chosen on the command line."""
    return _GIVEN.get(id(config), ())


SIZES = ("model", "tokenizer")
"""The groups of sizes; a root has one of them."""

PROJECTOR, OF_MODEL = "projector", "of_model"
"""The group of a part of these sizes, and its option that leaves it to the others."""


def _sizes_choice(choices: Mapping[str, str]) -> tuple[str, str] | None:
    """The group of sizes that a root has, and its option; None: it has none."""
    return next(((group, choices[group]) for group in SIZES if choices.get(group) is not None), None)


def _noted(config: DictConfig, overrides: Iterable[str], root: str, choices: Mapping[str, str]) -> DictConfig:
    """Remember which sizes a configuration was given as long as it lives, which matters where its model starts from another;
    folders may name parts of the packages that it names.

    choices: the option of each group. Hydra has to be initialized.
    """
    trust(_targets(OmegaConf.to_container(config, resolve=False)))
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    given = [key for key in keys if key.split(".")[0] in SIZES]
    given += [f"model.{PROJECTOR}"] if choices.get(PROJECTOR) not in (None, OF_MODEL) else []
    choice = _sizes_choice(choices)
    if choice is not None and config.get("init_from") is not None:
        group = choice[0]
        before, now = _written_sizes(root, *choice), _leaves(config[group], group)
        given += [key for key, value in now if key not in before or before[key] != value]
        given += _given_as_written(root, *choice, overrides, before)
    return give_sizes(config, given)


def give_sizes(config: DictConfig, keys: Iterable[str]) -> DictConfig:
    """Note that a configuration was given these sizes (`given_sizes`), as long as it lives."""
    _GIVEN[id(config)] = tuple(dict.fromkeys(keys))
    weakref.finalize(config, _GIVEN.pop, id(config), None)
    return config


def _given_as_written(root: str, group: str, option: str, overrides: Iterable[str], before: Mapping[str, Any]) -> Iterator[str]:
    """The keys to which a file beside the group's option, such as an experiment, gives the very value that the option has: they
    keep it with another option, too.

    before: the sizes of the option as written.
    """
    loader = GlobalHydra.instance().config_loader()
    other = next((one for one in loader.get_group_options(group) if one != option), None)
    if other is None or any(override.partition("=")[0] == group for override in overrides):
        return
    composed = loader.load_configuration(root, overrides=[*overrides, f"{group}={other}"], run_mode=RunMode.RUN)
    plain = _written_sizes(root, group, other)
    for key, value in _leaves(composed[group], group):
        if key in before and before[key] == value and key in plain and plain[key] != value:
            yield key


_WRITTEN: dict[tuple[object, ...], dict[str, Any]] = {}


def _written_sizes(root: str, group: str, option: str) -> dict[str, Any]:
    """The sizes of a root with one of its options, as the files have them: composed again where a file has changed."""
    loader = GlobalHydra.instance().config_loader()
    places = (place.path for place in loader.get_search_path().get_path() if place.path is not None)
    folders = [Path(place.removeprefix("file://")) for place in places if place.startswith(("file://", os.sep))]
    states = [(path, path.stat()) for folder in folders for path in folder.rglob("*.yaml")]
    key = (root, group, option, *((path, state.st_mtime_ns, state.st_size) for path, state in states))
    if key not in _WRITTEN:
        plain = loader.load_configuration(root, overrides=[f"{group}={option}"], run_mode=RunMode.RUN)
        while len(_WRITTEN) > 1:  # two options are compared
            del _WRITTEN[next(iter(_WRITTEN))]
        _WRITTEN[key] = dict(_leaves(plain[group], group))
    return _WRITTEN[key]


def _leaves(node: DictConfig, name: str) -> Iterator[tuple[str, Any]]:
    """Every value below a node by its whole key, as it is written."""
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from _leaves(child, f"{name}.{key}")
        else:
            yield f"{name}.{key}", OmegaConf.to_container(OmegaConf.create([child]))


def _targets(node: Any) -> Iterator[str]:
    """The import paths under `_target_` in a configuration."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and isinstance(node.get(TARGET), str):
        yield node[TARGET]
    for child in children:
        yield from _targets(child)


def run_with_hydra(
    root: str,
    job: Callable[[DictConfig], object],
    argv: list[str] | None = None,
    names: str | None = None,
    command: str | None = None,
) -> None:
    """Compose a root configuration from the arguments of the command line and do the job; mistakes end in one sentence.

    argv: the arguments; default: those that the process was called with.
    names: the key of a list that takes the arguments without a key.
    command: what is called, where it takes another command's root.
    """
    quiet_libraries()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us whole, and we say them in one sentence
    with plain_errors(), TemporaryDirectory(prefix="unimm-sweep-") as sweep:
        arguments = split_arguments(take_allow_code(sys.argv[1:] if argv is None else argv))
        if names is not None and arguments.names:
            listed = f"{names}=[{','.join(map(quote, arguments.names))}]"
            arguments = Arguments(arguments.options, [*arguments.overrides, listed], [])
        line = CommandLine(root, arguments)
        check_overrides(line)
        template = help_template(root, line.choices, command) if arguments.asks_for_help else None
        if template is not None and len(arguments.options) == 1:
            with explained(line):
                _print_help(root, template, arguments.for_hydra()[1:])
            return
        if template is not None:
            arguments.overrides.append(f"hydra.help.template={quote(template)}")
        if arguments.is_multirun and not arguments.has_own_sweep:
            arguments.overrides.append(f"hydra.sweep.dir={quote(sweep)}")  # Hydra's record of it; each run has its config.yaml

        def plain_job(config: DictConfig) -> None:
            with plain_errors(), explained(line):  # inside too: Hydra would add a line of its own
                hydra_config = HydraConfig.get()
                job(_noted(config, hydra_config.overrides.task, root, hydra_config.runtime.choices))

        with explained(line):
            if arguments.options or any(one.lstrip("+~").startswith("hydra") for one in arguments.overrides):
                sys.argv[1:] = arguments.for_hydra()
                hydra.main(version_base=None, config_path=str(conf_folder()), config_name=root)(plain_job)()
            else:
                _run_once(root, plain_job, arguments.for_hydra())
    leave_group()


@contextmanager
def _hydra_of_conf() -> Iterator[Any]:
    """Hydra, with our configurations alone."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base=None):
        yield GlobalHydra.instance().hydra


def _run_once(root: str, job: Callable[[DictConfig], object], overrides: list[str]) -> None:
    """As `hydra.main` does it, which composes everything once before, to find out that this is no sweep."""
    with _hydra_of_conf() as opened:
        opened.run(root, job, overrides)


def _print_help(root: str, template: str, overrides: list[str]) -> None:
    """As Hydra prints it, which looks up all groups once more first, for a part of its own template."""
    with _hydra_of_conf() as opened:
        config = opened.compose_config(root, overrides, RunMode.RUN)
        print(Template(template).substitute(CONFIG=OmegaConf.to_yaml(opened.get_sanitized_cfg(config, "job"))))


def print_paths(paths: Iterable[Path]) -> None:
    """What was written, a line each, once for all processes."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(*paths, sep="\n")


def build(config: Any, **arguments: Any) -> Any:
    """Instantiate a node; below it everything is plain lists, dicts and frozen dataclasses."""
    return instantiate(config, _convert_="all", **arguments)


def seed_everything(seed: int) -> None:
    """Seed what initialises weights; samples and noise are keyed by (seed, sample) and need no state.

    Raises:
        ValueError: the seed is none.
    """
    check_whole({"seed": seed}, 0)
    if seed > MAX_SEED:
        raise ValueError(f"seed must be below 2^63, not {seed}.")
    torch.manual_seed(seed)


def check_given(config: DictConfig, name: str) -> None:
    """Check that what only the user knows, such as the path of a data set, is given; the error names the key of the file, not
    one of those below it that take its value.

    Raises:
        ValueError: a key has no value.
    """
    for key in config:
        if OmegaConf.is_missing(config, key):
            raise ValueError(f"The key '{name}.{key}' has no value yet: add {name}.{key}=...")


def join_group(device: str | None) -> tuple[torch.device, Ranks]:
    """The device to work on, and the processes of the launcher that started this one; without one it is alone.

    Raises:
        ValueError: the device is not here.
    """
    chosen = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return chosen, Ranks()
    state = PartialState(cpu=chosen.type == "cpu")
    own = chosen if chosen.type == "cpu" or state.device is None else state.device
    return own, Ranks(state.process_index, state.num_processes)


def leave_group() -> None:
    """Leave the other processes of a launcher at the end, in order: one that is simply gone can take its neighbour down."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def settings_of(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain dicts, lists, numbers and strings."""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def save_config(config: DictConfig, folder: Path, changes: Iterable[str] = ()) -> None:
    """The composed configuration beside the run, so that it can be read and repeated; changes: what stands above it, a line
    each, of settings that were others before."""
    folder.mkdir(parents=True, exist_ok=True)
    history = "".join(f"# {change}\n" for change in changes)
    (folder / "config.yaml").write_text(history + OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
