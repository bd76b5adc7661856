"""C++ of our own, compiled for the processor at hand when it is first needed, and kept in the user's cache."""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")

HEADERS = Path(__file__).parent


@cache
def library_beside(module: str, otherwise: str) -> ctypes.CDLL | None:
    """The library of the C++ file beside a Python file of the same name, for the whole process.

    otherwise: what the user is warned of, once, with the reason, where there is none.
    """
    try:
        return load_library(Path(module).with_suffix(".cpp"))
    except OSError as error:
        logger.warning(f"{otherwise}: {error}")
        return None


def load_library(source: Path) -> ctypes.CDLL:
    """The library that a C++ file makes, compiled if this processor's is not kept yet.

    Raises:
        OSError: there is no compiler, or it does not get through; a sentence that says what to do.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("Only on Linux is our C++ compiled.")
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(compiler[0]) is None:
        raise OSError(f"There is no C++ compiler {compiler[0]}: install g++, or name yours by CXX=...")
    texts = [path.read_bytes() for path in (source, *sorted(HEADERS.glob("*.h")))]
    whole = hashlib.sha256(b"|".join([*texts, repr((compiler, FLAGS)).encode(), _processor()])).hexdigest()
    home = _home()
    with nullcontext(home) if home else tempfile.TemporaryDirectory() as folder:  # once loaded, it needs its file no longer
        library = Path(folder) / f"{source.stem}-{whole[:24]}.so"
        if not library.is_file():
            _compile(compiler, source, library)
        return ctypes.CDLL(str(library))


def _home() -> Path | None:
    """Where libraries are kept; None where nothing can be."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unimm" / "native"
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    return home if os.access(home, os.W_OK) else None


def _compile(compiler: list[str], source: Path, library: Path) -> None:
    """Compile under another name, then rename: of processes that do so at once, each finds a whole file."""
    descriptor, temporary = tempfile.mkstemp(".so", dir=library.parent)
    os.close(descriptor)
    try:
        done = subprocess.run([*compiler, *FLAGS, f"-I{HEADERS}", str(source), "-o", temporary], capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["nothing"]
            raise OSError(f"{compiler[0]} does not compile {source.name}: {said[0].strip()}")
        Path(temporary).replace(library)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _processor() -> bytes:
    """What tells processors apart that need other instructions."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
        return b"|".join(line for line in lines if line.startswith((b"model name", b"flags", b"CPU", b"Features")))
    return b""
