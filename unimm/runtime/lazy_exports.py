"""Public names of a package, imported from their modules at first use.

YAML names classes by these short names (`_target_: unimm.data.JsonLines`), so that files may move without breaking a
configuration, and `import unimm.data` stays quick.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        homes: the module of each public name, below the package.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted(homes)


def public_name(kind: type) -> str:
    """How YAML names a class: by its package's short name where it is exported there, else by its module.

    Raises:
        ValueError: it cannot be imported by a name, such as a class inside a function.
    """
    if "<" in kind.__qualname__:
        raise ValueError(
            f"{kind.__qualname__} is defined inside a function: a configuration cannot name it. Move it to a module."
        )
    top = ".".join(kind.__module__.split(".")[:2])
    if kind.__module__.startswith("unimm.") and kind.__name__ in dir(import_module(top)):
        return f"{top}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"
