"""A probe that fails is reported like any other, in this process and in another; no secret is printed."""

import json
import os
from pathlib import Path

import pytest

from unimm.diagnosis import machine, software
from unimm.diagnosis.apart import read_apart
from unimm.diagnosis.readings import gib, redact, take

PROBE = """
import os, signal, sys, time
from unimm.diagnosis.apart import write_readings

def crash():
    print("a library speaks")
    print("it goes wrong", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def fail():
    raise ValueError("two\\nlines")

write_readings({"good": lambda: {"number": 1}, "fail": fail, LAST: crash if LAST == "crash" else lambda: time.sleep(60)})
"""


def test_what_fails_is_told() -> None:
    assert take(lambda: {"x": 1}) == {"x": 1}
    assert take(lambda: {"x": 1 // 0}) == {"failed": "ZeroDivisionError: integer division or modulo by zero"}


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_crash_costs_what_comes_after_it() -> None:
    begun: list[str] = []
    readings = read_apart(f"LAST = 'crash'{PROBE}", ["good", "fail", "crash", "later"], 30, begun.append)
    assert readings["good"] == {"number": 1} and readings["fail"] == {"failed": "ValueError: two lines"}
    why = readings["crash"]["failed"]
    assert why.startswith("the process ended with SIGSEGV: ") and why.endswith("it goes wrong")
    assert readings["later"] == {"failed": "not read: crash failed before"}
    assert begun == ["good", "fail", "crash"]


def test_what_hangs_is_ended() -> None:
    readings = read_apart(f"LAST = 'hang'{PROBE}", ["good", "hang"], 2.5)
    assert readings["good"] == {"number": 1} and readings["hang"] == {"failed": "it did not end within 2.5 seconds"}


def test_a_process_that_never_begins() -> None:
    readings = read_apart("import no_such_module", ["good"], 30)
    assert "exit code 1" in readings["good"]["failed"] and "no_such_module" in readings["good"]["failed"]


def test_nothing_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    told = {
        "path": "/home/jane/models: there",
        "other": "/home/janet/x",
        "lines": ["token hf_abcdefghijklmnop", "https://jane:secret@hub.example/x"],
        "number": 3,
    }
    assert redact(told) == {
        "path": "~/models: there",
        "other": "/home/janet/x",
        "lines": ["token hf_***", "https://***@hub.example/x"],
        "number": 3,
    }
    monkeypatch.setenv("HOME", "/")
    assert redact("/data/x") == "/data/x"


def test_a_token_is_there_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretindeed")
    monkeypatch.setenv("HTTPS_PROXY", "http://jane:secret@proxy")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert software.read_hub()["token"] == "HF_TOKEN"
    environment = software.read_environment()
    assert environment["HTTPS_PROXY"] == "(set)"
    assert "secret" not in json.dumps([environment, software.read_hub()])


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    disks = machine.read_disks(str(tmp_path / "file" / "hub"))
    assert disks["folders"]["hub cache"]["why_not"] or "failed" in disks["folders"]["hub cache"]
    monkeypatch.setattr(machine.Path, "cwd", lambda: (_ for _ in ()).throw(FileNotFoundError("it was removed")))
    assert machine.read_disks(None)["folders"]["current folder"] == {"failed": "FileNotFoundError: it was removed"}


def test_bytes_for_a_person() -> None:
    assert [gib(count) for count in (5 * 2**20, 3 * 2**29, 1000 * 2**30)] == ["5 MiB", "1.5 GiB", "1,000 GiB"]
