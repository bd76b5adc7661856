"""Evaluation tasks of other packages, by name: "pkg.module:Task", or "pkg.module:Task?n=100&split=test" with arguments.

What is named is a class or a function that makes a task, called with the arguments, or a task itself. Values are read as JSON
(100, 0.5, true, null, ["a", "b"]), and are plain text where they are none; `%26` stands for an `&` in them. Modules are looked
for among the installed packages, then in the folder that the command runs in.
"""

import difflib
import inspect
import json
import re
from importlib import import_module
from typing import Any
from urllib.parse import unquote

from unimm.eval.task import Task
from unimm.runtime.plugins import trust

PARTS = ("name", "num_items", "run")
"""What a task has (`unimm.eval.Task`)."""


def is_outside(name: str) -> bool:
    """Whether a name is that of a task of another package."""
    return ":" in name


def load_outside_task(name: str) -> Task:
    """The task of a name; its argument `n` is the number of items, where the class calls it num_items.

    Raises:
        ValueError: the module cannot be imported, has no such thing, does not take the arguments, or gives no task.
    """
    place, _, query = name.partition("?")
    made = find_outside(place, "task")
    arguments = read_arguments(query, name)
    if isinstance(made, type) or (callable(made) and not hasattr(made, "run")):
        arguments = _with_num_items(made, arguments)
        _check_arguments(made, arguments, place)
        made = made(**arguments)
    elif arguments:
        raise ValueError(f"'{place}' is no class or function, so it takes no arguments: leave '?{query}' out.")
    return check_task(made, f"'{place}'")


def check_task(task: Any, what: str) -> Task:
    """The task as it is.

    Args:
        what: how messages name it.

    Raises:
        ValueError: it is no task, or has a name that no file can have.
    """
    if isinstance(task, type):
        raise ValueError(f"{what} is a class: evaluate an object of it, such as {task.__name__}().")
    if missing := [part for part in PARTS if not hasattr(task, part)]:
        raise ValueError(
            f"{what} is no task: it is of type {type(task).__name__}, without {' and '.join(missing)}. "
            f"A task has name, num_items and run(engine, progress) -> unimm.eval.Result."
        )
    if not isinstance(task.name, str) or not re.fullmatch(r"[\w.-]+", task.name):
        raise ValueError(f"The name of {what} names files, too: use letters, digits, '_', '-' and '.', not {task.name!r}.")
    return task


def find_outside(place: str, what: str) -> Any:
    """What "pkg.module:name" names, in a package of others or the folder that the command runs in. what: how messages call it.

    Raises:
        ValueError: the module cannot be imported, or has no such thing.
    """
    module_name, _, attribute = place.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"'{place}' names no {what}: write pkg.module:{what.capitalize()}.")
    trust([module_name])
    try:
        found: Any = import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"The {what} '{place}' cannot be imported ({error}): install its package, or run this in the folder that holds it."
        ) from error
    for step in attribute.split("."):
        if not hasattr(found, step):
            close = difflib.get_close_matches(step, [name for name in dir(found) if not name.startswith("_")], 1)
            raise ValueError(f"'{module_name}' has no '{attribute}'{f': did you mean {close[0]!r}?' if close else '.'}")
        found = getattr(found, step)
    return found


def read_arguments(query: str, name: str) -> dict[str, Any]:
    """The arguments behind the question mark of a name. ValueError: they cannot be read."""
    arguments = {}
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"Cannot read '{pair}' in '{name}': arguments are written as pkg.module:Task?n=100&split=test.")
        arguments[key] = _read_value(unquote(value))
    return arguments


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _with_num_items(made: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with n by its long name where only that one is taken."""
    try:
        taken = inspect.signature(made).parameters
    except ValueError:  # written in C, some without a signature
        return arguments
    is_short = "n" in arguments and "n" not in taken and "num_items" in taken
    return {"num_items" if is_short and key == "n" else key: value for key, value in arguments.items()}


def _check_arguments(made: Any, arguments: dict[str, Any], place: str) -> None:
    try:
        signature = inspect.signature(made)
    except ValueError:  # written in C, some without a signature: the call itself shows
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"'{place}' does not take these arguments ({error}): it takes {signature}.") from error
    for key, value in arguments.items():
        default = signature.parameters[key].default if key in signature.parameters else None
        if isinstance(default, bool) and not isinstance(value, bool):  # any text would count as true
            raise ValueError(f"{key} is true or false, not {value}.")
