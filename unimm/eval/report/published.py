"""What others have published about Janus and its rivals, with sources, to stand beside scores of ours: published.json.

A table there has a source and columns, which are benchmarks, or is `parts_of` one: its parts and then its whole. Figures of
papers and figures that somebody else reproduced are told apart (`kind`), and so are those that were read at their source,
quoted from another one, and recalled (`evidence`). Units are those of the source.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from unimm.runtime.atomic_files import read_json

FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Source:
    """title, where: what and where to find it. kind: "paper" or "reproduced". evidence: "read", "secondary" or "recalled"."""

    title: str
    where: str
    kind: str
    evidence: str


@dataclass(frozen=True)
class Benchmark:
    """unit: "share", "percent", "points" or "FID". parts: the names of what its score is made of."""

    title: str
    unit: str
    higher_is_better: bool
    parts: tuple[str, ...] = ()

    def of_share(self, score: float) -> float:
        """A score of ours, a share, in the unit of the tables."""
        return 100 * score if self.unit == "percent" else score


@dataclass(frozen=True)
class Figure:
    """A published number. value: None where only parts of it are known. settings: what it depends on, where that is said."""

    model: str
    benchmark: str
    value: float | None
    source: Source
    parts: dict[str, float] = field(default_factory=dict)
    settings: str = ""

    @property
    def origin(self) -> str:
        """The source in a line, with the settings."""
        source, about = self.source, f"; {self.settings}" if self.settings else ""
        return f"{source.title}: {source.where} ({source.kind}, {source.evidence}){about}"


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by name."""
    given = _content()["benchmarks"]
    return {name: Benchmark(**{**one, "parts": tuple(one.get("parts", ()))}) for name, one in given.items()}


@cache
def sources() -> dict[str, Source]:
    """Every source by name."""
    return {name: Source(**one) for name, one in _content()["sources"].items()}


def find_published(names: list[str]) -> list[Figure]:
    """All figures, by benchmark, of each the paper's own before what others reproduced.

    names: of benchmarks; none: all of them.

    Raises:
        ValueError: there is no such benchmark.
    """
    known = benchmarks()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"Nothing published is kept of '{unknown[0]}': choose among {', '.join(known)}.")
    places = {name: place for place, name in enumerate(names or known)}
    figures = [figure for table in _content()["tables"] for figure in _figures(table) if figure.benchmark in places]
    return sorted(figures, key=lambda one: (places[one.benchmark], one.source.kind != "paper"))


def _figures(table: dict[str, Any]) -> list[Figure]:
    source, settings, whole = sources()[table["source"]], table.get("settings", ""), table.get("parts_of")
    figures = []
    for model, values in table["rows"].items():
        if whole is not None:
            named = zip(benchmarks()[whole].parts, values[:-1], strict=True)
            parts = {name: value for name, value in named if value is not None}
            figures.append(Figure(model, whole, values[-1], source, parts, settings))
            continue
        named = zip(table["columns"], values, strict=True)
        figures += [Figure(model, name, value, source, {}, settings) for name, value in named if value is not None]
    return figures


@cache
def _content() -> dict[str, Any]:
    content = read_json(FILE)
    assert content is not None, "it comes with the package"
    return content
