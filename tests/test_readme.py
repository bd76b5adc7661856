"""Documents are executed: the README's example and shell lines run with a tiny model, its links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner
from users_files import make_all

from unimm.cli.app import app
from unimm.inference.decode.request import Request
from unimm.inference.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "recipes").glob("*.md")])
RUNNABLE = ("caption", "answer", "generate")
"""Verbs that take no longer with a tiny model than a test may."""


def fenced(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def fenced_lines(document: Path) -> list[str]:
    """The shell lines of a document."""
    return [line for block in fenced(document, "bash") for line in block.splitlines()]


def shell_lines(*first_words: str) -> list[str]:
    """The shell lines of all documents that begin with these words."""
    lines = [line for document in DOCUMENTS for line in fenced_lines(document)]
    return [line for line in lines if line.split()[: len(first_words)] == list(first_words)]


@pytest.fixture
def workplace(tiny_folder: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a newcomer has it after the quickstart, with a photo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_MODEL", raising=False)
    Path("runs/quickstart").mkdir(parents=True)
    Path("runs/quickstart/model").symlink_to(tiny_folder)
    Path("runs/photos").mkdir()
    Path("runs/photos/model").symlink_to(tiny_folder)
    Path("runs/life/finetune").mkdir(parents=True)
    Path("runs/life/finetune/model").symlink_to(tiny_folder)
    Path("models").mkdir()
    Path("models/janus-pro-1b").symlink_to(tiny_folder)
    Path("runs/demo").mkdir()
    picture.save("runs/demo/photo.png")
    return tmp_path


def test_the_two_commands_stand_there_as_newcomers_look_for_them() -> None:
    lines = fenced_lines(ROOT / "README.md")
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


LEARNING = [line for line in fenced_lines(ROOT / "recipes/your_own_data.md") if line.split()[1] in ("encode", "train")]
TINY_RUN = {
    "encode": ["device=cpu"],
    "train": [
        "device=cpu",
        "trainer.budget.max_steps=1",
        "trainer.compile=false",
        "trainer.precision='no'",
        "trainer.num_positions=256",
        "trainer.num_workers=0",
    ],
}


def test_a_users_own_data_is_learned_from(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the recipe, in its order, with a tiny model and one step."""
    make_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/janus-pro-1b").symlink_to(tiny_folder)
    assert len(LEARNING) == 10
    for line in LEARNING:
        words = shlex.split(line)[1:]
        result = CliRunner().invoke(app, [*words, *TINY_RUN[words[0]]])
        assert result.exit_code == 0, f"{line}\n{result.output}"
    for name in ("photos", "jsonl", "parquet", "webdataset", "llava", "text"):
        assert (tmp_path / "runs" / name / "model/config.json").is_file(), name
    assert json.loads(Path("runs/photos/codes/image_folder/manifest.json").read_text())["first_key"] == "a.png"


def test_a_janus_is_adapted(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the recipe of adapters, in its order, with a tiny model and one step."""
    make_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/janus-pro-1b").symlink_to(tiny_folder)
    recipe = ROOT / "recipes/lora.md"
    lines = fenced_lines(recipe)
    assert [line.split()[1] for line in lines] == ["encode", "train", "train", "convert"]
    for line in lines:
        words = shlex.split(line)[1:]
        result = CliRunner().invoke(app, [*words, *TINY_RUN.get(words[0], [])])
        assert result.exit_code == 0, f"{line}\n{result.output}"
    names: dict = {}
    for example in fenced(recipe, "python"):
        exec(compile(example, recipe.name, "exec"), names)
    assert Path("drawing.png").is_file() and type(names["model"]).__name__ == "PeftModel"


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
