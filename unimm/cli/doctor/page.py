"""How `unimm doctor` looks: sections of two columns, what unimm would use, and at the end, where the eye is, what is wrong."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from unimm.diagnosis.readings import gib

WIDTH = 110
"""Characters of a line at most, and where there is no terminal."""

INDENT, LABEL = 2, 24

STYLES = {"broken": "bold red", "problem": "bold yellow", "note": "cyan"}
DIM, FAILED = "dim", "could not be read: "

Reading = dict[str, Any]
Row = tuple[str, str]


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Inside, a terminal shows what the function that it yields was called with last."""
    console = Console(stderr=True)
    with console.status("Looking at the machine ...") as status:
        yield lambda name: status.update(f"Looking at {WAITED_FOR.get(name, name)} ...")


WAITED_FOR = {
    "kernels": "our C++ kernels",
    "speeds": "how fast it computes",
    "choices": "what unimm would use",
    "demo": "a picture, as the demo model",
    "compile": "torch.compile, which takes up to a minute the first time",
    "quickstart": "what a quickstart would reach",
}


def show(diagnosis: dict[str, Any], console: Console | None = None) -> None:
    """Print the page: with colours on a terminal, plain elsewhere."""
    console = console or _console()
    readings = diagnosis["readings"]
    console.print(_title(diagnosis))
    _section(console, "Machine", _machine(readings))
    _speeds(console, readings["speeds"])
    _section(console, "Software", _software(readings))
    _section(console, "Disk", _disk(readings))
    _section(console, "Settings", _settings(readings["environment"]))
    _choices(console, diagnosis["choices"])
    _findings(console, diagnosis)


def _console() -> Console:
    plain = Console(highlight=False)
    return Console(highlight=False, width=min(plain.width, WIDTH) if plain.is_terminal else WIDTH)


def _title(diagnosis: dict[str, Any]) -> Text:
    own = diagnosis["readings"]["unimm"]
    version = "" if "failed" in own else f"  unimm {own['version'] or '(not installed)'}"
    commit = f", commit {own['commit']}" if own.get("commit") else ""
    return Text.assemble(
        ("unimm doctor", "bold"), f"{version}{commit}", (f"  {diagnosis['date'][:16].replace('T', ' ')} UTC", DIM)
    )


def _section(console: Console, heading: str, rows: Iterable[Row]) -> None:
    """A heading and its rows, of which those without a value are left out; nothing where there are none."""
    filled = [(label, value) for label, value in rows if value]
    if filled:
        console.print(Text(f"\n{heading}", "bold"))
    for label, value in filled:
        _row(console, Text(label, DIM), Text(value, "red" if value.startswith(FAILED) else ""))


def _row(console: Console, label: Text, value: Text) -> None:
    """Two columns; wrapped here, since rich fills lines up with blanks."""
    width = max(20, console.width - INDENT - LABEL)
    for number, line in enumerate(value.wrap(console, width)):
        line.rstrip()
        left = label if number == 0 else Text()
        gap = " " * max(1, LABEL - left.cell_len)
        console.print(Text.assemble(" " * INDENT, left, gap, line), soft_wrap=True)


def _shown(readings: dict[str, Reading], name: str, show: Callable[[Reading], str]) -> str:
    reading = readings[name]
    return f"{FAILED}{reading['failed']}" if "failed" in reading else show(reading)


def _machine(readings: dict[str, Reading]) -> Iterator[Row]:
    yield "system", _shown(readings, "system", _system)
    yield "processor", _shown(readings, "processor", lambda one: one["name"])
    yield "instructions", _shown(readings, "processor", _instructions)
    yield "cores", _shown(readings, "threads", _cores)
    yield "thread settings", _shown(readings, "threads", _thread_settings)
    yield "memory", _shown(readings, "memory", _memory)
    yield "GPU", _shown(readings, "devices", lambda one: _cards(one, readings["gpus"]))


def _system(one: Reading) -> str:
    extras = [name for name, is_so in (("in a container", one["is_container"]), ("WSL", one["is_wsl"])) if is_so]
    return ", ".join(filter(None, [one["name"], one["kernel"], one["architecture"], one["libc"], *extras]))


def _instructions(one: Reading) -> str:
    if one["instructions"] is None:
        return ""
    has = [name for name, is_there in one["instructions"].items() if is_there]
    lacks = [name for name, is_there in one["instructions"].items() if not is_there]
    asked = f"; UNIMM_CPU={one['UNIMM_CPU']}" if one["UNIMM_CPU"] else ""
    return (", ".join(has) or "none known") + (f" (no {', '.join(lacks)})" if lacks else "") + asked


def _cores(one: Reading) -> str:
    quota = "" if one["quota"] is None else f", a quota of {one['quota']:g}"
    return f"{one['usable']} usable of {one['cores']}{quota}; about {one['busy']:.1f} busy with other work"


def _thread_settings(one: Reading) -> str:
    ours = [f"{name}={value}" for name, value in one["settings"].items() if name in one["set_by_unimm"]]
    given = [f"{name}={value}" for name, value in one["settings"].items() if name not in one["set_by_unimm"]]
    return "; ".join(filter(None, [" ".join(given), f"{' '.join(ours)} (by unimm)" if ours else ""])) or "none"


def _memory(one: Reading) -> str:
    parts = [f"{gib(one['available'])} free of {gib(one['total'])}"]
    parts += [f"cgroup limit {gib(one['cgroup_limit'])}"] if one["cgroup_limit"] is not None else []
    parts += [f"swap {gib(one['swap'])}" if one["swap"] else "no swap"]
    parts += [f"/dev/shm {gib(one['shared'])}"] if one["shared"] is not None else []
    return "; ".join(parts)


def _cards(one: Reading, gpus: Reading) -> str:
    driver = f"; driver {gpus['nvidia'][0]['driver']}" if gpus.get("nvidia") else ""
    lines = [_card(number, card) for number, card in enumerate(one["cards"])]
    lines += ["mps: Apple's GPU"] if one["has_mps"] else []
    return ("\n".join(lines) or "none that torch can use") + driver


def _card(number: int, card: Reading) -> str:
    if "failed" in card:
        return f"cuda:{number}: {FAILED}{card['failed']}"
    bf16 = "bfloat16" if card["has_bf16"] else "no bfloat16"
    memory = f"{gib(card['free'])} free of {gib(card['total'])}"
    return f"cuda:{number}: {card['name']}, capability {card['capability']}, {bf16}, {memory}"


def _speeds(console: Console, speeds: Reading) -> None:
    """A small table: devices and dtypes down, product and convolution across."""
    if "failed" in speeds:
        _row(console, Text("speeds", DIM), Text(f"{FAILED}{speeds['failed']}", "red"))
        return
    console.print(Text("\nSpeed, as probed", "bold"))
    _row(console, Text("GFLOP/s", DIM), Text(f"{'product':>10}{'convolution':>14}", DIM))
    for device, dtypes in speeds.items():
        for dtype, one in dtypes.items():
            numbers = (
                f"{'not there':>10}" if "failed" in one else f"{_speed(one['product']):>10}{_speed(one['convolution']):>14}"
            )
            _row(console, Text(f"{device} {dtype}", DIM), Text(numbers))


def _speed(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _software(readings: dict[str, Reading]) -> Iterator[Row]:
    yield "python", _shown(readings, "python", lambda one: f"{one['version']}, {one['executable']}")
    yield "torch", _shown(readings, "torch", _torch)
    yield "packages", _shown(readings, "packages", _packages)
    yield "not installed", _shown(readings, "packages", _missing)
    yield "C++ compiler", _shown(readings, "compiler", lambda one: one["version"] or one["why_not"] or "")
    yield (
        "Python's headers",
        _shown(readings, "python", lambda one: "here" if one["has_headers"] else f"not here: {one['headers']}"),
    )
    yield "our C++ kernels", _shown(readings, "kernels", _kernels)
    yield "torch.compile", _shown(readings, "compile", lambda one: one["why_not"] or f"works ({one['seconds']:g} s)")
    yield (
        "demo model",
        _shown(readings, "demo", lambda one: f"says of a large red circle: {one['said']} ({one['seconds']:g} s)"),
    )
    yield "hub", _shown(readings, "hub", _hub)


def _torch(one: Reading) -> str:
    build = f"for CUDA {one['cuda']}" if one["cuda"] else f"for ROCm {one['hip']}" if one["hip"] else "for CPUs"
    return f"{one['version']} {build}; CPU kernels for {one['kernels_for']}{'' if one['has_onednn'] else '; without oneDNN'}"


def _packages(one: Reading) -> str:
    return ", ".join(f"{name} {version}" for name, version in one["versions"].items() if version and name != "torch")


def _missing(one: Reading) -> str:
    return ", ".join(name for name, version in one["versions"].items() if not version)


def _kernels(one: Reading) -> str:
    reasons = {name: kernel["why_not"] for name, kernel in one["kernels"].items()}
    if len(set(reasons.values())) == 1:
        reason = next(iter(reasons.values()))
        return f"{', '.join(reasons)}: {reason or 'compiled'}"
    return "; ".join(f"{name}: {reason or 'compiled'}" for name, reason in reasons.items())


def _hub(one: Reading) -> str:
    more = "" if one["is_counted"] else "more than "
    held = f"{more}{gib(one['bytes'])}, {one['num_repos']} models and data sets" if one["exists"] else "an empty cache"
    token = "no token" if one["token"] is None else f"a token (from {one['token']})"
    return f"{held}; {'offline' if one['is_offline'] else 'online'}; {token}; {one['endpoint']}"


def _disk(readings: dict[str, Reading]) -> Iterator[Row]:
    disks = readings["disks"]
    if "failed" in disks:
        yield "folders", f"{FAILED}{disks['failed']}"
        return
    for use, folder in disks["folders"].items():
        if "failed" in folder:
            yield use, f"{FAILED}{folder['failed']}"
        else:
            state = f"; cannot be written: {folder['why_not']}" if folder["why_not"] else ""
            yield use, f"{folder['path']}: {gib(folder['free'])} free of {gib(folder['total'])}{state}"


def _settings(environment: Reading) -> Iterable[Row]:
    return environment.items()


def _choices(console: Console, choices: list[dict[str, str]]) -> None:
    if choices:
        console.print(Text("\nWhat unimm would use, why, and how to say otherwise", "bold"))
    for one in choices:
        _row(console, Text(one["what"], DIM), Text.assemble(one["value"], (f": {one['why']} ({one['setting']})", DIM)))


def _findings(console: Console, diagnosis: dict[str, Any]) -> None:
    if diagnosis["findings"]:
        console.print(Text("\nFindings", "bold"))
    for one in diagnosis["findings"]:
        label = Text.assemble((one["level"].ljust(9), STYLES[one["level"]]), (one["about"], DIM))
        _row(console, label, Text(one["what"]))
        if one["mend"]:
            _row(console, Text(), Text.assemble(("-> ", STYLES[one["level"]]), one["mend"]))
    console.print(_verdict(diagnosis))


def _verdict(diagnosis: dict[str, Any]) -> Text:
    levels = [one["level"] for one in diagnosis["findings"]]
    counts = [(level, levels.count(level)) for level in STYLES if level in levels]
    counted = ", ".join(f"{number} {level}{'s' if number > 1 and level != 'broken' else ''}" for level, number in counts)
    if not diagnosis["works"]:
        return Text(f"\nunimm cannot work here before what is broken is mended ({counted}).", "bold red")
    return Text(f"\nunimm works here ({counted})." if levels else "\nunimm works here, and nothing is wrong.", "bold green")
