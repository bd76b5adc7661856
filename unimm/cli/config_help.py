"""`--help` of the commands that are configured: groups with what each option is, recipes, and all keys with their values."""

from unimm.cli.choices import EXPERIMENT, RECIPES, Choices, command_name
from unimm.cli.hydra_errors import command_of

WIDTH = 18
"""Columns for the name of an option."""

ABOUT = 100
"""Characters of what an option is."""

CHECKS = (
    "",
    "--check says what a training will take, and does nothing: memory a GPU, time, disk, whether data and codes fit together.",
    "It takes --gpus N --gpu NAME (such as H100) --mfu SHARE (0.4) --json, and ends with 1 where something does not fit.",
)
"""What only `unimm train` has."""


def help_template(root: str, choices: Choices, command: str | None = None) -> str:
    """The text that Hydra prints for --help, in which it puts the configuration for $CONFIG.

    command: what is called; default: the one that the root is named after."""
    usage, command = command, command_name(root)
    files = choices.files
    lines = [
        f"Usage: unimm {usage or command} [GROUP=OPTION | KEY=VALUE]...",
        "",
        "Groups are replaced as a whole, keys one by one; experiments set several of both: +experiment=NAME.",
        "With --multirun, values with commas are swept over; --cfg job prints the keys alone.",
        f"Configurations are in {choices.folders[0]}; your own, with the same folders, are found by --config-dir FOLDER.",
        *choices.examples_of(root),
        *(CHECKS if (usage or command) == "train" else ()),
    ]
    for group, default in choices.groups_of(root).items():
        lines += ["", f"{group}={default} is the default of:", *_options(group, _listed(group, choices), choices)]
    experiments = [name for name in files.get(EXPERIMENT, {}) if command_of(name, choices) in (None, command)]
    if experiments:
        shown = [name for name in _listed(EXPERIMENT, choices) if name in experiments]
        lines += ["", "+experiment=NAME, with NAME one of:", *_options(EXPERIMENT, shown, choices)]
    lines += _recipes(root, experiments, choices)
    lines += ["", "Keys, as these arguments set them:", ""]
    return "\n".join(line.replace("$", "$$") for line in lines) + "\n$CONFIG"


def _listed(group: str, choices: Choices) -> list[str]:
    """The options of a group but those of recipes, which the recipes name."""
    return [name for name in choices.files[group] if not _is_of_recipe(group, name)]


def _is_of_recipe(group: str, name: str) -> bool:
    return name.partition("/")[0] in RECIPES.get(group, ()) and "/" in name


def _options(group: str, names: list[str], choices: Choices) -> list[str]:
    lines = []
    for name in names:
        about = choices.about(group, name)
        if group == EXPERIMENT:
            about = about.removeprefix(f"For `unimm {command_of(name, choices)}`: ")
        about = about if len(about) <= ABOUT else f"{about[: ABOUT - 3].rsplit(' ', 1)[0]}..."
        lines.append(f"  {name:{WIDTH}} {about}")
    return lines


def _recipes(root: str, experiments: list[str], choices: Choices) -> list[str]:
    """Where the configurations of recipes are, a line each folder."""
    names = {group: list(choices.files[group]) for group in choices.groups_of(root)} | {EXPERIMENT: experiments}
    folders = []
    for group, options in names.items():
        for folder in RECIPES.get(group, ()):
            inside = [name.removeprefix(f"{folder}/") for name in options if name.startswith(f"{folder}/")]
            if inside:
                folders.append(f"  {'+' * (group == EXPERIMENT)}{group}={folder}/... {', '.join(inside)}")
    return ["", "Of the recipes (recipes/*.md say how they are used):", *folders] if folders else []
