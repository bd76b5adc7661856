"""Hydra: a configuration composed from files and overrides, and a job run with it. Layers below know plain objects only.

`conf/` stands at the top of a checkout and travels inside the wheel as `unimm/conf`, so commands find it from any folder.
"""

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from accelerate import PartialState
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unimm.cli.conf import conf_folder
from unimm.cli.errors import plain_errors
from unimm.cli.library_warnings import quiet_libraries
from unimm.cli.overrides import as_typed, quote, split_words
from unimm.runtime.devices import choose_device
from unimm.runtime.number_checks import check_whole
from unimm.runtime.plugins import TARGET, take_allow_code, trust
from unimm.runtime.rank_sync import Ranks

MAX_SEED = 2**63 - 1


def compose_config(root: str, overrides: list[str]) -> DictConfig:
    """A root configuration (`train`, `train_tokenizer`, `encode`) with overrides, as the shell verbs compose it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base=None):
        return _noted(compose(root, overrides=as_typed(overrides)), overrides)


_OVERRIDES: dict[int, tuple[str, ...]] = {}


def overrides_of(config: DictConfig) -> tuple[str, ...]:
    """The overrides that a configuration was composed with: what its user has asked for, beside what the files say."""
    return _OVERRIDES.get(id(config), ())


def _noted(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Remember a configuration's overrides as long as it lives; folders may name parts of the packages that it names."""
    trust(_targets(OmegaConf.to_container(config, resolve=False)))
    _OVERRIDES[id(config)] = tuple(overrides)
    weakref.finalize(config, _OVERRIDES.pop, id(config), None)
    return config


def _targets(node: Any) -> Iterator[str]:
    """The import paths under `_target_` in a configuration."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and isinstance(node.get(TARGET), str):
        yield node[TARGET]
    for child in children:
        yield from _targets(child)


def run_with_hydra(root: str, job: Callable[[DictConfig], object], argv: list[str] | None = None) -> None:
    """Compose a root configuration from the words of the command line and do the job; mistakes end in one sentence.

    argv: the words; default: those that the process was called with.
    """
    quiet_libraries()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us whole, and we say them in one sentence

    def plain_job(config: DictConfig) -> None:
        with plain_errors():  # inside too: Hydra would add a line of its own
            job(_noted(config, HydraConfig.get().overrides.task))

    with plain_errors(), TemporaryDirectory(prefix="unimm-sweep-") as sweep:
        words = split_words(take_allow_code(sys.argv[1:] if argv is None else argv))
        if words.is_multirun and not words.has_own_sweep:
            words.overrides.append(f"hydra.sweep.dir={quote(sweep)}")  # Hydra's record of it; each run has its config.yaml
        sys.argv[1:] = words.for_hydra()
        hydra.main(version_base=None, config_path=str(conf_folder()), config_name=root)(plain_job)()
    leave_group()


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
    """Ask for what only the user knows, such as the path of a data set, by the name that stands in the file: not by one of the
    places below it that take the value over.

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
