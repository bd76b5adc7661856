"""Plots of what a model looked at and chose from: each takes a trace and gives a PIL image, for notebooks and pages.

    plot_looks           the image, and for every word of an answer where the model looked
    plot_prompt_words    a drawing, and for every word of its prompt which patches looked at it
    plot_code_lens       what a drawing would be if each layer were the last, and when its codes were settled
    plot_guidance        what one code was chosen from: with the prompt, without it, guided

matplotlib is loaded when something is plotted, and no state of its own is touched: any thread may plot.
"""

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from unimm.data.image import to_pil
from unimm.inference.engine_parts import ImageCoder
from unimm.inference.trace import GuidanceTrace, Patches, Trace, Word
from unimm.sequence import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 1.7
"""Inches of one picture."""

MOST_WORDS = 32
"""Words that are plotted; of longer texts the first ones."""

CHINESE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback", "SimHei", "PingFang SC")


def plot_looks(trace: Trace, words: list[Word] | None = None, layers: slice | None = None, image: int = 0) -> Image.Image:
    """For each word of an answer, how much each patch of the image was looked at when it was chosen.

    Args:
        trace: with attention, such as `Engine.trace_answer` gives.
        words: default: those of the last segment.
        layers: whose mean is shown; default: of all.
        image: which image of the sequence.

    Each heat map has its own scale, from nothing to its strongest patch; the number is the share of all attention that the
    image had. ValueError: there is no such image, no word, or no attention.
    """
    patches = _image(trace, image)
    shown = (trace.words() if words is None else words)[:MOST_WORDS]
    if not shown:
        raise ValueError("There is no word to show: the sequence does not end with text.")
    picture = _picture(patches)
    maps = [(word.text, trace.looked_at(word.positions, patches.positions, layers).mean(0)) for word in shown]
    return _heat_maps(picture, "the image", [(f"{text}  {float(one.sum()):.0%}", _grid(one, patches)) for text, one in maps])


def plot_prompt_words(trace: Trace, prompt: str, drawing: Image.Image, layers: slice | None = None) -> Image.Image:
    """For each word of a prompt, how much each patch of the drawing looked at it when it was chosen, among all words.

    Args:
        trace: with attention, such as `Engine.trace_drawing` gives.
        drawing: the picture of the codes (`Engine.decode_codes`).

    Shares are of the prompt's words together: what looks at the beginning of the sequence, as attention does where it has
    nothing to look for, is left out. Raises ValueError as `plot_looks`.
    """
    patches = _codes(trace)
    words = trace.words_of(prompt)[:MOST_WORDS]
    looks = [trace.looked_at(patches.positions, word.positions, layers).sum(1) for word in words]
    shares = torch.stack(looks) / torch.stack(looks).sum(0, keepdim=True).clamp(min=1e-9)
    titles = [f"{word.text}  {float(share.mean()):.0%}" for word, share in zip(words, shares, strict=True)]
    maps = [(title, _grid(share, patches)) for title, share in zip(titles, shares, strict=True)]
    return _heat_maps(drawing, "the drawing", maps)


def plot_code_lens(trace: Trace, coder: ImageCoder, num_pictures: int = 6) -> Image.Image:
    """The logit lens on codes: pictures of the likeliest codes by layer, and how probable each layer finds the codes there are.

    Args:
        trace: of a drawing, with hidden states.
        coder: the engine's (`engine.coder`).
        num_pictures: layers that are decoded, evenly spread.
    """
    if trace.hidden is None:
        raise ValueError("This trace has no hidden states: make it with hidden=True.")
    patches, last = _codes(trace), len(trace.hidden) - 1
    codes_n = torch.from_numpy(patches.segment.content_ids.copy())
    layers = sorted({round(place) for place in np.linspace(0, last, min(num_pictures, last + 1))})
    likeliest, probabilities = [], []
    for layer in layers:  # one at a time: all together take a gigabyte of a large model
        logits_nV = trace.lens(Kind.CODES, layer)[-len(codes_n) :]
        likeliest.append(logits_nV.argmax(-1))
        probabilities.append(logits_nV.softmax(-1).gather(1, codes_n[:, None])[:, 0])
    coder = coder if trace.grid is None else coder.sized(trace.grid)
    pictures = coder.decode(torch.stack(likeliest))
    figure, axes = _figure(len(layers) + 1, 2)
    for ax, layer, picture in zip(axes[0], layers, pictures, strict=False):
        ax.imshow(picture)
        ax.set_title("the model" if layer == last else f"before layer {layer}", fontsize=8)
    for ax, found in zip(axes[1], probabilities, strict=False):
        ax.imshow(_grid(found, patches), vmin=0, vmax=1, cmap="viridis")
        ax.set_title(f"p = {float(found.mean()):.2f}", fontsize=8)
    axes[0][len(layers)].imshow(coder.decode(codes_n)[0])
    axes[0][len(layers)].set_title("the drawing", fontsize=8)
    return _render(figure)


def plot_guidance(guidance: GuidanceTrace, place: int, top: int = 10) -> Image.Image:
    """What the code at a place of a drawing (0, 1, ... in reading order) was chosen from: the likeliest codes with the prompt,
    without it and guided, as probabilities at temperature 1; the one that was chosen is marked.

    ValueError: there is no such place.
    """
    if not 0 <= place < len(guidance.conditional):
        raise ValueError(f"The drawing has places 0 to {len(guidance.conditional) - 1}, not {place}.")
    rows = {"with the prompt": guidance.conditional, "without": guidance.unconditional, "guided": guidance.guided}
    likely = {name: logits[place].softmax(-1) for name, logits in rows.items()}
    order = likely["guided"].topk(min(top, guidance.conditional.shape[1])).indices.tolist()
    chosen = [one.segment for one in guidance.sequence.spans() if one.segment.kind == Kind.CODES][-1].ids[place]
    order = order if chosen in order else [*order[:-1], chosen]
    figure, axes = _figure(1, 1, (6.0, 2.6), bare=False)
    ax = axes[0][0]
    for number, (name, probabilities) in enumerate(likely.items()):
        ax.bar(np.arange(len(order)) + 0.27 * (number - 1), probabilities[order].numpy(), width=0.27, label=name)
    ax.set_xticks(range(len(order)), [f"[{code}]" if code == chosen else str(code) for code in order], fontsize=8)
    ax.set_title(f"code {place}: guidance {guidance.scale:g}; chosen: [{chosen}]", fontsize=9)
    ax.set_ylabel("probability", fontsize=8)
    ax.legend(fontsize=8, frameon=False)
    return _render(figure)


def _image(trace: Trace, number: int) -> Patches:
    if not 0 <= number < len(trace.images):
        raise ValueError(f"The sequence has {len(trace.images)} images, so there is no image {number}.")
    return trace.images[number]


def _codes(trace: Trace) -> Patches:
    """The codes that were drawn: the last ones."""
    found = [patches for patches in trace.images if patches.segment.kind == Kind.CODES]
    if not found:
        raise ValueError("The sequence has no codes: trace a drawing, with engine.trace_drawing.")
    return found[-1]


def _picture(patches: Patches) -> Image.Image | None:
    """What the model looked at, as it did: shrunk, and padded to a square; None where only features or codes are there."""
    pixels = patches.segment.pixels
    return None if pixels is None else to_pil(pixels)


def _grid(values: torch.Tensor, patches: Patches) -> np.ndarray:
    return values.reshape(patches.height, patches.width).float().numpy()


def _heat_maps(picture: Image.Image | None, name: str, maps: list[tuple[str, np.ndarray]]) -> Image.Image:
    """The picture, and behind it every heat map over it."""
    columns = min(len(maps) + (picture is not None), 6)
    figure, axes = _figure(columns, -(-(len(maps) + (picture is not None)) // columns))
    places = iter(ax for row in axes for ax in row)
    if picture is not None:
        ax = next(places)
        ax.imshow(picture)
        ax.set_title(name, fontsize=9)
    for (title, heat), ax in zip(maps, places, strict=False):
        if picture is not None:
            ax.imshow(picture.convert("L"), cmap="gray", extent=(0, 1, 1, 0), vmin=0, vmax=255)
        ax.imshow(heat, cmap="inferno", alpha=0.6, extent=(0, 1, 1, 0), vmin=0, vmax=max(float(heat.max()), 1e-9))
        ax.set_title(title.replace("$", r"\$"), fontsize=9)
    return _render(figure)


def _figure(columns: int, rows: int, size: tuple[float, float] | None = None, bare: bool = True) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (CELL * columns, (CELL + 0.25) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.tick_params(labelsize=8)
        ax.set_axis_off() if bare else ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _render(figure: "Figure") -> Image.Image:
    from matplotlib import font_manager
    from matplotlib.text import Text

    known = {font.name for font in font_manager.fontManager.ttflist}
    for text in figure.findobj(Text):
        text.set_fontfamily(["DejaVu Sans", *(name for name in CHINESE_FONTS if name in known)])
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(BytesIO(buffer.getvalue())).convert("RGB")
