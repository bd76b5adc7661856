"""Hydra's errors in one sentence: which key, group or option there is not, and which was probably meant, wherever it lies.

Hydra names a key and little else, and takes some mistakes for something new: a misspelled `+expriment=...` is added as a key
that nothing reads. `check_overrides` finds these before Hydra composes.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from unimm.cli.choices import EXPERIMENT, Choices, command_name
from unimm.cli.overrides import Arguments
from unimm.cli.suggestions import NEAR, did_you_mean, keys_of_config, likeness, nearest_keys, nearest_options

SOURCE_KEYS = ("dataset", "view", "weight")
"""All that is read of a source of data."""


@dataclass(frozen=True)
class CommandLine:
    """A root configuration, such as `train`, and the arguments that it is composed with."""

    root: str | None = None
    arguments: Arguments = field(default_factory=lambda: Arguments([], [], []))

    @cached_property
    def choices(self) -> Choices:
        """Groups and options, with those of the folders that the arguments name."""
        return Choices.of(self.arguments.config_dirs)

    @property
    def overrides(self) -> dict[str, str]:
        """Values by key, without pluses; deletions left out."""
        pairs = (override.partition("=") for override in self.arguments.overrides if not override.startswith("~"))
        return {key.lstrip("+").partition("@")[0]: value for key, _, value in pairs}

    def chosen(self) -> dict[str, str]:
        """The option of every group of the root: the default, or what the arguments choose."""
        if self.root is None:
            return {}
        given = self.overrides
        return {group: given.get(group, name) for group, name in self.choices.groups_of(self.root).items()}

    def known_keys(self) -> list[str]:
        """The keys that the files of the root and of the chosen options have; those of their defaults are not followed."""
        if self.root is None:
            return []
        choices = self.choices
        chosen = [(group, name) for group, name in self.chosen().items() if name in choices.files[group]]
        return [*choices.keys_of_root(self.root), *(key for group, name in chosen for key in choices.keys_of(group, name))]


def explain_hydra(error: BaseException, line: CommandLine | None = None) -> str | None:
    """One sentence for an error of Hydra or OmegaConf; None for a bug."""
    line = line or CommandLine()
    kind, cause, message = type(error).__name__, error.__cause__, str(error)
    if kind == "InstantiationException":
        return _explain_instantiation(message, cause, line)
    if kind == "MissingConfigException":
        return _explain_missing_option(error, line)
    if kind == "OverrideParseException":
        return f"Cannot read {getattr(error, 'override', '')!r}: write key=value, with quotes around special characters."
    key = getattr(cause, "full_key", None) or getattr(error, "full_key", None)
    if kind in ("MissingMandatoryValue", "InterpolationToMissingValueError"):
        return _explain_missing_value(error, str(key))
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError"):
        typed = re.search(r"Could not override '([^']+)'", message)
        node = getattr(cause, "parent_node", None)
        keys = [] if node is None else list(keys_of_config(node._get_root()))
        return _no_such_key(typed.group(1) if typed else str(key), keys, line)
    if "ValidationError" in (type(cause).__name__, kind):
        reason = str(cause or error).splitlines()[0]
        return f"The key '{key}' cannot take this value: {reason}."
    return _explain_composition(message, line)


@contextmanager
def explained(line: CommandLine) -> Iterator[None]:
    """Raises ValueError, in one sentence, for errors of Hydra that a user can cause."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        sentence = explain_hydra(error, line)
        if sentence is None:
            raise
        raise ValueError(sentence) from error


def check_overrides(line: CommandLine) -> None:
    """Raises ValueError for overrides that Hydra takes and nothing would read, or that give one value to a group of keys."""
    assert line.root is not None
    choices, groups = line.choices, line.choices.groups_of(line.root)
    for override in line.arguments.overrides:
        key, _, value = override.partition("=")
        if override.startswith("~") or "@" in key or key.lstrip("+").split(".")[0].split("/")[0] == "hydra":
            continue
        name = key.lstrip("+")
        if key.startswith("+"):
            _check_added(name, line)
        elif "." in name or name not in choices.files:
            _check_is_no_group(name, value, line, groups)


def _check_added(key: str, line: CommandLine) -> None:
    """Raises ValueError for a key that was added with a plus, and that nothing reads. A part that is built refuses by itself
    what it does not know; of others, what is used stands in a `${...}` somewhere."""
    assert line.root is not None
    choices = line.choices
    first, *rest = key.split(".")
    if first.split("/")[0] == EXPERIMENT or _is_read(key, line):
        return
    known = [*choices.keys_of_root(line.root), *choices.groups_of(line.root)]
    if first not in known:
        raise ValueError(_no_such_key(key, line.known_keys(), line))
    if first != "data" or not rest:
        return
    if rest[0] == "sources":
        if len(rest) > 2 and rest[2] not in SOURCE_KEYS:
            raise ValueError(
                f"There is no key '{key}': a source has {', '.join(SOURCE_KEYS[:-1])} and {SOURCE_KEYS[-1]}"
                f"{did_you_mean([f'data.sources.{rest[1]}.{near}' for near in nearest_keys(rest[2], SOURCE_KEYS)])}"
            )
    elif key not in line.known_keys():
        raise ValueError(_no_such_key(key, line.known_keys(), line))


def _is_read(key: str, line: CommandLine) -> bool:
    """Whether a key, or one above it, stands in a `${...}` of the chosen options, of a user's files or of the command line."""
    choices, chosen = line.choices, line.chosen()
    own = [path for group in choices.files.values() for path in group.values() if choices.folders[0] not in path.parents]
    paths = [choices.files[group][name] for group, name in chosen.items() if name in choices.files[group]]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (*own, *paths)]
    parts = key.split(".")
    names = [re.escape(".".join(parts[: count + 1])) for count in range(0 if parts[0] != "data" else 1, len(parts))]
    pattern = re.compile(rf"\$\{{(oc\.select:)?({'|'.join(names)})[,}}.\[]")
    return any(pattern.search(text) for text in (*texts, *line.arguments.overrides))


def _check_is_no_group(key: str, value: str, line: CommandLine, groups: dict[str, str]) -> None:
    """Raises ValueError where one value is given to what has keys of its own, such as trainer.sharding=fsdp."""
    assert line.root is not None
    if value[:1] in ("{", "$") or value in ("", "null") or value.startswith("'${"):
        return
    choices = line.choices
    last = key.rsplit(".", 1)[-1]
    if "." in key and last in groups and set(value.split(",")) <= choices.files[last].keys():
        raise ValueError(f"The group '{last}' is chosen by its own name; did you mean '{last}={value}'?")
    first = key.split(".")[0]
    own = [choices.keys_of(first, option) for option in choices.files[first]] if first in groups else [_root_keys(line)]
    below = [name for keys in own if keys.get(key) for name in keys if name.startswith(f"{key}.")]
    if below:
        below = list(dict.fromkeys(name for name in below if "." not in name.removeprefix(f"{key}.")))
        raise ValueError(f"'{key}' is a group of keys: set {_either(below)}.")


def _root_keys(line: CommandLine) -> dict[str, bool]:
    """The keys of the root's file, with whether each has keys below it."""
    assert line.root is not None
    keys = line.choices.keys_of_root(line.root)
    return {key: any(other.startswith(f"{key}.") for other in keys) for key in keys}


def _adds_names(key: str, line: CommandLine) -> bool:
    """Whether a key that is there was given names that it has not (trainer.weights={text:2}): Hydra takes them one by one."""
    given = next((value for name, _, value in (one.partition("=") for one in line.arguments.overrides) if name == key), "")
    return given.startswith("{") and bool(line.choices.options_with(key.split(".")[0], key))


def _no_such_key(key: str, keys: Iterable[str], line: CommandLine) -> str:
    """That there is no such key, and what was meant: an option of a group, a key of another option, or the nearest key."""
    missing = f"There is no key '{key}' in the configuration"
    if option := _meant_option(key, line):
        return f"{missing}; did you mean '{option}'?"
    group = key.split(".")[0]
    if _adds_names(key, line):
        return f"'{key}' has other names: add one by +{key}.NAME=VALUE, and take one out by ~{key}.NAME."
    chosen = line.chosen().get(group)
    if chosen is not None and (options := line.choices.options_with(group, key)):
        return f"There is no key '{key}' with {group}={chosen}, only with {group}={_either(options)}."
    near = [name for name in nearest_keys(key, [*keys, *line.known_keys()]) if name != key]
    if not near and chosen is not None:
        near = nearest_keys(key, (name for option in line.choices.files[group] for name in line.choices.keys_of(group, option)))
        others = [f"{name} (of {group}={_either(line.choices.options_with(group, name))})" for name in near[:1]]
        return f"{missing}; did you mean {others[0]}?" if others else f"{missing}."
    return missing + did_you_mean(near)


def _meant_option(key: str, line: CommandLine) -> str | None:
    """What chooses the option that stands after a key, where that is no key of ours: data=jsonl for dataset=jsonl."""
    values = line.overrides.get(key, "").split(",")
    if "." in key or not values[0]:
        return None
    choices = line.choices
    groups = [*(choices.groups_of(line.root) if line.root else choices.files), EXPERIMENT]
    having = {group: likeness(key, group) for group in groups if set(values) <= choices.files.get(group, {}).keys()}
    near = [group for group, score in having.items() if score >= NEAR or len(having) == 1]
    if not near:
        return None
    group = max(near, key=having.__getitem__)
    return f"{'+' * (group == EXPERIMENT)}{group}={','.join(values)}"


def _explain_missing_option(error: Any, line: CommandLine) -> str:
    """An option that is not there: those that may be meant, in its group wherever they lie, and in other groups."""
    missing = str(error.missing_cfg_file or "")
    found = re.search(r"'([^']+)'\s*$", str(error).split("\n")[0])
    group, _, name = (missing or (found.group(1) if found else "")).partition("/")
    plus = "+" * (group == EXPERIMENT)
    choices = line.choices
    options = [*choices.files.get(group, {}), *(str(option) for option in error.options or ())]
    if not name:
        return f"There is no configuration '{group}'{did_you_mean(nearest_options(group, choices.root_files))}"
    inside = [option for option in options if option.startswith(f"{name}/")]
    sentence = f"There is no option '{name}' of the group '{group}'"
    if inside:
        return f"{sentence}: it is a folder of {_listed([f'{plus}{group}={option}' for option in inside])}."
    if near := nearest_options(name, _of_command(group, options, line) or options):
        return sentence + did_you_mean([f"{plus}{group}={option}" for option in near])
    others = line.choices.groups_of(line.root) if line.root else {}
    if elsewhere := [f"{other}={name}" for other in others if name in choices.files[other]]:
        return sentence + did_you_mean(elsewhere)
    return f"{sentence}: there is {_listed(list(dict.fromkeys(options)))}." if options else f"{sentence}."


def _of_command(group: str, options: list[str], line: CommandLine) -> list[str]:
    """Those options that the command at hand can use: experiments say for which command they are."""
    if group != EXPERIMENT or line.root is None:
        return options
    files = line.choices.files.get(group, {})
    return [name for name in options if name in files and command_of(name, line.choices) in (None, command_name(line.root))]


def command_of(experiment: str, choices: Choices) -> str | None:
    """The command that an experiment is for, as the comment at the top of its file says; None: it does not."""
    text = choices.files[EXPERIMENT][experiment].read_text(encoding="utf-8")
    found = re.search(r"^# For `unimm ([\w-]+)`", text, re.MULTILINE)
    return found.group(1) if found else None


def _explain_composition(message: str, line: CommandLine) -> str:
    """Errors of Hydra that only their text tells apart."""
    choices = line.choices
    if found := re.search(r"In 'experiment/([^']+)': Could not override '([^']+)'\. No match in the defaults list", message):
        name, group = found.groups()
        command = command_of(name, choices) if name in choices.files.get(EXPERIMENT, {}) else None
        meant = f" is for `unimm {command}`" if command else f" chooses '{group}'"
        return f"The experiment '{name}'{meant}: {_has_no_group(group, line)}"
    if found := re.search(r"Could not override '([^']+)'\. No match in the defaults list", message):
        group, value = found.group(1), line.overrides.get(found.group(1), "NAME")
        if group == EXPERIMENT:
            options = list(choices.files.get(EXPERIMENT, {}))
            near = [value] if value in options else nearest_options(value, options)
            return f"An experiment is added with a plus{did_you_mean([f'+{EXPERIMENT}={one}' for one in near])}"
        return _capital(_has_no_group(group, line))
    if found := re.search(r"Multiple values for (\S+)\.", message):
        group = found.group(1)
        return f"The group '{group}' has an option already, to be replaced without a plus: {group}={line.overrides.get(group)}."
    if found := re.search(r"Could not delete from config\. '([^']+)' does not exist", message):
        near = [f"~{name}" for name in nearest_keys(found.group(1), line.known_keys())]
        return f"There is no key '{found.group(1)}' to leave out{did_you_mean(near)}"
    if found := re.search(r"An item is already at '([^']+)'", message):
        return f"The key '{found.group(1)}' is there already: leave out the plus before it."
    return " ".join(message.split())


def _has_no_group(group: str, line: CommandLine) -> str:
    if line.root is None:
        return f"there is no group '{group}' here."
    groups = list(line.choices.groups_of(line.root))
    return f"`unimm {command_name(line.root)}` has no group '{group}', only {_listed(groups)}."


def _explain_missing_value(error: Any, key: str) -> str:
    """A value that only the user knows."""
    found = re.search(r"missing value: '([^']+)'|Missing mandatory value: (\S+)", str(error))
    name = next((one for one in (found.groups() if found else ()) if one), key)
    return f"The key '{name}' has no value yet: add {name}=..."


def _explain_instantiation(message: str, cause: BaseException | None, line: CommandLine) -> str | None:
    found = re.search(r"full_key: (\S+)", message)
    key = found.group(1) if found else "the configuration"
    if unknown := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(cause)):
        name = f"{key}.{unknown.group(2)}"
        near = [one for one in nearest_keys(name, line.known_keys()) if one != name]
        return f"There is no key '{name}': {unknown.group(1)} does not know it{did_you_mean(near)}"
    if isinstance(cause, ValueError | OSError | TypeError):
        return f"{key}: {' '.join(str(cause).split())}"
    if isinstance(cause, ImportError | AttributeError) or (cause is None and "Error locating" in message):
        return f"{key}: {' '.join(message.splitlines()[0].split())}"
    return None


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
