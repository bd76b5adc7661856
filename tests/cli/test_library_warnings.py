"""Standard error is for unimm's own lines: what libraries say to developers is not shown, and can be brought back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SHELL = [sys.executable, "-c", "from unimm.cli import main; main()"]
OWN_LINES = ("finding the images: ", "codes of ", "codes/", "WARNING: ")
LOUD = """
import logging
import warnings

from unimm.cli.library_warnings import quiet_libraries

quiet_libraries()
logging.getLogger("torch.utils._pytree").warning("of a library, for libraries")
warnings.warn_explicit("is deprecated", FutureWarning, "engine.py", 1, module="unimm.inference.engine")
warnings.warn_explicit("CUDA initialization: The NVIDIA driver is too old", UserWarning, "init.py", 1, module="torch.cuda")
warnings.warn_explicit("of the user's own part", UserWarning, "part.py", 1, module="torchlight.part")
"""
LOUD_LIBRARIES = """
import os

from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

DataLoader([1, 2], num_workers=4 * os.cpu_count())
transformers_logging.get_logger("transformers.models").warning("a note for developers")
"""


def stderr_of(words: list[str], folder: Path, **variables: str) -> str:
    surroundings = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY")
    }
    result = subprocess.run(
        words, cwd=folder, env={**surroundings, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("one", "two"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / f"{name}.png")
        (tmp_path / "photos" / f"{name}.txt").write_text("A red square.")
    return tmp_path


def test_a_caption_comes_alone(photos: Path) -> None:
    """Packed weights bring torchao in, where it is installed, and its warnings with it."""
    words = ["caption", "photos/one.png", "--model", "demo", "--dtype", "bfloat16", "--weights", "int8"]
    assert stderr_of([*SHELL, *words], photos) == ""


def test_a_launched_verb_says_its_own_lines_only(photos: Path) -> None:
    words = ["data=image_folder", "data.folder=photos", "image_tokenizer=demo", "out=codes"]
    said = stderr_of([sys.executable, "-m", "unimm.cli.encode", *words], photos)
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
    assert lines and all(line.startswith(OWN_LINES) for line in lines), said


def test_what_a_user_can_mend_is_shown(tmp_path: Path) -> None:
    said = stderr_of([sys.executable, "-c", LOUD + LOUD_LIBRARIES], tmp_path)
    assert "NVIDIA driver" in said and "of the user's own part" in said
    assert not [word for word in ("worker", "for libraries", "developers", "deprecated") if word in said], said


def test_pythons_switches_bring_it_back(tmp_path: Path) -> None:
    said = stderr_of([sys.executable, "-c", LOUD], tmp_path, PYTHONWARNINGS="default")
    assert "deprecated" in said and "NVIDIA driver" in said and "for libraries" not in said
