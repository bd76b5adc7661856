"""What libraries are told before they are loaded: passive waiting, threads within the quota, what the user says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unimm.runtime import environment
from unimm.runtime.environment import (
    WAIT_PASSIVELY,
    allowed_cores,
    cgroup_memory,
    cgroup_quota,
    compute_threads,
    is_command,
    loader_processes,
    prepare_threads,
    usable_cores,
    within_cgroup,
)


def test_threads_wait_passively_unless_the_user_says_otherwise() -> None:
    told: dict[str, str] = {"KMP_BLOCKTIME": "200"}
    prepare_threads(told)
    assert told["OMP_WAIT_POLICY"] == WAIT_PASSIVELY["OMP_WAIT_POLICY"] and told["KMP_BLOCKTIME"] == "200"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_quota(tmp_path) == cores


def test_no_more_threads_than_the_quota_lets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "allowed_cores", lambda: 8)
    for quota, cores, threads in ((None, 8, None), (2.5, 3, "3"), (0.2, 1, "1"), (64.0, 8, None)):
        monkeypatch.setattr(environment, "cgroup_quota", lambda quota=quota: quota)
        told: dict[str, str] = {}
        prepare_threads(told)
        assert usable_cores() == cores and told.get("OMP_NUM_THREADS") == threads
    told = {"OMP_NUM_THREADS": "7"}
    monkeypatch.setattr(environment, "cgroup_quota", lambda: 2.0)
    prepare_threads(told)
    assert told["OMP_NUM_THREADS"] == "7"


def test_cores_are_those_of_the_affinity_mask() -> None:
    assert 1 <= usable_cores() <= allowed_cores() <= (os.cpu_count() or 1)


def test_loaders_are_no_more_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes on a machine each has its share, and one at least; none stays none."""
    monkeypatch.setattr(environment, "usable_cores", lambda: 4)
    assert [loader_processes(asked) for asked in (0, 1, 4, 9)] == [0, 1, 4, 4]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert [loader_processes(asked) for asked in (0, 1, 4)] == [0, 1, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loader_processes(4) == 1


def test_threads_leave_room_for_few_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two cores would be too much; what the user says stays."""
    monkeypatch.setattr(environment, "PREPARED", set())
    monkeypatch.setattr(environment, "usable_cores", lambda: 16)
    assert [compute_threads(workers, {}) for workers in (0, 1, 2, 3)] == [16, 15, 14, 16]
    monkeypatch.setattr(environment, "usable_cores", lambda: 2)
    assert compute_threads(1, {}) == 2 and compute_threads(1, {"OMP_NUM_THREADS": "2"}) is None


def test_launchers_start_commands_too() -> None:
    assert is_command(["python", "-u", "-m", "unimm.train", "out=x"]) and is_command(["python", "-m", "unimm.cli.encode"])
    assert not is_command(["python", "-m", "pytest", "unimm"]) and not is_command(["python", "script.py"])


def test_a_command_is_prepared_before_torch_is_there() -> None:
    code = "import os, sys, atexit; sys.argv[1:] = ['--version']; atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY']))"
    plain = {name: value for name, value in os.environ.items() if name not in WAIT_PASSIVELY}
    line = [sys.executable, "-c", f"{code}\nfrom unimm.cli import main\nassert 'torch' not in sys.modules\nmain()"]
    said = subprocess.run(line, env=plain, capture_output=True, text=True)
    assert said.stdout.split()[-1] == "PASSIVE", said.stderr


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (
            "0::/user.slice/app.scope\n",
            {"user.slice/cpu.max": "300000 100000", "user.slice/app.scope/cpu.max": "max 100000"},
            3.0,
        ),
        (
            "0::/user.slice/app.scope\n",
            {"user.slice/cpu.max": "300000 100000", "user.slice/app.scope/cpu.max": "50000 100000"},
            0.5,
        ),
        ("0::/docker/of the host\n", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/../outside\n", {"cpu.max": "200000 100000"}, 2.0),
        (
            "5:memory:/job\n2:cpu,cpuacct:/job\n",
            {"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "100000"},
            1.5,
        ),
        ("5:memory:/job\n", {"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_a_quota_is_that_of_the_own_cgroup_and_of_those_above(
    own: str, files: dict[str, str], cores: float | None, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    assert cgroup_quota(tmp_path / "root", tmp_path / "own") == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max\n", "memory.current": "5\n"}, None),
        (
            {"app/memory.max": "1000\n", "app/memory.current": "700\n", "app/memory.stat": "anon 400\ninactive_file 300\n"},
            (1000, 400),
        ),
        (
            {"memory.max": "500\n", "memory.current": "450\n", "app/memory.max": "1000\n", "app/memory.current": "450\n"},
            (500, 450),
        ),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "5\n"}, None),
        ({"memory/memory.limit_in_bytes": "2000\n", "memory/memory.usage_in_bytes": "5\n"}, (2000, 5)),
    ],
)
def test_the_memory_of_a_container(tmp_path: Path, files: dict[str, str], limit: tuple[int, int] | None) -> None:
    own = tmp_path / "own"
    own.write_text("0::/app\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_memory(tmp_path, own) == limit


def test_free_memory_is_what_a_container_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    for limited, free in ((None, 900), ((1000, 400), 600), ((5000, 400), 900), ((1000, 1200), 0)):
        monkeypatch.setattr(environment, "cgroup_memory", lambda limited=limited: limited)
        assert within_cgroup(900) == free


def test_what_the_user_has_set_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PREPARED", set())
    prepare_threads({"OMP_WAIT_POLICY": "ACTIVE"})
    assert {"KMP_BLOCKTIME"} <= environment.PREPARED and "OMP_WAIT_POLICY" not in environment.PREPARED
