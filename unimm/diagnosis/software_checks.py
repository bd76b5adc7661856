"""Checks of what is installed: Python, packages, compiler, kernels, torch.compile, hub. Pure functions of readings."""

from collections.abc import Iterator

from unimm.diagnosis.findings import BROKEN, NOTE, PROBLEM, Check, Finding
from unimm.diagnosis.readings import Readings, has_failed

MIN_PYTHON = (3, 11)

INSTALL = {
    "debian": ("apt-get install", "g++", "python3-dev"),
    "fedora": ("dnf install", "gcc-c++", "python3-devel"),
    "rhel": ("dnf install", "gcc-c++", "python3-devel"),
    "suse": ("zypper install", "gcc-c++", "python3-devel"),
    "arch": ("pacman -S", "gcc", "python"),
    "alpine": ("apk add", "g++ libgomp", "python3-dev"),
    "darwin": ("xcode-select --install", "", ""),
}
"""By family of system: how a package is installed, the compiler's, and that of Python's headers."""


def how_to_install(readings: Readings, compiler: bool, headers: bool) -> str:
    """A line for a shell of this system, as its administrator."""
    system = readings.get("system", {})
    family = [] if has_failed(system) else system["family"]
    known = next((INSTALL[name] for name in family if name in INSTALL), None)
    if known is None:
        return "install a C++ compiler (g++) and Python's headers (python3-dev)"
    return " ".join(filter(None, [known[0], known[1] if compiler else "", known[2] if headers else ""]))


def check_python(readings: Readings) -> Iterator[Finding]:
    """An old Python."""
    python = readings["python"]
    numbers = tuple(int(word) for word in python["version"].split(".")[:2] if word.isdecimal())
    if numbers < MIN_PYTHON:
        what = f"Python {python['version']} is older than {'.'.join(map(str, MIN_PYTHON))}."
        yield Finding(BROKEN, "python", what, "make an environment with a newer Python: uv venv --python 3.12")
    if python["implementation"] != "CPython":
        yield Finding(PROBLEM, "python", f"{python['implementation']} is not CPython, for which torch is made.", "use CPython")


def check_packages(readings: Readings) -> Iterator[Finding]:
    """What is missing, or does not go together."""
    packages = readings["packages"]
    for one in packages["unmet"]:
        has = "it is not installed" if one["has"] is None else f"{one['has']} is installed"
        what = f"{one['package']} needs {one['needs']}, and {has}."
        level = BROKEN if one["package"] == "unimm" else PROBLEM
        yield Finding(level, "packages", what, f"pip install '{one['needs']}'")
    if not has_failed(readings.get("unimm")) and readings["unimm"]["version"] is None:
        what = f"unimm is not installed: it runs from {readings['unimm']['folder']}, and what it needs cannot be checked."
        yield Finding(PROBLEM, "packages", what, "pip install -e . in the checkout")


def check_numpy(readings: Readings) -> Iterator[Finding]:
    """A torch that was built for another NumPy."""
    if reason := readings["torch"]["why_no_numpy"]:
        yield Finding(BROKEN, "packages", f"torch and NumPy do not go together: {reason}", "pip install --upgrade torch numpy")


def check_compiler(readings: Readings) -> Iterator[Finding]:
    """No C++ compiler, none that works, or no headers for torch.compile."""
    compiler, python = readings["compiler"], readings["python"]
    if compiler["why_not"]:
        reason = compiler["why_not"].rstrip(".").partition(": install")[0]
        what = f"{reason}: without our kernels and torch.compile attention, drawing and training are slower."
        mend = "unset CXX" if compiler["CXX"] else how_to_install(readings, True, not python["has_headers"])
        yield Finding(PROBLEM, "compiler", what, mend)
    elif not python["has_headers"]:
        what = f"Python's headers are missing ({python['headers']}): torch.compile needs them."
        yield Finding(PROBLEM, "compiler", what, how_to_install(readings, False, True))


def check_kernels(readings: Readings) -> Iterator[Finding]:
    """Kernels of ours that do not compile, though there is a compiler."""
    failed = {name: one["why_not"] for name, one in readings["kernels"]["kernels"].items() if one["why_not"]}
    if not failed or has_failed(readings.get("compiler")) or readings["compiler"]["why_not"]:
        return
    reason = next(iter(failed.values()))
    if reason.startswith("Only on Linux"):
        yield Finding(NOTE, "kernels", "Our C++ kernels are for Linux: PyTorch's are used here, which are slower.")
    else:
        what = f"{', '.join(failed)} cannot be compiled: {reason}"
        yield Finding(PROBLEM, "kernels", what, how_to_install(readings, True, False) + "; else report it with this page")


def check_compile(readings: Readings) -> Iterator[Finding]:
    """torch.compile does not work, for a reason that is not reported already."""
    reason = readings["compile"]["why_not"]
    compiler, python = readings.get("compiler"), readings.get("python")
    told_already = (
        not has_failed(compiler) and compiler and (compiler["why_not"] or (python and not python.get("has_headers", True)))
    )
    on_cpu = has_failed(readings.get("choices")) or readings["choices"]["device"] == "cpu"
    if reason and not (told_already and on_cpu):
        mend = "trainings go on without; with a newer torch, driver or compiler it may work"
        yield Finding(PROBLEM, "torch.compile", f"It does not work here: {reason}", mend)


def check_demo(readings: Readings) -> Iterator[Finding]:
    """A model that says nonsense: numbers go wrong on this machine, with these libraries."""
    demo = readings["demo"]
    if demo["expected"] not in demo["said"]:
        what = f"The demo model says '{demo['said']}' of a picture of a {demo['expected']}: something computes wrongly here."
        yield Finding(BROKEN, "demo", what, "try UNIMM_CPU=avx2, or --device cpu; and report it with this page")


def check_hub(readings: Readings) -> Iterator[Finding]:
    """Offline."""
    if readings["hub"]["is_offline"]:
        what = f"The hub is switched off (HF_HUB_OFFLINE): only models in {readings['hub']['cache']} are found."
        yield Finding(NOTE, "hub", what, "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE")


def check_environment(readings: Readings) -> Iterator[Finding]:
    """Settings that switch off what makes things quick."""
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if readings["environment"].get(name, "0") not in ("0", ""):
            yield Finding(NOTE, "torch.compile", f"{name} switches it off.", f"unset {name}")
    if readings["environment"].get("UNIMM_KEEP_MEMORY") == "0":
        what = "UNIMM_KEEP_MEMORY=0: freed memory goes back to the system at once, which costs a fifth of a CPU's time."
        yield Finding(NOTE, "memory", what, "unset UNIMM_KEEP_MEMORY")


CHECKS = (
    Check(("python",), check_python),
    Check(("packages",), check_packages),
    Check(("torch",), check_numpy),
    Check(("compiler", "python"), check_compiler),
    Check(("kernels",), check_kernels),
    Check(("compile",), check_compile),
    Check(("demo",), check_demo),
    Check(("hub",), check_hub),
    Check(("environment",), check_environment),
)
