"""The wheel: what pip installs elsewhere carries the configurations, and the verbs work in any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_an_installed_wheel_trains_from_any_folder(tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(ROOT)]
    subprocess.run(pip, check=True, timeout=300)
    assert (site / "unimm/conf/train.yaml").is_file()
    assert {path.name for path in site.rglob("LICENSE")} | {path.name for path in site.rglob("NOTICE")} == {"LICENSE", "NOTICE"}
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = "import unimm.cli.build as build; print(build.conf_folder())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert Path(run.stdout.strip()) == site / "unimm/conf"
    show = [sys.executable, "-c", "from unimm.cli import main; main()", "train", "--cfg", "job", "seed=7"]
    run = subprocess.run(show, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "seed: 7" in run.stdout
