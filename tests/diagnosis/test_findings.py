"""Each thing that can be wrong with a machine is found, with its level and its mend; and nothing else is."""

import re
from typing import Any

import pytest
from machines import CARD, GIB, NVIDIA, USES, folder, healthy

from unimm.diagnosis import checks, gpu_checks, software_checks
from unimm.diagnosis.choices import choose_all
from unimm.diagnosis.findings import find
from unimm.diagnosis.software_checks import how_to_install

CHECKS = (*checks.CHECKS, *gpu_checks.CHECKS, *software_checks.CHECKS)

NO_COMPILER = "There is no C++ compiler g++: install g++, or name yours by CXX=..."
HERE = {"nvidia": [NVIDIA], "nvidia_driver": "NVRM version: 580.1"}


def test_a_healthy_machine_has_nothing_wrong() -> None:
    assert find(healthy(), CHECKS) == []


def full(use: str, **entries: Any) -> dict[str, Any]:
    """The disks, one of the folders changed."""
    return {"folders": {name: folder(f"/{name}") | (entries if name == use else {}) for name in USES}}


@pytest.mark.parametrize(
    ("changes", "level", "what", "mend"),
    [
        ({"processor": {"UNIMM_CPU": "avx2"}}, "note", "behave like one with AVX2", "unset UNIMM_CPU"),
        ({"processor": {"UNIMM_CPU": "sse2"}}, "broken", "UNIMM_CPU=sse2 is unknown", "unset UNIMM_CPU"),
        ({"processor": {"instructions": {"AVX2": False}}}, "problem", "no AVX2", "another machine"),
        ({"threads": {"quota": 1.5, "usable": 2}}, "note", "1.5 of 8 cores", "--cpus"),
        ({"threads": {"allowed": 4, "usable": 4}}, "note", "4 of 8 cores", "taskset"),
        ({"threads": {"settings": {"OMP_NUM_THREADS": "1"}}}, "problem", "OMP_NUM_THREADS=1, .* idle", "unset OMP_NUM_THREADS"),
        ({"threads": {"settings": {"MKL_NUM_THREADS": "64"}}}, "problem", "64, .* other's way", "unset MKL_NUM_THREADS"),
        ({"threads": {"settings": {"OMP_WAIT_POLICY": "ACTIVE"}, "set_by_unimm": []}}, "problem", "spin", "unset OMP_WAIT"),
        ({"threads": {"settings": {"KMP_BLOCKTIME": "200"}, "set_by_unimm": []}}, "problem", "spin", "unset KMP_BLOCKTIME"),
        ({"threads": {"busy": 1.4}}, "note", r"about 1\.4 cores", "idle"),
        ({"memory": {"available": GIB}}, "problem", r"Only 1\.0 GiB are free", "--memory"),
        ({"memory": {"cgroup_limit": 3 * GIB}}, "note", r"3\.0 GiB are enough", None),
        ({"memory": {"address_space_limit": 8 * GIB}}, "problem", "addresses", "ulimit -v unlimited"),
        ({"memory": {"shared": 64 * 2**20}}, "problem", "/dev/shm has 64 MiB", "--shm-size"),
        ({"disks": full("current folder", free=GIB)}, "problem", r"1\.0 GiB free", "free some space"),
        ({"disks": full("hub cache", why_not="permission denied")}, "problem", "hub cache.*permission denied", "HF_HOME"),
        ({"disks": full("temporary files", failed="FileNotFoundError: no")}, "broken", "temporary files", "TMPDIR"),
        ({"disks": {"TMPDIR": "/elsewhere"}}, "problem", "/temporary-files is used instead", "TMPDIR"),
        ({"speeds": {"cpu": {"float32": {"product": 9.0, "convolution": 3.0}}}}, "note", "9 GFLOP/s", "--minutes"),
        ({"gpus": {"nvidia_failed": "Driver/library version mismatch"}}, "problem", "version mismatch", "restart"),
        ({"torch": {"cuda": "13.0"}}, "note", "no GPU is here", "download.pytorch.org/whl/cpu"),
        ({"gpus": HERE}, "problem", "built for CPUs", "torch for CUDA"),
        ({"gpus": HERE, "torch": {"cuda": "13.0"}}, "problem", "torch cannot use it", "--gpus all"),
        ({"gpus": {"has_amd": True}}, "note", "ROCm", "ROCm"),
        ({"python": {"version": "3.9.2"}}, "broken", "older than 3.11", "newer Python"),
        ({"python": {"has_headers": False}}, "problem", "headers are missing", "apt-get install python3-dev"),
        ({"compiler": {"why_not": NO_COMPILER}}, "problem", r"no C\+\+ compiler g\+\+: without", r"apt-get install g\+\+$"),
        ({"compiler": {"why_not": "CXX=x names no compiler", "CXX": "x"}}, "problem", "CXX=x", "unset CXX"),
        ({"kernels": {"kernels": {"convolution": {"why_not": "Only on Linux is our C++ compiled."}}}}, "note", "Linux", None),
        ({"kernels": {"kernels": {"convolution": {"why_not": "no omp.h"}}}}, "problem", "convolution .*no omp.h", "report"),
        ({"compile": {"why_not": "too old"}}, "problem", "does not work here: too old", "newer"),
        ({"demo": {"said": "Two cats."}}, "broken", "'Two cats.' of a picture of a large red circle", "UNIMM_CPU=avx2"),
        ({"demo": {"failed": "SafetensorError: x"}}, "broken", "cannot describe a picture: SafetensorError", "reinstall"),
        ({"hub": {"is_offline": True}}, "note", "switched off", "unset HF_HUB_OFFLINE"),
        ({"torch": {"why_no_numpy": "Numpy is not available"}}, "broken", "NumPy", "--upgrade torch numpy"),
        ({"environment": {"TORCHDYNAMO_DISABLE": "1"}}, "note", "switches it off", "unset"),
        ({"environment": {"UNIMM_KEEP_MEMORY": "0"}}, "note", "a fifth", "unset"),
        ({"unimm": {"version": None}}, "problem", "not installed", "pip install -e"),
        ({"torch": {"failed": "ImportError: libcudart"}}, "broken", "cannot be imported: ImportError", "--force-reinstall"),
        ({"devices": {"failed": "SIGSEGV"}}, "broken", "which devices are here: SIGSEGV", "hide"),
        ({"memory": {"failed": "OSError: x"}}, "problem", "could not be read: OSError: x", "report"),
    ],
)
def test_what_is_wrong_is_found(changes: dict[str, Any], level: str, what: str, mend: str | None) -> None:
    (found,) = find(healthy(**changes), CHECKS)
    assert found.level == level
    assert re.search(what, found.what), found
    assert found.mend is None if mend is None else re.search(mend, found.mend or ""), found


@pytest.mark.parametrize(
    ("card", "what"),
    [
        ({}, None),
        ({"why_not": "no kernel image is available"}, "does not compute with torch .*no kernel image"),
        ({"free": GIB}, r"1\.0 GiB of 140 GiB free"),
        ({"failed": "RuntimeError: ECC"}, "cuda:0 cannot be read: RuntimeError: ECC"),
    ],
)
def test_cards(card: dict[str, Any], what: str | None) -> None:
    readings = healthy(devices={"has_cuda": True, "cards": [CARD | card]}, torch={"cuda": "13.0"}, gpus=HERE)
    found = find(readings, CHECKS)
    assert [one.level for one in found] == (["problem"] if what else [])
    assert all(re.search(what or "", one.what) for one in found)


@pytest.mark.parametrize(
    ("hidden", "said", "what"),
    [
        (None, "The NVIDIA driver on your system is too old (found version 11040).", "too old for torch .*11040"),
        ("", "", "hides the GPU"),
        ("-1", "", "hides the GPU"),
    ],
)
def test_why_a_card_is_not_seen(hidden: str | None, said: str, what: str) -> None:
    gpus = HERE | {"CUDA_VISIBLE_DEVICES": hidden}
    (found,) = find(healthy(gpus=gpus, torch={"cuda": "13.0"}, devices={"warnings": [said] if said else []}), CHECKS)
    assert re.search(what, found.what)


def test_packages_that_do_not_go_together() -> None:
    unmet = [
        {"package": "unimm", "needs": "transformers>=5.10,<6", "has": "4.57.0"},
        {"package": "torchvision", "needs": "torch==2.14.1", "has": "2.12.0"},
        {"package": "unimm", "needs": "einops>=0.8", "has": None},
    ]
    found = find(healthy(packages={"unmet": unmet}), CHECKS)
    assert [(one.level, one.mend) for one in found] == [
        ("broken", "pip install 'transformers>=5.10,<6'"),
        ("broken", "pip install 'einops>=0.8'"),
        ("problem", "pip install 'torch==2.14.1'"),
    ]


def test_what_torch_cannot_tell_is_told_once() -> None:
    """A torch that is not there fails every question that is put to it."""
    failed = {"failed": "ModuleNotFoundError: No module named 'torch'"}
    readings = healthy(**dict.fromkeys(("torch", "devices", "speeds", "choices", "demo", "compile", "quickstart"), failed))
    assert [(one.level, one.about) for one in find(readings, CHECKS)] == [("broken", "torch")]
    assert choose_all(readings) == []


def test_a_crash_is_told_once() -> None:
    later = {name: {"failed": "not read: speeds failed before"} for name in ("choices", "demo", "compile", "quickstart")}
    readings = healthy(speeds={"failed": "the process ended with SIGILL"}, **later)
    found = find(readings, CHECKS)
    assert [(one.level, one.about) for one in found] == [("broken", "speeds")]
    assert "SIGILL" in found[0].what


def test_the_compiler_is_the_reason_and_told_once() -> None:
    """Without one there are no kernels and no torch.compile."""
    none = {"kernels": {name: {"why_not": NO_COMPILER} for name in ("convolution", "attention")}}
    readings = healthy(compiler={"why_not": NO_COMPILER}, kernels=none, compile={"why_not": "No working C++ compiler"})
    assert [one.about for one in find(readings, CHECKS)] == ["compiler"]
    works = {one.what: one.value for one in choose_all(readings)}
    assert works["torch.compile"] == "never"


@pytest.mark.parametrize(
    ("family", "line"),
    [
        (["ubuntu", "debian"], "apt-get install g++ python3-dev"),
        (["rocky", "rhel", "centos", "fedora"], "dnf install gcc-c++ python3-devel"),
        (["arch"], "pacman -S gcc python"),
        (["darwin"], "xcode-select --install"),
        (["plan9"], "install a C++ compiler (g++) and Python's headers (python3-dev)"),
    ],
)
def test_how_to_install_is_said_in_the_systems_words(family: list[str], line: str) -> None:
    assert how_to_install(healthy(system={"family": family}), True, True) == line


def test_what_is_chosen_says_why() -> None:
    chosen = {one.what: one for one in choose_all(healthy())}
    assert (chosen["device"].value, chosen["precision of trainings"].value) == ("cpu", "float32")
    assert "emulate" in chosen["precision of trainings"].why
    assert chosen["threads"].why == "8 usable cores"
    assert "our kernel" in chosen["attention of trainings"].why
    assert chosen["unimm quickstart"].value == "preset 'usual'; compiled"
    gpu = {
        "device": "cuda",
        "dtype": "bfloat16",
        "dtype_large": "bfloat16",
        "precision": "bf16",
        "trainer": "gpu",
        "workers": 4,
    }
    chosen = {one.what: one for one in choose_all(healthy(choices=gpu | {"attention": "flex_attention"}))}
    assert chosen["weights of an engine"].value == "bfloat16" and "GPU" in chosen["loader workers"].why
    few = {"settings": {"OMP_NUM_THREADS": "1"}, "set_by_unimm": []}
    assert {one.what: one.why for one in choose_all(healthy(threads=few))}["threads"] == "OMP_NUM_THREADS=1"
