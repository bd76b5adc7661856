"""A figure says of which version it is, also on a machine where nothing can be installed."""

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import unimm
import unimm.runtime.version as version_module


def test_a_checkout_that_was_never_installed_has_a_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version_module, "version", missing)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", unimm.__version__)
    monkeypatch.setattr(version_module, "PROJECT", tmp_path / "pyproject.toml")
    with pytest.raises(PackageNotFoundError, match="unimm"):
        version_module.package_version()
