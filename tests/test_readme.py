"""Documents are executed: the README's example and shell lines run with a tiny model, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.inference.engine import Engine
from unimm.inference.rows import Request

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "recipes").glob("*.md")])
RUNNABLE = ("caption", "answer", "generate")
"""Verbs that take no longer with a tiny model than a test may."""


def fenced(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def shell_lines(*first_words: str) -> list[str]:
    """The shell lines of all documents that begin with these words."""
    lines = [line for document in DOCUMENTS for block in fenced(document, "bash") for line in block.splitlines()]
    return [line for line in lines if line.split()[: len(first_words)] == list(first_words)]


@pytest.fixture
def workplace(tiny_folder: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a newcomer has it after the quickstart, with a photo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_MODEL", raising=False)
    Path("runs/quickstart").mkdir(parents=True)
    Path("runs/quickstart/model").symlink_to(tiny_folder)
    Path("models").mkdir()
    Path("models/janus-pro-1b").symlink_to(tiny_folder)
    picture.save("photo.png")
    return tmp_path


def test_the_two_commands_stand_there_as_newcomers_look_for_them() -> None:
    lines = [line for block in fenced(ROOT / "README.md", "bash") for line in block.splitlines()]
    assert next(line for line in lines if "unimm quickstart" in line) == "pip install -e . && unimm quickstart"
    assert next(line for line in lines if "pytest" in line) == 'pip install -e ".[test]" && pytest'


def test_the_python_example_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = fenced(ROOT / "README.md", "python")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    exec(compile(example, "README.md", "exec"), {})
    assert Image.open(workplace / "drawing.png").size == (64, 64)
    assert capsys.readouterr().out.count("\n") >= 2


def test_the_streaming_example_runs(workplace: Path, tiny_engine: Engine) -> None:
    names: dict = {"engine": tiny_engine}
    exec(compile(fenced(ROOT / "README.md", "python")[1], "README.md", "exec"), names)
    assert names["progress"].is_final and Image.open(workplace / "preview.png").size == (16, 16)
    assert names["completion"].finish_reason in ("stop", "length")


def test_the_loop_example_runs(tiny_engine: Engine) -> None:
    example = fenced(ROOT / "README.md", "python")[2]
    names = {"engine": tiny_engine, "request": Request(tiny_engine.template.draw("a", num_codes=4))}
    exec(compile(example, "README.md", "exec"), names)
    assert len(names["ids"]) == 1 and not names["done"]
    tiny_engine.decoder.abort(names["ticket"])
    assert tiny_engine.decoder.stats().num_rows == 0


@pytest.mark.parametrize("line", [line for verb in RUNNABLE for line in shell_lines("unimm", verb)])
def test_shell_lines_run(line: str, workplace: Path) -> None:
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


def test_every_verb_is_one(workplace: Path) -> None:
    verbs = {line.split()[1] for line in shell_lines("unimm")}
    assert verbs >= {*RUNNABLE, "eval", "train", "quickstart"}
    for verb in verbs:
        assert f"  {verb} " in CliRunner().invoke(app, ["--help"]).output


def test_launchers_take_the_words_of_the_verb() -> None:
    launched = shell_lines("accelerate", "launch") + shell_lines("torchrun")
    assert len(launched) >= 2
    for line in launched:
        assert " -m unimm.train " in line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_the_file_map_names_every_part_of_the_package() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in sorted(path for path in (ROOT / "unimm").iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"(unimm/{part.name})" in text, part.name
