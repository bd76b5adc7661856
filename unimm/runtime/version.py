"""The version of this package, for what we write: kept here so that no layer has to import the package's top for it."""

from importlib.metadata import version


def package_version() -> str:
    """Of the installed distribution, such as "0.1.0"."""
    return version("unimm")
