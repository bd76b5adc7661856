"""`unimm serve`: it says where it listens, serves, ends on a signal; and what it says where it cannot."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.serve import name_of, with_limits
from unimm.inference.engine import Engine


def call(*words: str) -> str:
    """What a command that fails says."""
    result = CliRunner().invoke(app, ["serve", *words])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    return result.stderr


def test_it_serves_and_a_signal_lets_requests_end() -> None:
    words = ["serve", "demo", "--port", "0", "--no-page", "--api-key", "secret", "--served-model-name", "mine"]
    code = f"from unimm.cli.app import app\napp({words})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", told)
    assert found and told.startswith("mine at ")
    with httpx.Client(base_url=found[0], headers={"Authorization": "Bearer secret"}, timeout=120) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
        assert httpx.get(f"{found[0]}/v1/models", timeout=120).status_code == 401
        body = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 100, "temperature": 50, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(120) == -signal.SIGTERM
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{found[0]}/health")


HANGING = """
import threading, sys
import unimm
from unimm.cli import serve
from unimm.inference.engine import Engine
from unimm.serve.settings import ServerSettings

engine = Engine(unimm.load("demo", device="cpu").bundle, is_stopped=threading.Event().wait)
serve.run(engine, ServerSettings(page=False, drain_seconds=1, stuck_after=0.3), serve.listen("127.0.0.1", 0))
"""


@pytest.mark.slow
def test_a_signal_ends_a_server_whose_engine_hangs() -> None:
    code = HANGING.replace("import unimm\n", "import unimm\nimport unimm.serve.app\nunimm.serve.app.STOP_SECONDS = 0.2\n", 1)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert found
    failed = httpx.post(f"{found[0]}/v1/images/generations", json={"prompt": "a dot"}, timeout=120)
    assert failed.status_code == 503 and httpx.get(f"{found[0]}/health", timeout=120).json() == {"status": "stuck"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 1


def test_a_missing_extra_and_a_taken_port_are_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose others with --host and --port" in call("demo", "--port", str(taken.getsockname()[1]))
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert 'pip install "unimm[serve]"' in call("demo")


def test_an_empty_key_lets_nobody_in() -> None:
    assert "is empty, and would let everybody in" in call("demo", "--host", "0.0.0.0", "--api-key", "")


def test_a_folder_is_served_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert [name_of(one) for one in (".", "../mine/", "user/name", "demo", "/")] == ["mine", "mine", "name", "demo", "unimm"]


def test_memory_is_bounded_by_default(tiny_engine: Engine) -> None:
    most = with_limits(tiny_engine, None, 8, None).decoder.limits
    assert most.max_rows == 8 and most.max_cache_bytes is not None and most.max_cache_bytes > 2**20
    assert with_limits(tiny_engine, None, 8, 0.5).decoder.limits.max_cache_bytes == 500_000_000
    assert with_limits(tiny_engine, None, 8, 0.5, 3).decoder.limits.window == 3
    for asked, most in ((None, 50_000_000), (0.0, 0), (0.2, 200_000_000)):  # of prompts that begin alike
        assert with_limits(tiny_engine, None, 8, 0.5, None, asked).decoder.limits.prefix_cache_bytes == most
