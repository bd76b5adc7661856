"""What a configuration can be composed from: its groups, the options of each, and the keys that each option's file has.

Read from the files of `conf/` and of the folders that `--config-dir` names, for `--help` and for answers to mistyped names.
`conf/data/nodes` holds pieces that other files are put together from, so nobody chooses them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

import unimm

NODES = "nodes"
"""A folder of a group whose files are no options of it."""

EXPERIMENT = "experiment"
"""The group of whole runs: each sets options and keys of the other groups."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The quick one where it was built."""

RECIPES = {EXPERIMENT: ("demo", "encoders", "projectors", "quickstart", "scaling"), "data": ("worlds",)}
"""Folders with options that belong to one recipe each: they are listed by the name of the folder alone."""

PACKAGES = {"projector": "model.projector"}
"""Groups whose options set keys of another one."""

COMMANDS = {"data_inspect": "data inspect", "data_convert": "data convert"}
"""Commands that have other names than their root configurations."""


def command_name(root: str) -> str:
    """The command that a root configuration is for, such as `train-tokenizer`."""
    return COMMANDS.get(root, root.replace("_", "-"))


@dataclass(frozen=True)
class Choices:
    """The groups and options in folders of configurations: unimm's own first, then a user's."""

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, config_dirs: list[str]) -> "Choices":
        """unimm's own, and those below folders of the user."""
        return cls((conf_folder(), *(Path(folder) for folder in config_dirs)))

    @cached_property
    def files(self) -> dict[str, dict[str, Path]]:
        """The file of every option, such as `worlds/vision`, by group; of the same name in two folders it is the first."""
        found: dict[str, dict[str, Path]] = {}
        for folder in self.folders:
            for path in sorted(folder.glob("*/**/*.yaml")):
                group, *names = path.relative_to(folder).with_suffix("").parts
                if group != "hydra" and names[0] != NODES:
                    found.setdefault(group, {}).setdefault("/".join(names), path)
        return found

    @property
    def root_files(self) -> dict[str, Path]:
        """The files of `unimm train`, `encode` and others, by name."""
        return {path.stem: path for folder in self.folders for path in folder.glob("*.yaml")}

    def groups_of(self, root: str) -> dict[str, str]:
        """The groups that a root configuration chooses from, each with the option that it takes by default."""
        defaults = _read(self.root_files[root])["defaults"]
        chosen = {str(group): str(name) for entry in defaults if isinstance(entry, dict) for group, name in entry.items()}
        return {group: name for group, name in chosen.items() if group in self.files}

    def examples_of(self, root: str) -> list[str]:
        """The lines `# Example: ...` of a root configuration's file."""
        lines = self.root_files[root].read_text(encoding="utf-8").splitlines()
        return [line[2:] for line in lines if line.startswith("# Example: ")]

    def keys_of_root(self, root: str) -> list[str]:
        """The keys that a root configuration's own file has."""
        return [key for key in _flat(_read(self.root_files[root])) if not key.startswith("defaults")]

    def keys_of(self, group: str, option: str) -> dict[str, bool]:
        """The keys that an option's own file has, with whether each holds further keys; those of its defaults are not followed.

        Keys of an experiment are those of the whole configuration.
        """
        prefix = "" if group == EXPERIMENT else f"{PACKAGES.get(group, group)}."
        content = _read(self.files[group][option])
        return {f"{prefix}{key}": is_group for key, is_group in _flat(content).items() if not key.startswith("defaults")}

    def options_with(self, group: str, key: str) -> list[str]:
        """The options of a group whose own file has a key, such as `data.paths`."""
        return [option for option in self.files[group] if key in self.keys_of(group, option)]

    def about(self, group: str, option: str) -> str:
        """The first sentence of the comment at the top of an option's file."""
        lines = self.files[group][option].read_text(encoding="utf-8").splitlines()
        comment = [line[1:].strip() for line in lines if line.startswith("#") and not line.startswith("# @package")]
        text = " ".join(comment)
        return text.partition(". ")[0].rstrip(".")


def _read(path: Path) -> dict[str, Any]:
    """A file of YAML; one that cannot be read is Hydra's to refuse."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, bool]:
    """Every key below a node by its whole name, and whether it holds further keys."""
    return dict(_walk(node, prefix))


def _walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, bool]]:
    for key, value in node.items():
        if key == "_target_":
            continue
        is_group = isinstance(value, dict) and bool(value)
        yield f"{prefix}{key}", is_group
        if is_group:
            yield from _walk(value, f"{prefix}{key}.")


def conf_folder() -> Path:
    """Where the configurations are: inside the wheel, or at the top of the checkout."""
    package = Path(unimm.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"No configurations beside {package}: install unimm again.")
