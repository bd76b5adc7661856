"""The version of this package, for what we write: kept here so that no layer has to import the package's top for it."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def package_version() -> str:
    """Of the installed distribution, such as "0.1.0"; of a checkout that was never installed, what its pyproject.toml says.

    Raises:
        PackageNotFoundError: it is neither.
    """
    try:
        return version("unimm")
    except PackageNotFoundError:  # a machine on which nothing can be installed, such as one that is lent for minutes
        if not PROJECT.is_file():
            raise
        return tomllib.loads(PROJECT.read_text("utf-8"))["project"]["version"]
