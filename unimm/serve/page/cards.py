"""Pictures and grids as HTML: drawings while they are made and when they are done. All text is escaped here."""

import base64
import io
import json
from dataclasses import dataclass, field
from html import escape
from typing import Any

from PIL import Image

from unimm.runtime.provenance import write_image
from unimm.serve.page.words import Words


def data_uri(image: Image.Image, draft: bool = False) -> str:
    """A picture for an `src`: PNG, with where it comes from if it says so; a draft is smaller and less exact."""
    buffer = io.BytesIO()
    if draft:
        image.save(buffer, "WEBP", quality=85, method=0)
    else:
        write_image(image, buffer, format="PNG")
    return f"data:image/{'webp' if draft else 'png'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Card:
    """A drawing on the page.

    source: for the `src`.
    name: of its file when it is downloaded; empty: it cannot be, since it is not done.
    caption: lines below it. chance: the probability that it shows the prompt, from 0 to 1.
    """

    source: str
    alt: str
    name: str = ""
    caption: tuple[str, ...] = ()
    chance: float | None = None
    actions: dict[str, str] = field(default_factory=dict)


def picture(card: Card, words: Words) -> str:
    """A picture that can be enlarged."""
    image = f'<img src="{card.source}" alt="{escape(card.alt)}">'
    label = escape(f"{words('enlarge')}: {card.alt}")
    return f'<button class="pic" data-enlarge data-close="{words("close")}" aria-label="{label}">{image}</button>'


def show_card(card: Card, words: Words) -> str:
    """A picture with what belongs to it."""
    lines = "".join(f"<span>{escape(line)}</span>" for line in card.caption)
    meter = ""
    if card.chance is not None:
        said = escape(words("shows", percent=percent(card.chance)))
        meter = (
            f'<span class="chance" title="{said}"><i style="width:{card.chance:.1%}"></i><b>{percent(card.chance)} %</b></span>'
        )
    links = ""
    if card.name:
        help_text = escape(words("download_help"))
        download = f'<a href="#" data-download download="{card.name}" title="{help_text}">{words("download")}</a>'
        links = f'<span class="acts">{download}{"".join(map(_action, card.actions.items()))}</span>'
    return f'<figure class="card">{picture(card, words)}<figcaption>{meter}{lines}{links}</figcaption></figure>'


def _action(named: tuple[str, str]) -> str:
    value, label = named
    return f'<button class="link" data-act="{escape(value)}">{escape(label)}</button>'


def percent(chance: float) -> str:
    """A probability as a whole number of percent; one that is not certain is never called so."""
    whole = round(chance * 100)
    if whole == 100 and chance < 1:
        return ">99"
    return "<1" if whole == 0 and chance > 0 else str(whole)


def show_wall(cards: list[Card], words: Words, rest: list[Card] | None = None) -> str:
    """Cards side by side; `rest` are smaller ones below."""
    wall = f'<div class="wall n{min(len(cards), 4)}">{"".join(show_card(card, words) for card in cards)}</div>'
    if rest:
        small = "".join(show_card(card, words) for card in rest)
        wall += (
            f'<details class="rest" open><summary>{words("not_kept")}</summary><div class="wall small">{small}</div></details>'
        )
    return wall


def show_grid(rows: list[tuple[str, list[Card]]], columns: list[str], words: Words) -> str:
    """Cards as a table with titles of its rows and columns."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(title)}</th>{"".join(f"<td>{show_card(card, words)}</td>" for card in cards)}</tr>'
        for title, cards in rows
    )
    top = f'<table class="grid" style="--columns:{len(columns)}"><thead><tr><td></td>{head}</tr></thead>'
    return f'<div class="scroll">{top}<tbody>{body}</tbody></table></div>'


def note(text: str, **attributes: Any) -> str:
    """A quiet sentence where nothing is to be seen yet."""
    more = "".join(f' {name}="{escape(str(value))}"' for name, value in attributes.items())
    return f'<p class="note"{more}>{escape(text)}</p>'


def progress_line(text: str, share: float) -> str:
    """How far something is: a thin bar and a sentence, which screen readers follow."""
    done = " done" if share == 1 else ""
    return f'<div class="progress{done}" role="status"><i style="width:{share:.0%}"></i><span>{escape(text)}</span></div>'


def say_stopped(where: str, words: Words) -> str:
    """What the browser does when a drawing is stopped: the progress line in the element `where` says so."""
    text = json.dumps(words("stopped"), ensure_ascii=False)
    return f"() => document.querySelectorAll('#{where} .progress span').forEach((line) => {{ line.textContent = {text}; }})"
