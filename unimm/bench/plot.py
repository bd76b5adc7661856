"""Bars side by side: what a benchmark measured, as a picture."""

from pathlib import Path


def plot_bars(path: Path, groups: dict[str, dict[str, float]], title: str, axis: str) -> None:
    """Write a PNG with a group of bars for each of `groups`, and in it a bar for each name, with its number above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = Figure(figsize=(max(5.0, 1.6 * len(groups) + 2), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [place + width * (index - (len(names) - 1) / 2) for place in range(len(groups))]
        heights = [group.get(name, 0.0) for group in groups.values()]
        bars = axes.bar(places, heights, width, label=name)
        axes.bar_label(bars, fmt=lambda number: f"{number:,.0f}" if number >= 100 else f"{number:.3g}", padding=2, fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(axis)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower center")  # beside the bars, not on them
    figure.savefig(path, dpi=150)
