"""The arguments of a command that Hydra reads: its options, and overrides `key=value`, whose paths may be written as people
write them.

Hydra's grammar gives a meaning to `=`, `(`, `,`, `[`, `{`, `~` and `:`, and knows no letters but ASCII. Each value is shown to
its parser. What that can read keeps the meaning that Hydra's documentation gives it: numbers, null, lists, dicts, quotes,
escapes, `${...}`, and sweeps with --multirun. What it cannot read is taken as it is typed, put in quotes for Hydra; also inside
lists, dicts and sweeps. A leading `~/` becomes the home folder, which shells do only at the beginning of an argument. A list or
dict that does not end stays as it is: a mistake that Hydra names.

Of keys that are known to be paths, a number and a comma are part of the name: `out=2024`, `codes=a,b`.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

VALUED_OPTIONS = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p", "--cfg", "-c"),
    *("--info", "-i", "--experimental-rerun"),
)
"""Options of Hydra that a value follows."""

FLAGS = (
    *("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"),
    *("--shell-completion", "-sc"),
)
"""Options of Hydra without a value."""

FUNCTIONS = ("int", "str", "bool", "float", "choice", "range", "interval", "tag", "sort", "shuffle", "glob")
"""What Hydra's grammar calls: another name before a parenthesis is part of a value."""

ONE_PATH = re.compile(
    r"(out|codes|features|image_tokenizer|latents_tokenizer|init_from|text_tokenizer|trainer\.plan"
    r"|(data|images)\.(.+\.)?(folder|validation_folder|root|cache|images|questions|annotations|refs|classes))"
)
"""Keys whose value is one path."""

PATHS = re.compile(r"data\.(.+\.)?(paths|captions|conversations|texts)")
"""Keys whose value is a path or a list of such."""

NAMES_OF_THINGS = re.compile(r"\+{0,2}(rollouts\.rewards)\.(.+)")
"""Keys below which any text is a key: `rollouts.rewards.clip_score:models/clip=1.0`. Hydra's keys have no colons, but those of
a dict in a value do."""

SPECIAL = r"[\\:,()\[\]{}= ]"
"""What Hydra reads in a key of a dict as itself behind a backslash."""

CLOSES = {"[": "]", "{": "}", "(": ")"}


class Arguments(NamedTuple):
    """Hydra's options with their values; its overrides; and what is neither, such as names of data sets."""

    options: list[str]
    overrides: list[str]
    names: list[str]

    @property
    def is_multirun(self) -> bool:
        """Whether values with commas are swept over."""
        flags = any(option == "-m" or (len(option) > 3 and "--multirun".startswith(option)) for option in self.options)
        return flags or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def has_own_sweep(self) -> bool:
        """Whether they choose where or how it is swept: other sweepers and launchers keep files of theirs there."""
        return any(one.lstrip("+").startswith(("hydra/", "hydra.sweep", "hydra.launcher")) for one in self.overrides)

    @property
    def asks_for_help(self) -> bool:
        """Whether the configuration is to be shown instead of used."""
        return any(option == "-h" or (len(option) > 4 and "--help".startswith(option)) for option in self.options)

    @property
    def config_dirs(self) -> list[str]:
        """The folders of a user's own configurations."""
        found = []
        for place, option in enumerate(self.options):
            name, has_value, value = option.partition("=")
            if name == "-cd" or (name.startswith("--config-d") and "--config-dir".startswith(name)):
                found += [value] if has_value else self.options[place + 1 : place + 2]
        return found

    def for_hydra(self) -> list[str]:
        """The options, whose parser wants all else together, and the overrides in Hydra's grammar, which refuses names."""
        return [*self.options, *as_typed([*self.overrides, *self.names], self.is_multirun)]


def split_arguments(arguments: list[str]) -> Arguments:
    """What each argument of a command line is.

    Raises:
        ValueError: an option is none of Hydra's.
    """
    found = Arguments([], [], [])
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-") or argument == "-":
            (found.overrides if "=" in argument or argument.startswith("~") else found.names).append(argument)
            continue
        name, has_value, value = argument.partition("=")
        if not _is_option(name):
            raise ValueError(f"Unknown option {name}: settings are written key=value, and --help lists them.")
        found.options.append(f"{name}={os.path.expanduser(value)}" if has_value else argument)  # noqa: PTH111 - not a path
        if not has_value and _takes_value(name):
            found.options.extend(os.path.expanduser(value) for value in [next(rest, None)] if value is not None)  # noqa: PTH111
    return found


def as_typed(overrides: list[str], is_multirun: bool = False) -> list[str]:
    """Overrides in Hydra's grammar, with what it cannot read in quotes. Doing it twice changes nothing."""
    return [_override(override, is_multirun) for override in overrides]


def quote(text: str) -> str:
    """A value that Hydra reads as this text; `${...}` in it is still resolved."""
    return QuotedString(text, Quote.single).with_quotes()


def _is_option(name: str) -> bool:
    """Whether Hydra's argparse knows an option: in full, shortened, or a short one with its value behind it (-cjob)."""
    if name.startswith("--"):
        return len(name) > 2 and any(option.startswith(name) for option in (*VALUED_OPTIONS, *FLAGS))
    return name in FLAGS or any(name.startswith(option) for option in VALUED_OPTIONS if not option.startswith("--"))


def _takes_value(name: str) -> bool:
    if name in FLAGS:
        return False
    return name in VALUED_OPTIONS or (name.startswith("--") and any(option.startswith(name) for option in VALUED_OPTIONS))


def _override(override: str, is_multirun: bool) -> str:
    key, has_value, value = override.partition("=")
    if has_value and _read(f"{key}=1") is None and (in_dict := _in_dict(override)) is not None:
        return in_dict
    if not has_value or _read(f"{key}=1") is None:  # a deletion; or a key that is none, which Hydra refuses
        return override
    name = key.lstrip("+")
    is_one = ONE_PATH.fullmatch(name) is not None
    is_path = is_one or PATHS.fullmatch(name) is not None
    is_sweep = is_multirun or not is_one
    return f"{key}={_value(value, is_path, is_sweep)}"


def _in_dict(override: str) -> str | None:
    """The setting of a key that may be any text, as a dict; None where it is none such."""
    name, _, value = override.replace("'", "").replace('"', "").rpartition("=")  # the name of a class may have arguments
    named = NAMES_OF_THINGS.fullmatch(name)
    if named is None:
        return None
    return f"++{named[1]}={{{re.sub(SPECIAL, lambda found: chr(92) + found[0], named[2])}:{value}}}"


def _value(text: str, is_path: bool, is_sweep: bool) -> str:
    """A value, or an element of one, in Hydra's grammar. is_sweep: commas part it."""
    if text.startswith("~"):
        text = os.path.expanduser(text)  # noqa: PTH111 - a Path would drop a slash at the end
    read = _read(f"key={text}")
    if read is not None and not is_path:
        return text
    if (container := _container(text)) is not None:
        inside = _inside(text, container, is_path, is_read=read is not None)
        # Hydra drops the quotes in choice(...) when it sweeps, and the same choices without the function are swept with them.
        return inside[len(container) : -1] if is_sweep and container.startswith("choice") and inside != text else inside
    if read is not None and not read.is_sweep_override():
        return text if _is_meant(text, read.value()) else quote(text)
    parts = _parts(text) if is_sweep else None
    if parts is not None and len(parts) > 1:
        return ",".join(_value(part, is_path, is_sweep=False) for part in parts)
    return text if read is None and _is_open(text) else quote(text)


def _inside(text: str, container: str, is_path: bool, is_read: bool) -> str:
    """A list, a dict or a call, with its elements in Hydra's grammar."""
    parts = _parts(text[len(container) : -1])
    if parts is None or (is_read and container[0] not in "[{" and not container.startswith("choice")):
        return text
    # A dict's values have keys, and a function's arguments may have names.
    named = {"{": r"[^:]*:\s*", "[": ""}.get(container, r"\s*([a-z]+=)?\s*")
    spelled = []
    for part in parts:
        found = re.match(named, part)
        name = "" if found is None else found.group()
        spelled.append(name + _value(part[len(name) :].strip(), is_path, is_sweep=False))
    return container + ",".join(spelled) + text[-1]


def _is_meant(text: str, value: Any) -> bool:
    """Whether Hydra's reading of what may be a path is what was meant by it: not the number 2024, nor less than was typed."""
    if isinstance(value, str):
        return value == text or text[:1] in "'\"" or "\\" in text
    return value is None or isinstance(value, bool)


def _container(text: str) -> str | None:
    """How a list, a dict or a call of one of Hydra's functions begins, where the text is one from its beginning to its end."""
    found = re.match(rf"(({'|'.join(FUNCTIONS)})\s*\(|\[|\{{)", text)
    if found is None:
        return None
    begin = found.group()
    return begin if _end_of(text, len(begin) - 1) == len(text) - 1 else None


def _is_open(text: str) -> bool:
    """Whether a list or dict begins with the text and does not end in it."""
    return text[:1] in ("[", "{") and _end_of(text, 0) is None


def _end_of(text: str, start: int) -> int | None:
    """Where the bracket that opens at `start` is closed."""
    depth = 0
    for place, sign in _signs(text, start):
        depth += (sign in CLOSES) - (sign in CLOSES.values())
        if depth == 0:
            return place
    return None


def _parts(text: str) -> list[str] | None:
    """The text between commas that stand in no brackets or quotes; None where brackets do not match."""
    depth, first, parts = 0, 0, []
    for place, sign in _signs(text, 0):
        depth += (sign in CLOSES) - (sign in CLOSES.values())
        if depth < 0:
            return None
        if sign == "," and depth == 0:
            parts.append(text[first:place])
            first = place + 1
    return None if depth else [*parts, text[first:]]


def _signs(text: str, start: int) -> Iterator[tuple[int, str]]:
    """Characters from `start` on with their places, without those that are escaped or in quotes: an apostrophe inside of a
    word opens none."""
    place = start
    while place < len(text):
        sign = text[place]
        if sign == "\\":
            place += 2
            continue
        if sign in "'\"" and re.search(r"(^|[,:(\[{])\s*$", text[:place]):
            quoted = re.compile(rf"{sign}(\\.|[^\\{sign}])*{sign}", re.DOTALL).match(text, place)
            place = place + 1 if quoted is None else quoted.end()
            continue
        yield place, sign
        place += 1


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _read(override: str) -> Any:
    """Hydra's reading of an override, or None where its grammar does not allow it."""
    try:
        return _parser().parse_override(override)
    except HydraException:
        return None
