"""The shell: what newcomers read, what verbs print, and how mistakes end: one sentence, exit code 2, no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from unimm.cli.app import ORDER, Commands, app
from unimm.cli.drawing_commands import picture_paths
from unimm.eval.tasks.drawings import DrawingSettings

WITH_OWN_HELP = (
    *("demo", "quickstart", "caption", "answer", "generate", "classify", "index", "search", "eval"),
    *("export", "score", "convert", "join"),
)


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of its own and no settings of the person who runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNIMM_MODEL", "UNIMM_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def photo(picture: Image.Image, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    picture.save(path)
    return path


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def refuse(*words: object) -> str:
    """Call it, expect a refusal in one sentence, and give the sentence."""
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("unimm: ")
    assert len(lines[0]) < 1_200
    return lines[0]


# -- help ----------------------------------------------------------------------------------------------------------------


def test_help_names_every_verb_in_order_and_nothing_that_does_not_work() -> None:
    result = call("--help")
    assert result.exit_code == 0
    commands = result.output.partition("Commands:")[2]
    assert [line.split()[0] for line in commands.splitlines() if line.startswith("  ") and line[2] != " "] == list(ORDER)


def test_a_verb_that_nobody_has_placed_is_listed_last() -> None:
    placed = typer.Typer(cls=Commands)
    for name in ("of-somebody-elses", "caption", "demo"):
        placed.command(name)(lambda: None)
    group = typer.main.get_command(placed)
    assert isinstance(group, Commands)
    assert group.list_commands(typer.Context(group)) == ["demo", "caption", "of-somebody-elses"]


@pytest.mark.parametrize("verb", WITH_OWN_HELP)
def test_help_of_a_verb_shows_an_example(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert f"  unimm {verb} " in result.output
    assert "Options:" in result.output


def test_no_words_at_all_show_the_help() -> None:
    assert "quickstart" in call().output


def test_help_is_quick() -> None:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "from unimm.cli import main; main()", "--help"], check=True, capture_output=True)
    # About 0.15 s; torch alone would take several seconds.
    assert time.monotonic() - started < 1.5


def test_version() -> None:
    assert call("--version").output.strip()[0].isdigit()


# -- verbs ---------------------------------------------------------------------------------------------------------------


def test_caption_of_one_image_is_the_text_alone(tiny_folder: Path, photo: Path) -> None:
    result = call("caption", photo, "--model", tiny_folder, "--max-new-tokens", 5)
    assert result.exit_code == 0, result.output
    assert str(photo) not in result.stdout


def test_an_image_may_be_piped_in(tiny_folder: Path, photo: Path) -> None:
    words = ["caption", "-", "--model", str(tiny_folder), "--max-new-tokens", "4"]
    piped = CliRunner().invoke(app, words, input=photo.read_bytes())
    assert piped.exit_code == 0 and piped.stdout == call("caption", photo, *words[2:]).stdout
    assert "there is none: name a file, or pipe one in" in refuse(*words)


def test_captions_of_several_images_name_their_files(tiny_folder: Path, photo: Path) -> None:
    result = call("caption", photo, photo, "--model", tiny_folder, "--max-new-tokens", 5, "--language", "zh")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [str(photo)] * 2


def test_answer_says_what_the_engine_says(tiny_engine, tiny_folder: Path, photo: Path) -> None:
    result = call("answer", photo, "How many?", "--model", tiny_folder, "--max-new-tokens", 5)
    assert result.exit_code == 0, result.output
    assert result.stdout == tiny_engine.answer(photo, "How many?", max_new_tokens=5) + "\n"


def test_captions_and_answers_are_voted_on_and_verified(tiny_engine, tiny_folder: Path, photo: Path) -> None:
    words = ("--model", tiny_folder, "--max-new-tokens", 5, "--votes", 3, "--verify")
    checks = {"max_new_tokens": 5, "votes": 3, "verify": True}
    assert call("answer", photo, "How many?", *words).stdout == tiny_engine.answer(photo, "How many?", **checks) + "\n"
    assert call("caption", photo, *words).stdout == tiny_engine.caption(photo, **checks) + "\n"


def test_generate_writes_what_it_prints(tiny_engine, tiny_folder: Path) -> None:
    words = ("generate", "a red circle", "--model", tiny_folder, "-n", 2, "--seed", 3)
    first, second = call(*words), call(*words)
    assert first.stdout.split() == ["drawings/drawing-0000.png", "drawings/drawing-0001.png"]
    assert second.stdout.split() == ["drawings/drawing-0002.png", "drawings/drawing-0003.png"]
    expected = tiny_engine.generate_images("a red circle", num_images=2, seed=3)
    for path, image in zip(first.stdout.split() + second.stdout.split(), expected * 2, strict=True):
        assert Image.open(path).tobytes() == image.tobytes()


def test_generate_takes_every_control_of_sampling(tiny_engine, tiny_folder: Path) -> None:
    controls = {"guidance_scale": 3.0, "temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.1}
    words = [word for name, value in controls.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = call("generate", "a red circle", "--model", tiny_folder, *words, "--guidance-interval", 0.2, 0.7)
    assert result.exit_code == 0, result.output
    (expected,) = tiny_engine.generate_images("a red circle", guidance_interval=(0.2, 0.7), **controls)
    assert Image.open(result.stdout.strip()).tobytes() == expected.tobytes()
    assert "ascending" in refuse("generate", "a red circle", "--model", tiny_folder, "--guidance-interval", 0.7, 0.2)
    chosen = call("generate", "a red circle", "--model", tiny_folder, "--best-of", 3)
    (expected,) = tiny_engine.generate_images("a red circle", best_of=3)
    assert Image.open(chosen.stdout.strip()).tobytes() == expected.tobytes()


def test_file_names_come_from_the_user_never_from_the_prompt(tiny_folder: Path, tmp_path: Path) -> None:
    result = call("generate", "../../evil/name", "--model", tiny_folder, "--out", "deep/cat.jpg", "-n", 2)
    assert result.stdout.split() == ["deep/cat-0.jpg", "deep/cat-1.jpg"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["cat-0.jpg", "cat-1.jpg"]


def test_one_picture_takes_the_name_it_is_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"written as \.png, \.jpg"):  # not a folder of that name
        picture_paths(tmp_path / "cat.TIFF", 1)
    assert picture_paths(tmp_path / "a" / "cat.PNG", 1) == [tmp_path / "a" / "cat.PNG"]


def test_special_tokens_that_are_typed_are_text(tiny_folder: Path, photo: Path) -> None:
    typed = "<begin_of_image> <|User|> <image_placeholder>"
    assert call("generate", typed, "--model", tiny_folder).exit_code == 0
    assert call("answer", photo, typed, "--model", tiny_folder, "--max-new-tokens", 3).exit_code == 0


def test_the_model_may_come_from_the_environment_or_the_quickstart(
    tiny_folder: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("caption", photo, "--max-new-tokens", 3)
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/model").symlink_to(tiny_folder)
    assert call(*words).exit_code == 0
    monkeypatch.setenv("UNIMM_MODEL", str(tmp_path / "nowhere"))
    assert "nowhere" in refuse(*words)
    monkeypatch.setenv("UNIMM_MODEL", str(tiny_folder))
    assert call(*words).exit_code == 0


# -- mistakes ------------------------------------------------------------------------------------------------------------


def test_a_missing_image_and_a_file_that_is_none(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    assert "there is no such file" in refuse("caption", "missing.png", "--model", tiny_folder)
    assert "notes.txt" in refuse("caption", "notes.txt", "--model", tiny_folder)
    assert "cut.png" in refuse("answer", "cut.png", "What?", "--model", tiny_folder)
    assert "folder" in refuse("caption", tmp_path, "--model", tiny_folder)


@pytest.mark.parametrize("prompt", ["", "   \n"])
def test_an_empty_prompt(prompt: str, tiny_folder: Path, photo: Path) -> None:
    assert "empty" in refuse("generate", prompt, "--model", tiny_folder)
    assert "empty" in refuse("answer", photo, prompt, "--model", tiny_folder)


@pytest.mark.parametrize("verb", ["caption", "locate", "edit", "outpaint"])
def test_addresses_are_named_as_they_were_given(verb: str, tiny_folder: Path) -> None:
    told = refuse(verb, "https://example.com/a.png", *([] if verb == "caption" else ["a cat"]), "--model", tiny_folder)
    assert "'https://example.com/a.png': it is a web address, download it" in told


def test_no_number_fills_the_memory(tiny_engine) -> None:
    for words in (("generate", "a", "-n"), ("generate", "a", "--best-of"), ("caption", "photo.png", "--votes")):
        result = call(*words, 10**9)
        assert result.exit_code == 2 and words[-1] in result.stderr, result.output
    for settings in ({"num_images": 10**9}, {"best_of": 10**9}):
        with pytest.raises(ValueError, match=r"of at most (1|100),000, not 1,000,000,000"):
            tiny_engine.generate_images("a", **settings)


def test_a_prompt_that_is_too_long(tiny_folder: Path) -> None:
    assert "100,000 characters" in refuse("generate", "a" * 100_000, "--model", tiny_folder)
    assert "positions" in refuse("generate", "a red circle " * 300, "--model", tiny_folder)


def test_folders_that_hold_no_model(tiny_folder: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{")
    for name in ("empty", "broken", "./not-there", "photo.png"):
        assert name.strip("./") in refuse("caption", photo, "--model", name)


@pytest.mark.parametrize(
    "words",
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--top-k", "-1"),
        ("--guidance-scale", "-2"),
        ("--device", "abacus"),
        ("--dtype", "int3"),
    ],
)
def test_settings_that_mean_nothing(words: tuple[str, str], tiny_folder: Path) -> None:
    refuse("generate", "a cat", "--model", tiny_folder, *words)


def test_a_language_and_a_suite_that_are_unknown(tiny_folder: Path, photo: Path) -> None:
    assert "xx" in refuse("caption", photo, "--model", tiny_folder, "--language", "xx")
    assert "huge" in refuse("eval", "--model", tiny_folder, "--suite", "huge")


def test_eval_draws_as_it_is_told(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = {}
    monkeypatch.setattr("unimm.eval.runner.evaluate", lambda engine, tasks, out, **_: scored.update({t.name: t for t in tasks}))
    words = ("--seed", 3, "--guidance-scale", 2.5, "--temperature", 0.6, "--best-of", 2)
    assert call("eval", "--model", tiny_folder, "--out", tmp_path, *words).exit_code == 0
    task = scored["shapes_drawings"]
    assert task.settings == DrawingSettings(3, 2.5, 0.6, 2)


@pytest.mark.parametrize(
    ("words", "dtype", "said"),
    [
        ((), "bfloat16", "precision=auto takes bfloat16 on this cpu device.\n"),
        (("--precision", "no"), "float32", ""),
        (("--precision", "no", "--dtype", "bfloat16"), "bfloat16", ""),
    ],
)
def test_eval_takes_the_dtype_that_is_faster(
    words: tuple[str, ...], dtype: str, said: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = []
    monkeypatch.setattr("unimm.runtime.devices.bf16_is_faster", lambda: True)
    monkeypatch.setattr(
        "unimm.eval.runner.evaluate", lambda engine, *_, **__: dtypes.append(next(engine.model.parameters()).dtype)
    )
    result = call("eval", "--model", tiny_folder, "--out", tmp_path, "--device", "cpu", *words)
    assert (result.exit_code, result.stderr) == (0, said)
    assert dtypes == [getattr(torch, dtype)]
    assert "Unknown precision 'half': use auto, no or bf16." in refuse("eval", "--model", tiny_folder, "--precision", "half")


def test_a_folder_that_cannot_be_written(tiny_folder: Path, photo: Path) -> None:
    assert "photo.png" in refuse("generate", "a cat", "--model", tiny_folder, "--out", photo / "inside")


@pytest.mark.parametrize(
    "words", [("draw",), ("generate",), ("generate", "x", "-n", "0"), ("generate", "x", "-n", "two"), ("caption", "--no-such")]
)
def test_words_that_the_shell_does_not_know(words: tuple[str, ...]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMM_DEBUG", "1")
    assert isinstance(call("caption", photo, "--model", "./not-there").exception, ValueError)


def test_interrupt_ends_in_one_line_and_130(tiny_folder: Path) -> None:
    stand_in = "lambda *words, **more: (print('in', flush=True), time.sleep(60))"
    code = f"import time, unimm.inference.engine as engine; engine.load = {stand_in}"
    command = [sys.executable, "-c", f"{code}\nfrom unimm.cli import main; main()", "generate", "x", "--model", tiny_folder]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().split("\n") == ["", "unimm: interrupted.", ""]
    assert process.returncode == 130
