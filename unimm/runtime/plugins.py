"""Code of other packages, named by import path (`_target_: package.module.Name`), and which of it may be imported.

Importing a module runs it, and a model folder may come from anybody. What a folder's config.json names is imported only where

- it is part of unimm,
- its package was installed as a plug-in of unimm (entry-point group `unimm.plugins`),
- the user has named the package in this process, as a `_target_` of a configuration or a task on the command line (`trust`), or
- the user has allowed it: `unimm.load(..., allow_code=True)`, `--allow-code`, or UNIMM_ALLOW_CODE=1.
"""

import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

GROUP = "unimm.plugins"
"""Entry points of this group name packages whose parts may be imported when a folder names them."""

ALLOW_CODE = "UNIMM_ALLOW_CODE"
TARGET = "_target_"

_trusted: set[str] = {"unimm"}


def trust(paths: Iterable[str]) -> None:
    """Let folders name parts of these import paths' packages from now on: the user has named them here.

    They may lie in the folder that the command runs in: it is searched last, so that it hides nothing that is installed.
    """
    packages = {path.partition(".")[0] for path in paths}
    if packages - _trusted:
        _search_here()
    _trusted.update(packages)


def _search_here() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def take_allow_code(arguments: Iterable[str]) -> list[str]:
    """The arguments of a command line without `--allow-code`; where it is among them, code is allowed from now on, here and in
    the processes that this one starts, and looked for as `trust` says."""
    arguments = list(arguments)
    if "--allow-code" in arguments:
        os.environ[ALLOW_CODE] = "1"
        _search_here()
    return [argument for argument in arguments if argument != "--allow-code"]


def code_is_allowed(package: str, allow_code: bool = False) -> bool:
    """Whether a top-level package may be imported because a folder names it.

    Raises:
        ValueError: UNIMM_ALLOW_CODE is neither 0 nor 1.
    """
    value = os.environ.get(ALLOW_CODE, "0")
    if value not in ("0", "1", ""):
        raise ValueError(f"{ALLOW_CODE}={value} is unknown: use 1, or leave it out.")
    return allow_code or value == "1" or package in _trusted or package in _registered()


def import_target(path: str, where: str, allow_code: bool = False) -> Any:
    """What an import path names: a class or function.

    where: the file that names it, for the error.

    Raises:
        ValueError: its package is neither ours, registered, nor allowed, or is not installed, or has no such name.
    """
    package = path.partition(".")[0]
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"{where} names '{path}', which is no import path: it has the form package.module.Name.")
    if not code_is_allowed(package, allow_code):
        raise ValueError(
            f"{where} needs code of the package '{package}' ({path}), which unimm runs only if you allow it: if you trust it, "
            f"add --allow-code, pass allow_code=True, or set {ALLOW_CODE}=1."
        )
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{where} needs {path}, which cannot be imported: {error}; install what it needs.") from error
        raise ValueError(
            f"{where} needs {path}, and there is no module '{error.name}': install the package '{package}' in this environment "
            f"(or add its folder to PYTHONPATH)."
        ) from error
    if not hasattr(found, name):
        raise ValueError(f"{where} needs {path}, and {module} has no '{name}': install the version that has it.")
    return getattr(found, name)


@cache
def _registered() -> frozenset[str]:
    """Top-level packages behind the entry points of the group."""
    return frozenset(point.module.partition(".")[0] for point in entry_points(group=GROUP))
