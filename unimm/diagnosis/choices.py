"""What unimm would use on a machine by default, and why: pure functions of readings."""

from collections.abc import Iterator
from dataclasses import dataclass

from unimm.diagnosis.readings import Readings, has_failed


@dataclass(frozen=True)
class Choice:
    """what: of the choice, its name. value: what is chosen. why: one clause. setting: how a user says otherwise."""

    what: str
    value: str
    why: str
    setting: str


def choose_all(readings: Readings) -> list[Choice]:
    """In the order of a life: device, numbers, threads, kernels, the quickstart. What cannot be known is left out."""
    if has_failed(readings.get("choices")):
        return []
    return [*_numbers(readings), *_work(readings), *_quickstart(readings)]


def _numbers(readings: Readings) -> Iterator[Choice]:
    chosen = readings["choices"]
    device = chosen["device"]
    why = {"cuda": "a GPU that torch can use", "mps": "Apple's GPU"}.get(device, "no GPU that torch can use")
    yield Choice("device", device, why, "--device, device=")
    large = f"{chosen['dtype_large']} from {chosen['large'] / 1e6:.0f} million parameters on"
    value = chosen["dtype"] if chosen["dtype"] == chosen["dtype_large"] else f"{chosen['dtype']}, {large}"
    yield Choice("weights of an engine", value, _why_dtype(chosen), "--dtype")
    precision = "bfloat16 (autocast)" if chosen["precision"] == "bf16" else "float32"
    yield Choice("precision of trainings", precision, _why_precision(readings), "trainer.precision=no|bf16")


def _why_dtype(chosen: dict) -> str:
    if chosen["device"] != "cpu":
        return "the device computes in it" if chosen["dtype"] == "bfloat16" else "the device has no bfloat16"
    return "this processor has instructions for bfloat16" if chosen["has_bf16"] else "this processor would emulate bfloat16"


def _why_precision(readings: Readings) -> str:
    chosen = readings["choices"]
    if chosen["device"] != "cpu":
        return "the device has instructions for it" if chosen["precision"] == "bf16" else "the device has no bfloat16"
    if not chosen["has_bf16"]:
        return "this processor would emulate bfloat16"
    return "bfloat16 was faster in the trial" if chosen["precision"] == "bf16" else "float32 was faster in the trial"


def _work(readings: Readings) -> Iterator[Choice]:
    chosen = readings["choices"]
    threads = readings.get("threads", {})
    yield Choice("threads", str(chosen["threads"]), _why_threads(threads), "OMP_NUM_THREADS")
    workers, trainer = chosen.get("workers"), chosen.get("trainer")
    if workers is not None:
        why = (
            "a second process takes more from the threads than it gives"
            if trainer == "cpu"
            else "the GPU must not wait for data"
        )
        yield Choice("loader workers", f"{workers} (trainer={trainer})", why, "trainer.num_workers=")
    yield Choice("attention of trainings", chosen["attention"], _why_attention(readings), "trainer.attention=")
    compiled = readings.get("compile", {"failed": ""})
    if not has_failed(compiled):
        works = compiled["why_not"] is None
        why = f"it works here ({compiled['seconds']:.0f} s to try)" if works else "it does not work here"
        yield Choice("torch.compile", "where a training asks for it" if works else "never", why, "trainer.compile=")


def _why_threads(threads: dict) -> str:
    if has_failed(threads) or not threads:
        return "what torch takes"
    given = threads["settings"].get("OMP_NUM_THREADS")
    if given and "OMP_NUM_THREADS" not in threads["set_by_unimm"]:
        return f"OMP_NUM_THREADS={given}"
    if threads["quota"] is not None and threads["usable"] < threads["allowed"]:
        return f"a quota of {threads['quota']:g} cores"
    return f"{threads['usable']} usable cores"


def _why_attention(readings: Readings) -> str:
    backend = readings["choices"]["attention"]
    if backend == "documents":
        kernels = readings.get("kernels", {"failed": ""})
        is_ours = not has_failed(kernels) and not kernels["kernels"].get("attention", {"why_not": "?"})["why_not"]
        return (
            "each document by itself, by our kernel"
            if is_ours
            else "each document by itself, by PyTorch (our kernel is not there)"
        )
    return "compiled, it skips what is masked" if backend == "flex_attention" else "PyTorch's own, with a mask"


def _quickstart(readings: Readings) -> Iterator[Choice]:
    quick = readings.get("quickstart", {"failed": ""})
    if not has_failed(quick):
        compiled = "compiled" if quick["planned"]["compile"] else "not compiled"
        yield Choice("unimm quickstart", f"{quick['plan']}; {compiled}", quick["machine"], "--minutes")
