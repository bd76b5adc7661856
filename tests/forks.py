"""Python's processes as forks of the tests' own, which has imported what they need: each spares seconds of importing.

That real ones are started is shown by tests that do without this.
"""

import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

POLL_SECONDS = 0.01


class Fork:
    """As much of `subprocess.Popen` as tests need. It has a session of its own, and reads nothing.

    Args:
        command: [sys.executable, "-c", CODE, ...], [sys.executable, "-m", MODULE, ...] or [sys.executable, SCRIPT, ...].
        stdout, stderr: files for what it says.
        cwd: where it runs [default: here].
        env: its variables [default: ours].
    """

    def __init__(
        self, command: list[str], stdout: Any, stderr: Any, cwd: str | Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        assert command[0] == sys.executable
        said = stdout.fileno(), (stdout if stderr == subprocess.STDOUT else stderr).fileno()
        self.args, self.returncode = command, None
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # else the child would write it again
        self.pid = os.fork()
        if self.pid == 0:
            redirect(*said)
            be_python(command[1:], cwd, env)

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.returncode is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """Its exit code; subprocess.TimeoutExpired after so many seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def run_fork(command: list[str], folder: Path, timeout: float = float("inf")) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run(command, capture_output=True, text=True, timeout=timeout)`. folder: for files of what it says."""
    with (folder / "fork.stdout").open("w+") as stdout, (folder / "fork.stderr").open("w+") as stderr:
        fork = Fork(command, stdout, stderr)
        try:
            code = fork.wait(timeout)
        finally:
            fork.send_signal(signal.SIGKILL)
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(command, code, stdout.read(), stderr.read())


def be_python(words: list[str], cwd: str | Path | None = None, env: Mapping[str, str] | None = None) -> NoReturn:
    """In a child, which has its standard streams: what `python WORDS` does, and no more."""
    code: int | str | None = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever catches signals in the tests' process
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, "rw"[number > 0], closefd=False) for number in range(3))
        if cwd is not None:
            os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            is_module = words[0] == "-m"
            sys.argv = words[is_module:]
            (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else code is not None)  # nothing of the tests' own process ends with it


def begin_again(words: list[str], said: str, cwd: str, env: Mapping[str, str]) -> NoReturn:
    """The same in a child of another process, such as multiprocessing's server of forks. said: a file for what it says."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    redirect(file, file)
    be_python(words, cwd, env)


def redirect(*files: int) -> None:
    """The standard streams of this process: nothing to read, and two files for what it says."""
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), *files)):
        os.dup2(file, number)
