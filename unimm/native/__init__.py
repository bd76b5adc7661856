"""C++ of our own, compiled for the processor at hand when it is first needed, and kept in the user's cache."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")

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
    """The library that a C++ file makes, compiled if this processor's is not kept yet, or does not load.

    Raises:
        OSError: there is no compiler, or it does not get through; a sentence that says what to do.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("Only on Linux is our C++ compiled.")
    compiler = find_compiler()
    texts = [path.read_bytes() for path in (source, *sorted(HEADERS.glob("*.h")))]
    made_by = repr((compiler, str(Path(compiler[0]).resolve()), FLAGS, _march(), platform.libc_ver())).encode()
    name = f"{source.stem}-{hashlib.sha256(b'|'.join([*texts, made_by, _processor()])).hexdigest()[:24]}.so"
    kept = kept_libraries() / name
    with suppress(OSError):
        if kept.is_file():
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder:  # once loaded, a library needs its file no longer
        made = Path(folder) / name
        _compile(compiler, source, made)
        with suppress(OSError):  # nothing can be kept there, or nothing be loaded from there
            _keep(made, kept)
            return ctypes.CDLL(str(kept))
        return ctypes.CDLL(str(made))


def find_compiler() -> list[str]:
    """The words that call the C++ compiler, the first as a whole path.

    Raises:
        OSError: there is none of that name.
    """
    asked = os.environ.get("CXX", "").strip() or "g++"
    try:
        name, *words = shlex.split(asked)
    except ValueError as error:
        raise OSError(f"CXX={asked} names no compiler ({error}): give the name of one.") from None
    if (path := shutil.which(name)) is None:
        raise OSError(f"There is no C++ compiler {name}: install g++, or name yours by CXX=...")
    return [path, *words]


def kept_libraries() -> Path:
    """Where libraries are kept, if anything can be."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home
        cache = Path(os.devnull)
    return cache / "unimm" / "native"


def _compile(compiler: list[str], source: Path, library: Path) -> None:
    words = [*compiler, *FLAGS, f"-march={_march()}", f"-I{HEADERS}", str(source), "-o", str(library)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["nothing"]
        raise OSError(f"{Path(compiler[0]).name} does not compile {source.name}: {said[0].strip()}")


def _keep(made: Path, kept: Path) -> None:
    """Copy under another name, flush, then rename: of processes that do so at once, each finds a whole file."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(".so", dir=kept.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(made.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(kept)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _march() -> str:
    """The instructions that may be used: this processor's, or AVX2 and nothing newer where UNIMM_CPU=avx2 asks for that."""
    return "x86-64-v3" if os.environ.get("UNIMM_CPU") == "avx2" else "native"


def _processor() -> bytes:
    """What tells processors apart that need other instructions."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
        return b"|".join(line for line in lines if line.startswith((b"model name", b"flags", b"CPU", b"Features")))
    return b""
