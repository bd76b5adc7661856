"""Checks of graphics cards: those that are here and cannot be used, and why. Pure functions of readings."""

from collections.abc import Iterator

from unimm.diagnosis.findings import NOTE, PROBLEM, Check, Finding
from unimm.diagnosis.readings import Reading, Readings, gib, has_failed

MIN_CARD_MEMORY = 2 * 2**30

NEWEST = "https://pytorch.org/get-started/locally"
OLDER = "https://pytorch.org/get-started/previous-versions"


def check_gpus(readings: Readings) -> Iterator[Finding]:
    """Driver, build of torch, hidden cards, and each card."""
    gpus, devices, torch = readings["gpus"], readings["devices"], readings["torch"]
    hidden = gpus["CUDA_VISIBLE_DEVICES"]
    if gpus["nvidia_failed"]:
        mend = "restart the machine; else install NVIDIA's driver again"
        yield Finding(PROBLEM, "GPU", f"nvidia-smi fails: {gpus['nvidia_failed']}", mend)
    if not devices["has_cuda"]:
        yield from _no_cuda(gpus, devices, torch)
    elif hidden is not None and gpus["nvidia"] and len(devices["cards"]) < len(gpus["nvidia"]):
        what = f"CUDA_VISIBLE_DEVICES={hidden} leaves {len(devices['cards'])} of {len(gpus['nvidia'])} cards."
        yield Finding(NOTE, "GPU", what, "unset CUDA_VISIBLE_DEVICES")
    for number, card in enumerate(devices["cards"]):
        yield from _card(number, card, torch["version"])


def _no_cuda(gpus: Reading, devices: Reading, torch: Reading) -> Iterator[Finding]:
    hidden, said = gpus["CUDA_VISIBLE_DEVICES"], " ".join(devices["warnings"])
    is_here = bool(gpus["nvidia"] or gpus["nvidia_driver"])
    if is_here and hidden is not None and hidden.strip() in ("", "-1"):
        yield Finding(NOTE, "GPU", f"CUDA_VISIBLE_DEVICES='{hidden}' hides the GPU.", "unset CUDA_VISIBLE_DEVICES")
    elif is_here and not (torch["cuda"] or torch["hip"]):
        what = f"A GPU is here, and torch {torch['version']} is built for CPUs."
        yield Finding(PROBLEM, "GPU", what, f"install torch for CUDA: {NEWEST}")
    elif is_here and "too old" in said:
        what = f"NVIDIA's driver is too old for torch {torch['version']} (CUDA {torch['cuda']}): {said}"
        yield Finding(PROBLEM, "GPU", what, f"install a newer driver, or a torch for an older CUDA: {OLDER}")
    elif is_here:
        what = f"A GPU is here, and torch cannot use it: {said or 'it does not say why'}"
        mend = "restart the machine (in a container: docker run --gpus all); else install driver and torch again"
        yield Finding(PROBLEM, "GPU", what, mend)
    elif gpus["has_amd"] and not torch["hip"]:
        what = "An AMD GPU may be here (/dev/kfd), and torch is not built for ROCm, on which unimm was never tried."
        yield Finding(NOTE, "GPU", what, f"install torch for ROCm: {NEWEST}")
    elif torch["cuda"]:
        what = f"torch is built for CUDA {torch['cuda']}, and no GPU is here: the CPU is used."
        mend = "nothing has to be done; a smaller torch: pip install torch --index-url https://download.pytorch.org/whl/cpu"
        yield Finding(NOTE, "GPU", what, mend)


def _card(number: int, card: Reading, version: str) -> Iterator[Finding]:
    if has_failed(card):
        mend = f"leave it out: CUDA_VISIBLE_DEVICES without {number}"
        yield Finding(PROBLEM, "GPU", f"cuda:{number} cannot be read: {card['failed']}", mend)
        return
    name = f"cuda:{number} ({card['name']}, capability {card['capability']})"
    if card["why_not"]:
        what = f"{name} does not compute with torch {version}: {card['why_not']}"
        yield Finding(PROBLEM, "GPU", what, f"install a torch that is built for it: {OLDER}")
    elif card["free"] < min(MIN_CARD_MEMORY, card["total"] / 2):
        what = f"{name} has {gib(card['free'])} of {gib(card['total'])} free: another process holds the rest."
        yield Finding(PROBLEM, "GPU", what, "nvidia-smi names that process; or use another card: --device cuda:N")


CHECKS = (Check(("gpus", "devices", "torch"), check_gpus),)
