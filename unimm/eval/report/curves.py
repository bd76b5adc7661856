"""The curves of a training as small pictures: one for each group of numbers in its metrics.jsonl, as SVG."""

import io
import json
import math
from pathlib import Path

Series = dict[str, list[tuple[int, float]]]
"""Numbers by name, each with the steps it was reported at."""

FIRST_GROUPS = ("loss", "accuracy", "validation", "codes")
"""What a reader wants to see first; the others follow in the order of the alphabet."""

SMOOTHING = 0.85
"""Weight of the past in the smooth line over many noisy points."""

GREY = "#7a8290"
PALETTE = ("#2f6fed", "#e5703a", "#2f9e62", "#9a5bd6", "#d1495b", "#138d9b", "#b08a1e")


def read_metrics(path: Path) -> Series:
    """The numbers of a metrics.jsonl. A last line that was cut off is left out."""
    series: Series = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            numbers = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = numbers.pop("step", None)
        for name, value in numbers.items():
            if step is not None and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((step, float(value)))
    return series


def draw_curves(series: Series) -> dict[str, str]:
    """An SVG for each group: "loss" holds loss/text and loss/codes, and so on. Groups of a single point are left out."""
    groups: dict[str, Series] = {}
    for name, points in series.items():
        group, _, rest = name.partition("/")
        if len(points) > 1:
            groups.setdefault(group, {})[rest or group] = points
    order = sorted(groups, key=lambda group: (FIRST_GROUPS.index(group) if group in FIRST_GROUPS else 99, group))
    return {group: _draw(groups[group]) for group in order}


def _draw(series: Series) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text stays text: it is sharp at any size, and small. Greys are read on light and dark pages.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unimm", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(5, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for index, (name, points) in enumerate(series.items()):
            steps, values = zip(*points, strict=True)
            colour = PALETTE[index % len(PALETTE)]
            if len(values) > 30:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                values = smooth(list(values))
            axes.plot(steps, values, color=colour, linewidth=1.8, label=name)
        if _spans_decades(series):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        for part in (*axes.spines.values(),):
            part.set_color(GREY)
        axes.tick_params(colors=GREY, which="both")
        axes.xaxis.label.set_color(GREY)
        axes.grid(alpha=0.15)
        axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def smooth(values: list[float], weight: float = SMOOTHING) -> list[float]:
    """The exponential mean, without a bias towards the first value (as Adam corrects it)."""
    mean, total, smoothed = 0.0, 0.0, []
    for value in values:
        mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        smoothed.append(mean / total)
    return smoothed


def _spans_decades(series: Series) -> bool:
    values = [value for points in series.values() for _, value in points]
    return min(values) > 0 and max(values) > 30 * min(values)
