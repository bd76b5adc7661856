"""The law of the house, checked: lint, format, types, layers, sizes of files, a first paragraph in every module."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "unimm").rglob("*.py"))
MAX_LINES = 350


def run(*words: str) -> None:
    """Run a tool of this environment at the top of the checkout; what it says is the failure."""
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    if result.returncode:
        pytest.fail(f"{' '.join(words)}\n{result.stdout}{result.stderr}", pytrace=False)


def test_lint() -> None:
    run("ruff", "check", ".")


def test_format() -> None:
    run("ruff", "format", "--check", ".")


def test_types() -> None:
    run("pyright")


def test_names_of_transformers_are_where_the_stub_has_them() -> None:
    """So that types are checked against what is imported when it runs."""
    stub = (ROOT / "tests/stubs/transformers/__init__.pyi").read_text(encoding="utf-8")
    found = re.findall(r"^from (\S+) import (\w+) as (\w+)$", stub, re.MULTILINE)
    assert len(found) == len([line for line in stub.splitlines() if not line.startswith("#")])
    for module, name, shown in found:
        assert name == shown and getattr(importlib.import_module(module), name) is getattr(transformers, name), name


def test_imports_flow_one_way() -> None:
    run("lint-imports")


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in MODULES])
def test_a_module_is_short_and_says_its_idea(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES, f"more than {MAX_LINES} lines: split it"
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "the first paragraph says the idea of the file"


def test_every_public_function_and_class_of_the_door_has_a_docstring() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in MODULES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not missing
