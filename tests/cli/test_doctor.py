"""`unimm doctor` on machines that are poor or broken: a page, or JSON; what is wrong, with its mend; never a traceback."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from machines import healthy
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.doctor import command
from unimm.cli.doctor.page import show
from unimm.cli.doctor.probe import SECTIONS

SECRET = "hf_thisisverysecret"


def call(environment: dict[str, str], folder: Path) -> tuple[dict[str, Any], int, str]:
    """The diagnosis of a machine with such variables, the exit code, and all that was printed."""
    line = [sys.executable, "-c", "from unimm.cli import main; main()", "doctor", "--json"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "MKL_", "UNIMM_"))}
    said = subprocess.run(line, env=plain | environment, capture_output=True, text=True, cwd=folder, timeout=300)
    assert "Traceback" not in said.stderr, said.stderr
    return json.loads(said.stdout), said.returncode, said.stdout + said.stderr


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int, str]:
    """A machine without a compiler, asked to be small, with one thread that spins, a TMPDIR that is none, and no way out."""
    folder = tmp_path_factory.mktemp("poor")
    (folder / "bin").mkdir()
    return call(
        {
            "PATH": str(folder / "bin"),
            "UNIMM_CPU": "avx2",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "ACTIVE",
            "HF_HOME": str(folder / "hub"),
            "HF_TOKEN": SECRET,
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(folder / "none"),
            "CUDA_VISIBLE_DEVICES": "",
            "XDG_CACHE_HOME": str(folder / "bin" / "cache"),
        },
        folder,
    )


def test_a_poor_machine_works_and_is_told_what_is_wrong(poor: tuple[dict[str, Any], int, str]) -> None:
    diagnosis, code, printed = poor
    assert code == 0 and diagnosis["works"], diagnosis["findings"]
    found = {(one["level"], one["about"]) for one in diagnosis["findings"]}
    assert found >= {
        ("problem", "compiler"),
        ("problem", "disk"),
        ("note", "processor"),
        ("note", "hub"),
        ("problem", "threads"),
    }
    mends = " | ".join(one["mend"] or "" for one in diagnosis["findings"])
    assert "unset OMP_WAIT_POLICY" in mends and "unset UNIMM_CPU" in mends
    assert SECRET not in printed and str(Path.home()) + "/" not in printed
    readings = diagnosis["readings"]
    assert readings["hub"]["token"] == "HF_TOKEN" and readings["hub"]["cache"].endswith("hub/hub")
    assert readings["choices"]["precision"] == "no" and readings["torch"]["threads"] == 1
    assert all(kernel["why_not"] for kernel in readings["kernels"]["kernels"].values())
    assert "compiler" in readings["compile"]["why_not"] and "large red circle" in readings["demo"]["said"]
    chosen = {one["what"]: one for one in diagnosis["choices"]}
    assert chosen["threads"]["why"] == "OMP_NUM_THREADS=1" and "preset" in chosen["unimm quickstart"]["value"]


def test_the_json_has_the_form_that_is_promised(poor: tuple[dict[str, Any], int, str]) -> None:
    diagnosis = poor[0]
    assert set(diagnosis) == {"format", "date", "works", "findings", "choices", "readings"}
    assert all(set(one) == {"level", "about", "what", "mend"} for one in diagnosis["findings"])
    assert all(set(one) == {"what", "value", "why", "setting"} for one in diagnosis["choices"])
    expected = healthy()
    assert set(diagnosis["readings"]) == set(expected)
    for name, reading in diagnosis["readings"].items():
        assert set(reading) == set(expected[name]) or name in ("speeds", "environment"), (
            name,
            set(reading) ^ set(expected[name]),
        )


def test_a_broken_torch_ends_in_a_finding(tmp_path: Path) -> None:
    """Python finds another torch first: one that cannot be imported, as after half an upgrade."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    diagnosis, code, _ = call({"PYTHONPATH": paths}, tmp_path)
    assert code == 1 and not diagnosis["works"]
    broken = [one for one in diagnosis["findings"] if one["level"] == "broken"]
    assert [one["about"] for one in broken] == ["torch"]
    assert "libcudart" in broken[0]["what"] and broken[0]["mend"]
    assert diagnosis["readings"]["memory"]["total"] > 0 and diagnosis["choices"] == []


def stand_in(monkeypatch: pytest.MonkeyPatch, readings: dict[str, Any]) -> None:
    monkeypatch.setattr(
        command, "plain_readings", lambda: {name: one for name, one in readings.items() if name not in SECTIONS}
    )
    asked = "unimm.diagnosis.apart.read_apart"
    monkeypatch.setattr(asked, lambda code, names, seconds, begin: {name: readings[name] for name in names})


@pytest.mark.parametrize(("readings", "code"), [(healthy(), 0), (healthy(torch={"failed": "ImportError: x"}), 1)])
def test_the_page_for_people(readings: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, readings)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("unimm doctor  unimm 0.1.0, commit abc1234")
    assert all(len(line) <= 110 and line == line.rstrip() and "\x1b" not in line for line in lines)
    for heading in ("Machine", "Software", "Disk"):
        assert heading in lines
    assert lines[-1].startswith("unimm works here, and nothing is wrong." if code == 0 else "unimm cannot work here")


def test_every_reading_may_fail_and_the_page_is_still_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, {name: {"failed": f"OSError: no {name}"} for name in healthy()})
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1 and "could not be read: OSError: no memory" in result.stdout


def test_a_terminal_has_colours_and_narrow_ones_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, healthy(memory={"available": 2**20}))
    diagnosis = command.diagnose(lambda name: None)
    for width in (60, 80):
        console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=width, highlight=False)
        show(diagnosis, console)
        page = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert "\x1b[1;33mproblem" in page
        assert max(map(len, Text.from_ansi(page).plain.splitlines())) <= width


def test_the_names_of_the_probes_are_those_of_the_process() -> None:
    assert tuple(SECTIONS) == command.PROBES


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["doctor", "--help"])
    assert result.exit_code == 0 and "  unimm doctor --json > doctor.json" in result.output
