"""`unimm bench device`: parts end in their time, whatever they do, and what is known is on the disk after each."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forks import Fork
from trials_in_forks import forked_trials  # noqa: F401  a fixture
from typer.testing import CliRunner

from unimm.bench import device as parts_of_a_day
from unimm.bench import provenance as origin
from unimm.bench.device import Outcome, Part, run_parts, share
from unimm.cli.app import app
from unimm.cli.bench import checkpoint
from unimm.cli.bench import device as bench_device
from unimm.cli.bench.device import UNIMM, device_parts, headline, only, run

CPU = torch.device("cpu")


def python(name: str, code: str, **more: Any) -> Part:
    return Part(name, [sys.executable, "-S", "-c", code], **more)


def run_quietly(parts: list[Part], seconds: float, tmp_path: Path) -> list[Outcome]:
    return run_parts(parts, seconds, tmp_path, lambda outcomes, new: None)


def is_alive(process: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked about is no longer running."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])
print('begun', child.pid)
time.sleep(60)
"""
"""Ignores SIGINT, and so does what it has started."""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_what_hangs_is_killed_with_all_that_it_started_and_the_next_ones_run(tmp_path: Path) -> None:
    started = time.monotonic()
    hung, fine = run_quietly([python("hung", STUBBORN), python("fine", "print('well')", weight=3.0)], 8.0, tmp_path)
    assert time.monotonic() - started < 8.0
    assert hung.status == "timed out" and hung.reason == "its 2 s were over" and hung.exit_code == -signal.SIGKILL
    assert hung.seconds == pytest.approx(hung.limit_seconds, abs=0.5)
    word, child = hung.tail[0].split()  # what it had printed is kept
    assert word == "begun" and not is_alive(int(child))
    assert (fine.status, fine.reason, fine.exit_code, fine.tail) == ("done", "", 0, ["well"])
    assert 5.0 < fine.limit_seconds <= 6.0


def test_what_is_asked_to_end_may_say_what_it_has(tmp_path: Path) -> None:
    code = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('3 passed')"
    (asked,) = run_quietly([python("asked", code)], 2.5, tmp_path)
    assert (asked.status, asked.exit_code, asked.tail) == ("timed out", 0, ["3 passed"])


def test_what_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    parts = [
        python("raises", "print('before', flush=True)\nraise ValueError('no room')"),
        python("dies", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"),
        Part("nobody", [str(tmp_path / "nobody")]),
    ]
    raises, dies, nobody = run_quietly(parts, 20.0, tmp_path)
    assert (raises.status, raises.reason, raises.exit_code) == ("failed", "exit code 1", 1)
    assert raises.tail[0] == "before" and raises.tail[-1] == "ValueError: no room"
    assert (dies.status, dies.reason, dies.exit_code) == ("failed", "killed by SIGSEGV", -signal.SIGSEGV)
    assert nobody.status == "failed" and "No such file" in nobody.reason and nobody.exit_code is None


def test_what_cannot_run_is_skipped_with_its_reason(tmp_path: Path) -> None:
    parts = [
        python("fails", "raise SystemExit(3)"),
        python("needs it", "", needs="fails"),
        python("is long", "", least_seconds=100.0),
        python("is not here", "", why_not="it is not installed"),
        python("fits", ""),
    ]
    outcomes = run_quietly(parts, 20.0, tmp_path)
    assert [one.status for one in outcomes] == ["failed", "skipped", "skipped", "skipped", "done"]
    assert [one.reason for one in outcomes[1:4]] == [
        "it needs what 'fails' makes, which was not done",
        "it needs 100 s, and 20 s were left",
        "it is not installed",
    ]


def test_a_share_is_the_least_and_of_what_is_free() -> None:
    parts = [Part("a", [], 1.0, 10.0), Part("b", [], 3.0, 20.0), Part("c", [], 2.0, 90.0), Part("d", [], why_not="no")]
    assert share(parts, 50.0) == 10.0 + 20.0 * 1 / 4  # c does not fit, and d does not come
    assert share(parts, 120.0) == 10.0 + 0.0
    assert share(parts, 180.0) == 10.0 + 60.0 * 1 / 6
    assert share(parts[2:], 90.0) == share(parts[2:3], 90.0) == 90.0
    # Whatever is used up, those that fit at the beginning fit when their turn comes.
    left = 45.0
    for number, part in enumerate(parts[:2]):
        assert left >= part.least_seconds
        left -= share(parts[number:], left)
    assert left >= 0


def test_a_command_learns_its_minutes_and_its_file_is_read(tmp_path: Path) -> None:
    write = "import json, os, sys\nopen(sys.argv[1], 'w').write(os.environ['CONTENT'].replace('MINUTES', sys.argv[2]))"
    results = [tmp_path / name for name in ("whole.json", "half.json", "old.json")]
    results[2].write_text("{}")
    parts = [
        Part(
            "whole", [sys.executable, "-S", "-c", write, str(results[0]), "{minutes}"], result=results[0], shown="in {minutes}"
        ),
        Part("half", [sys.executable, "-S", "-c", write, str(results[1]), ""], result=results[1]),
        python("old", "", result=results[2]),
    ]
    for number, content in enumerate(['{"told": "MINUTES"}', '{"told": ']):
        parts[number] = replace(parts[number], environment={"CONTENT": content})
    whole, half, old = run_quietly(parts, 270.0, tmp_path)
    assert whole.result == {"told": "1.00"} and whole.command == "in 1.00"  # a third, less half a minute to start
    assert half.status == "done" and half.result is None
    assert old.result is None  # one of an earlier day is not this one's


def read_statuses(out: Path) -> list[str]:
    return [one["status"] for one in json.loads(out.read_text())["parts"]]


def test_the_file_is_whole_after_each_part_and_a_failure_is_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each part copies the file as it finds it."""
    out = tmp_path / "bench_device.json"
    copy = f"import shutil, sys\nshutil.copy({str(out)!r}, {str(tmp_path)!r} + '/' + sys.argv[0])"
    parts = [python("first", copy.replace("sys.argv[0]", "'1'")), python("second", copy.replace("sys.argv[0]", "'2'") + "\nx")]
    with pytest.raises(SystemExit) as end:
        run(1.0, "cpu", True, out, [*parts, python("third", "", least_seconds=1000.0)])
    assert end.value.code == 1
    assert read_statuses(tmp_path / "1") == ["running", "waiting", "waiting"]
    assert read_statuses(tmp_path / "2") == ["done", "running", "waiting"]
    told = json.loads(out.read_text())
    assert read_statuses(out) == ["done", "failed", "skipped"]
    assert (told["bench"], told["status"], told["minutes"], told["toy"]) == ("device", "done", 1.0, True)
    assert {"command", "commit", "date", "device", "torch"} <= set(told["provenance"])
    assert told["parts"][1]["tail"][-1] == "NameError: name 'x' is not defined"
    assert Path(told["parts"][1]["output"]).read_text().endswith("NameError: name 'x' is not defined\n")
    said = capsys.readouterr().out
    assert "second" in said and "NameError" in said and "it needs 1000 s" in said and str(out) in said
    run(1.0, "cpu", True, out, parts[:1])  # all done: no exit code; and nothing is left of the day before
    assert read_statuses(out) == ["done"]
    assert [path.name for path in (tmp_path / "bench_device.json.parts").iterdir()] == ["first.log"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_leaves_what_was_done(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)  # nohup ignores
    handler = signal.getsignal(number)
    send = f"import os, time\nprint('sent')\nos.kill(os.getppid(), {int(number)})\ntime.sleep(60)"
    out = tmp_path / "bench_device.json"
    with pytest.raises((SystemExit, KeyboardInterrupt)) as end:
        run(1.0, "cpu", True, out, [python("first", ""), python("sends", send), python("last", "")])
    if number == signal.SIGINT:
        assert end.type is KeyboardInterrupt
    else:
        assert isinstance(end.value, SystemExit) and end.value.code == 143
    told = json.loads(out.read_text())
    assert told["status"] == f"interrupted by {'SIGTERM' if number == signal.SIGHUP else number.name}"
    assert read_statuses(out) == ["done", "interrupted", "skipped"]
    assert told["parts"][1]["tail"][0] == "sent" and told["parts"][2]["reason"] == "stopped before its turn"
    assert signal.getsignal(number) == handler
    signal.signal(number, before)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "cpu"], "The sizes are those of a GPU: add --toy to try all parts on cpu."),
        (["--device", "cpu", "--toy", "--out", f"{__file__}/bench_device.json"], "test_device.py"),
        (["--device", "tpu"], "Unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_done(words: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    monkeypatch.setattr(bench_device, "run_parts", lambda *args: pytest.fail("nothing is to run"))
    result = CliRunner().invoke(app, ["bench", "device", *words])
    assert result.exit_code == 2 and told in result.stderr and result.stderr.startswith("unimm: "), result.output


def test_its_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["bench", "device", "--help"])
    assert result.exit_code == 0 and "unimm bench device --minutes 9" in result.output


def parts_of(gib: float, monkeypatch: pytest.MonkeyPatch, toy: bool = False) -> list[Part]:
    """Of a GPU that is not here."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gib * 2**30))
    return device_parts(torch.device("cuda"), toy, Path("logs"), Path("weights"))


def test_every_part_is_a_line_that_unimm_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, tuple]] = []
    for verb in ("generate", "pretrain"):
        monkeypatch.setattr(f"unimm.cli.bench.{verb}.run", lambda *args, verb=verb: called.append((verb, args)))
    monkeypatch.setattr("unimm.cli.quickstart.quickstart", lambda *args, **more: called.append(("quickstart", args)))
    for toy, device in ((False, "cuda"), (True, "cuda"), (True, "cpu")):
        called.clear()
        parts = parts_of(139.0, monkeypatch, toy) if device == "cuda" else device_parts(CPU, toy, Path("logs"), Path("weights"))
        names = ["generate-1", f"generate-{2 if toy else 64}", "few-bits", "triton", "pretrain", "quickstart"]
        assert [part.name for part in parts][:4] == ["test-triton", "test-engine-on-a-gpu", "test-on-a-gpu", "test-checkpoint"]
        assert [part.name for part in parts][4:] == ["weights", *names]
        for part in parts[5:]:
            assert part.command[: len(UNIMM)] == UNIMM
            words = [word.replace("{minutes}", "1.5") for word in part.command[len(UNIMM) :]]
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, result.output
        assert [verb for verb, _ in called] == ["generate"] * 4 + ["pretrain", "quickstart"]
        assert {part.environment["CUDA_VISIBLE_DEVICES"] for part in parts} == {"0" if device == "cuda" else ""}
        first, several, few, triton = (args for verb, args in called if verb == "generate")
        assert first[0] == "weights" and first[2] == ["1"] and first[4] == ([], False, [])
        assert several[2] == ["2" if toy else "64"] and few[2] == ["1", *several[2]]
        assert few[4] == (["int8", "fp8"] if device == "cuda" else ["int8"], True, [])
        assert triton[2] == few[2] and triton[4] == ([], True, ["torch", "triton"])
        assert bool(next(part for part in parts if part.name == "triton").why_not) == (device == "cpu")
        assert called[4][1][0] == ("tiny" if toy else "janus_pro_1b")


def test_a_nine_minute_day_of_a_large_gpu_has_room_for_the_least_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(part.least_seconds for part in parts_of(139.0, monkeypatch)) < 9 * 60 * 0.8


def test_smaller_gpus_have_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {gib: " ".join(part.shown for part in parts_of(gib, monkeypatch)) for gib in (139.0, 79.1, 44.5, 15.8)}
    assert [line.count("janus_pro_1b") > 3 for line in lines.values()] == [True, True, True, False]
    assert "--micro-batches 2 " in lines[139.0] and "--micro-batches 8 " in lines[79.1]
    assert "selective" in lines[44.5] and "--batch 16 " in lines[15.8]


def test_where_tests_or_torchao_are_not_installed_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_device, "ROOT", tmp_path)
    monkeypatch.setattr(bench_device, "find_spec", lambda name: None)
    skipped = {part.name: part.why_not for part in parts_of(139.0, monkeypatch) if part.why_not}
    assert skipped == {"tests": bench_device.NO_TESTS, "few-bits": "it needs torchao: pip install 'unimm[quantize]'"}


def test_children_see_the_chosen_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert only(CPU) == {"CUDA_VISIBLE_DEVICES": ""}
    names = [only(torch.device(device))["CUDA_VISIBLE_DEVICES"] for device in ("cuda", "cuda:3")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-8")
    names += [only(torch.device(device))["CUDA_VISIBLE_DEVICES"] for device in ("cuda", "cuda:1")]
    assert names == ["0", "3", "5", "GPU-8"]


def test_headlines_are_the_figures() -> None:
    drawn = {"who": "unimm", "weights": "as dtype", "num_images": 1, "ms_a_step": 3.0, "floor_ms": 1.5}
    other = {**drawn, "who": "transformers", "ms_a_step": 30.0, "floor_ms": 0.0}
    results = {
        "1 at once, unimm: 3.00 ms a step (2.00 x floor); 1 at once, transformers: 30.00 ms a step": {
            "bench": "generate",
            "measured": [drawn, other],
        },
        "MFU 46.4%; 57,292 tokens/s; 81.7 GiB": {
            "bench": "pretrain",
            "measured": {"speed/mfu": 0.464, "speed/tokens_per_second": 57292.0, "peak_gib": 81.7},
        },
        "shapes_answers 0.81": {"tasks": {"shapes_answers": {"score": 0.81}}},
    }
    for text, result in results.items():
        assert headline(Outcome("a", "unimm", "done", result=result, tail=["a file"])) == text
    tests = Outcome("t", "pytest -m gpu", "timed out", "its 9 s were over", tail=["= 1 failed, 3 passed in 8.10s ="])
    assert headline(tests) == "its 9 s were over; 1 failed, 3 passed in 8.10s"
    assert headline(Outcome("w", "python", "timed out", "its 9 s were over", tail=["a warning"])) == "its 9 s were over"


def test_a_gpu_is_told_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=139.8 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(origin.shutil, "which", lambda name: f"/usr/bin/{name}")
    run_truly = origin.subprocess.run

    def smi(words: list[str], **more: Any) -> Any:
        return SimpleNamespace(stdout="570.86\n", returncode=0) if words[0] == "nvidia-smi" else run_truly(words, **more)

    monkeypatch.setattr(origin.subprocess, "run", smi)
    told = origin.provenance(torch.device("cuda"))
    expected = {"device": "NVIDIA H200", "gpu_gib": 139.8, "compute_capability": "9.0", "driver": "570.86"}
    assert {name: told[name] for name in expected} == expected and "cuda" in told


def test_weights_for_several_benches_are_written_by_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", "tiny", "float32", "cpu", str(tmp_path / "model")])
    checkpoint.main()
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 1e7
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "janus"


@pytest.fixture
def forked_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that run our own commands are forks of the tests' process, as their trials are; a part of tests is no fork."""

    def begin(command: list[str], **how: Any) -> Fork | subprocess.Popen:
        if "pytest" in command:
            return subprocess.Popen(command, **how)
        return Fork(command, how["stdout"], how["stderr"], how["cwd"], how["env"])

    own = {"Popen": begin, **{name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT", "TimeoutExpired")}}
    monkeypatch.setattr(parts_of_a_day, "subprocess", SimpleNamespace(**own))


@pytest.mark.slow(seconds=30)
@pytest.mark.usefixtures("forked_parts", "forked_trials")
def test_a_toy_day_on_a_cpu(tmp_path: Path) -> None:
    """All but the quickstart, which has a story of its own; and of the files of tests, which are begun alike, one."""
    out, logs = tmp_path / "bench_device.json", tmp_path / "bench_device.json.parts"
    left_out = ("quickstart", "triton", "test-triton", "test-on-a-gpu", "test-checkpoint")
    parts = [part for part in device_parts(CPU, True, logs, tmp_path / "model") if part.name not in left_out]
    run(20.0, "cpu", True, out, parts)  # a limit: most machines need less than a minute
    told = {one["name"]: one for one in json.loads(out.read_text())["parts"]}
    assert {one["status"] for one in told.values()} == {"done"}
    assert "skipped" in told["test-engine-on-a-gpu"]["tail"][0] or torch.cuda.is_available()
    assert [(one["who"], one["weights"]) for one in told["generate-1"]["result"]["measured"]] == [
        ("unimm", "as dtype"),
        ("transformers", "as dtype"),
    ]
    few = told["few-bits"]["result"]["measured"]
    assert [(one["num_images"], one["weights"]) for one in few] == [(1, "int8"), (2, "int8")]
    assert told["pretrain"]["result"]["measured"]["speed/tokens_per_second"] > 0
