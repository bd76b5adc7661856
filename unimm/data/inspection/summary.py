"""What an inspection says of a data set, as JSON: numbers, problems by reason, groups of near-duplicates, warnings."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimm.data.inspection.measure import IMAGE, PARTS, RECORD, TEXTS, Problem, texts_of
from unimm.data.inspection.near_duplicates import duplicate_groups
from unimm.data.inspection.run import Measured
from unimm.data.records import key_at, unchecked

NUM_BINS = 24
"""Bars of a histogram; beyond the 99th percentile all is in the last one."""

NAMED = 10
"""Keys of a reason that the summary names; problems.jsonl has all."""

SHOWN_GROUPS = 50
"""Groups of near-duplicates in the summary; duplicates.jsonl has all."""

SHOWN_CAPTIONS = 5
LONGEST_SHOWN = 120
OFTEN = 0.01
"""The share of all captions from which on one is named as said often."""

SCRIPTS_OF = {"en": "Latin", "zh": "Han"}
"""The script that a language is written in, where texts say another they are named."""


@dataclass(frozen=True)
class Summary:
    """The summary of a data set, JSON-able; all its problems; all its groups of near-duplicates, as indices of records."""

    told: dict[str, Any]
    problems: list[Problem]
    groups: list[list[int]]


def summarize(measured: Measured) -> Summary:
    """Put what was measured of a data set into words and numbers."""
    counts, numbers = measured.counts, measured.numbers
    groups = _record_groups(measured)
    images = _images(measured)
    told = {
        "records": measured.total,
        "inspected": len(measured.indices),
        "readable": counts["records"],
        "records_with": {name: counts[name] for name in PARTS if counts[name]},
        "languages": _languages(counts),
        "tokens": {kind: spread(measured.tokens[kind]) for kind in TEXTS if len(measured.tokens.get(kind, ()))},
        "sources": {name: _source(name, measured) for name in measured.lengths},
        "images": images,
        "bad_records": _by_reason(one for one in measured.problems if one.about == RECORD),
        "bad_images": _by_reason(one for one in measured.problems if one.about == IMAGE),
        "near_duplicates": {
            "groups": len(groups),
            "records": sum(map(len, groups)),
            "largest": [_group(group, measured) for group in groups[:SHOWN_GROUPS]],
        },
        "captions": _captions(numbers, measured),
    }
    return Summary(told | {"warnings": list(_warnings(told, measured))}, measured.problems, groups)


def spread(values: np.ndarray) -> dict[str, Any]:
    """The distribution of numbers: quantiles, mean, total and a histogram whose last bar also holds what is larger."""
    if not len(values):
        return {"count": 0}
    quantiles = {"p5": 5, "median": 50, "p95": 95, "p99": 99}
    low, high = float(values.min()), float(max(np.percentile(values, 99), values.min() + 1))
    edges = np.linspace(low, high, NUM_BINS + 1)
    return {
        "count": len(values),
        "min": int(values.min()),
        **{name: round(float(np.percentile(values, share)), 1) for name, share in quantiles.items()},
        "max": int(values.max()),
        "mean": round(float(values.mean()), 2),
        "total": int(values.sum(dtype=np.int64)),
        "histogram": {
            "from": low,
            "to": high,
            "counts": np.histogram(values.clip(low, high), edges)[0].tolist(),
        },
    }


def _languages(counts: dict[str, int]) -> dict[str, dict[str, int]]:
    """Texts by the language that records name, and by the script that they are written in."""
    found: dict[str, dict[str, int]] = {}
    for name, number in sorted(counts.items(), key=lambda pair: -pair[1]):
        if name.startswith("language "):
            language, _, script = name.removeprefix("language ").rpartition("/")
            found.setdefault(language, {})[script] = number
    return found


def _source(name: str, measured: Measured) -> dict[str, Any]:
    lengths, refused = measured.lengths[name], [one for one in measured.problems if one.about == name]
    told: dict[str, Any] = {"positions": spread(lengths), "cut": measured.counts[f"cut {name}"], "refused": _by_reason(refused)}
    if name in measured.longest:
        length, index = measured.longest[name]
        told["longest"] = {"key": key_at(measured.measure.dataset, -index), "positions": length}
    return told


def _images(measured: Measured) -> dict[str, Any]:
    counts, numbers = measured.counts, measured.numbers
    told: dict[str, Any] = {"count": counts["images"], "decoded": len(numbers["width"])}
    if not len(numbers["width"]):
        return told
    width, height, size = numbers["width"], numbers["height"], numbers["bytes"]
    sizes, often = np.unique(np.stack([width, height], axis=1), axis=0, return_counts=True)
    template = measured.measure.template
    if (tiles := template.prompt_format.tiles) is not None:
        grids = [tiles.grid(wide, high, template.image_size) for wide, high in sizes.tolist()]
        told["tiles"] = spread(np.repeat([columns * rows for columns, rows in grids], often))
    return told | {
        "formats": _named(counts, "format "),
        "modes": _named(counts, "mode "),
        "width": spread(width),
        "height": spread(height),
        "aspect_ratio_percent": spread(np.rint(100 * width / height).astype(np.int64)),
        "bytes": spread(size[size >= 0]),
        "sizes": [[*sizes[place].tolist(), int(often[place])] for place in np.argsort(-often, kind="stable")[:NAMED]],
        "smaller_than_the_model_sees": int((np.maximum(width, height) < template.image_size).sum()),
    }


def _named(counts: dict[str, int], prefix: str) -> dict[str, int]:
    found = {name.removeprefix(prefix): number for name, number in counts.items() if name.startswith(prefix)}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _by_reason(problems: Iterable[Problem]) -> dict[str, Any]:
    """Problems by kind: an example of the reason, how many records, and the first keys."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    reasons = [
        {"reason": group[0].reason, "count": len(group), "keys": [one.key or f"record {one.place}" for one in group[:NAMED]]}
        for group in sorted(kinds.values(), key=len, reverse=True)
    ]
    return {"count": sum(reason["count"] for reason in reasons), "reasons": reasons}


def _record_groups(measured: Measured) -> list[list[int]]:
    """Groups of records with near-duplicates among their images; images of one record alone are no group."""
    owners = measured.numbers["owner"]
    groups = [
        np.unique(owners[group]).tolist() for group in duplicate_groups(measured.numbers["bits"], measured.numbers["colours"])
    ]
    return [group for group in groups if len(group) > 1]


def _group(group: list[int], measured: Measured) -> dict[str, Any]:
    return {"records": len(group), "keys": [key_at(measured.measure.dataset, index) for index in group[:NAMED]]}


def _captions(numbers: dict[str, np.ndarray], measured: Measured) -> dict[str, Any]:
    """How many different captions there are, and those that are said most often."""
    said, first, often = np.unique(numbers["said"], return_index=True, return_counts=True)
    commonest = [place for place in np.argsort(-often, kind="stable")[:SHOWN_CAPTIONS] if often[place] > 1]
    shown = []
    for place in commonest:
        index = int(numbers["said_by"][first[place]])
        own = np.flatnonzero(numbers["said_by"] == index)
        turn = int(first[place] - own[0])
        captions = [text for kind, _, text in texts_of(unchecked(measured.measure.dataset, index)) if kind == "caption"]
        text = captions[turn] if turn < len(captions) else ""
        shown.append({"text": text[:LONGEST_SHOWN], "count": int(often[place])})
    return {"count": len(numbers["said"]), "different": len(said), "often": shown}


def _warnings(told: dict[str, Any], measured: Measured) -> Iterable[str]:
    """What a person should know before a training, a sentence each."""
    yield from _problem_warnings(told, measured)
    yield from _text_warnings(told, measured)
    duplicates = told["near_duplicates"]
    if duplicates["records"] > OFTEN * told["inspected"]:
        yield f"{duplicates['records']:,} records are near-duplicates of others (groups: {duplicates['groups']:,})."
    if small := told["images"].get("smaller_than_the_model_sees", 0):
        yield f"{small:,} images are smaller than the {measured.measure.template.image_size} px that the model looks at."


def _problem_warnings(told: dict[str, Any], measured: Measured) -> Iterable[str]:
    for name, what in (("bad_records", "records cannot be read"), ("bad_images", "images cannot be read")):
        if number := told[name]["count"]:
            commonest = told[name]["reasons"][0]
            yield f"{number:,} {what}; the commonest reason: {commonest['reason']} ({commonest['keys'][0]})."
    for name, source in told["sources"].items():
        if number := source["refused"]["count"]:
            reason = source["refused"]["reasons"][0]["reason"]
            yield f"The source '{name}' refuses {number:,} records; the commonest reason: {reason}."
        if source["cut"]:
            most = measured.measure.template.max_positions
            yield f"{source['cut']:,} sequences of '{name}' are longer than {most:,} positions and lose their end."


def _text_warnings(told: dict[str, Any], measured: Measured) -> Iterable[str]:
    counts, captions = measured.counts, told["captions"]
    if counts["empty texts"]:
        yield f"{counts['empty texts']:,} texts are empty."
    if number := counts["texts with the name of a special token"]:
        yield f"{number:,} texts hold the name of a special token; it is read as plain text."
    for language, scripts in told["languages"].items():
        own = SCRIPTS_OF.get(language)
        others = sum(number for script, number in scripts.items() if script not in (own, "other"))
        if own and others:
            yield f"{others:,} texts are said to be '{language}' and are not written in {own} letters."
    if captions["often"] and captions["often"][0]["count"] > max(1, OFTEN * captions["count"]):
        often = captions["often"][0]
        yield f"One caption is said {often['count']:,} times: {often['text']!r}."
