"""`unimm demo`: what the model that comes with the package makes of a few pictures and prompts, on one sheet.

    out/photo.png, photo-2.png, photo-3.png, digit.png  pictures that it looks at, to try other commands on
    out/drawing-1.png ...                               what it draws
    out/demo.png                                        all of it on one sheet

Nothing is downloaded. Captions and answers are always the same, and drawings for a seed.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import typer
from PIL import Image, ImageDraw

from unimm.checkpoints.demo_examples import LIMITS, PROMPTS, QUESTIONS, demo_pictures
from unimm.eval.report.pictures import find_font, has_chinese_font, wrap
from unimm.inference.engine import Engine, load
from unimm.runtime.provenance import write_image

IN_CHINESE = "photo-2.png"
SEED = 7

SIDE, GAP, LINE, SPACE = 192, 28, 20, 8
PAPER, INK, FAINT, GREEN = (252, 252, 250), (30, 30, 34), (125, 125, 132), (24, 128, 76)


@dataclass(frozen=True)
class Card:
    """A picture of the sheet, and the paragraphs below it: texts with their colours, a space between paragraphs."""

    image: Image.Image
    paragraphs: tuple[tuple[tuple[str, tuple[int, int, int]], ...], ...]


def run(out: Path, seed: int = SEED, device: str | None = None, show: bool = True, page: bool = True) -> None:
    """Write the pictures and the sheet into a folder, and say what they are.

    seed: of the drawings. device: as of `unimm.load`.
    show: where there is a screen, open the page, and serve it until Ctrl-C; without `page` or its packages, open the sheet.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = demo_pictures()
    for name, picture in pictures.items():
        picture.save(out / name)
    engine = load("demo", device)
    looked = _look(engine, out, pictures)
    drawn = _draw(engine, out, seed)
    sheet = draw_sheet({"The demo model looks, and says what it sees": looked, "It draws what it is asked for": drawn})
    sheet.save(out / "demo.png")
    typer.echo(f'\n{LIMITS}\n\nTry it: unimm answer {out / "photo.png"} "What colour is the square?"')
    typer.echo(out / "demo.png")
    if show and has_screen():
        if page and find_spec("gradio") and find_spec("uvicorn"):
            open_page(engine)
        else:
            typer.launch(str(out / "demo.png"))


def open_page(engine: Engine) -> None:
    """Serve the web page to this machine until Ctrl-C, and open a browser there."""
    from unimm.cli.serve import check_extra, listen
    from unimm.cli.serve import run as serve
    from unimm.serve.guard import LOCAL_NAMES
    from unimm.serve.settings import ServerSettings

    check_extra(page=True)
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        typer.launch(f"http://127.0.0.1:{port}/")  # the browser waits until it is answered
        # Who tries it out does not wait at Ctrl-C for a drawing to be finished.
        settings = ServerSettings(port=port, served_model_names=("demo",), allowed_hosts=LOCAL_NAMES, drain_seconds=2.0)
        serve(engine, settings, listener)


def _look(engine: Engine, out: Path, pictures: dict[str, Image.Image]) -> list[Card]:
    images = list(pictures.values())
    captions = engine.caption(images)
    chinese = engine.caption(pictures[IN_CHINESE], language="zh")
    answers = engine.answer(images, [QUESTIONS[name] for name in pictures])
    cards = []
    for (name, picture), caption, answer in zip(pictures.items(), captions, answers, strict=True):
        question = QUESTIONS[name]
        more = [chinese] if name == IN_CHINESE else []
        typer.echo("\n".join([f"{out / name}: {caption}", *(f"  {line}" for line in more), f"  {question} {answer}"]))
        seen = tuple((text, INK) for text in (caption, *(more if has_chinese_font() else [])))
        cards.append(Card(picture, (seen, ((question, FAINT), (answer, GREEN)))))
    return cards


def _draw(engine: Engine, out: Path, seed: int) -> list[Card]:
    from unimm.cli.progress import drawing_bar

    cards = []
    with drawing_bar() as advance:
        drawings = engine.generate_images(list(PROMPTS), seed=seed, callback=advance)
    for number, (prompt, (image,)) in enumerate(zip(PROMPTS, drawings, strict=True), start=1):
        path = out / f"drawing-{number}.png"
        write_image(image, path)
        typer.echo(f"{path}: {prompt}")
        cards.append(Card(image, (((prompt, INK),),)))
    return cards


def draw_sheet(rows: dict[str, list[Card]]) -> Image.Image:
    """Rows of pictures under their titles, with what belongs to each below it, and the model's limits at the foot."""
    below = {title: [_set_lines(card) for card in cards] for title, cards in rows.items()}
    heights = {title: max(lines[-1][0] + LINE for lines in row) for title, row in below.items()}
    width = GAP + max(len(cards) for cards in rows.values()) * (SIDE + GAP)
    foot = wrap(LIMITS, width - 2 * GAP, most=4)
    height = sum(GAP + 32 + SIDE + 10 + needed for needed in heights.values()) + GAP + len(foot) * LINE + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, top = ImageDraw.Draw(sheet), GAP
    for title, cards in rows.items():
        pen.text((GAP, top), title, INK, find_font())
        top += 32
        for column, (card, lines) in enumerate(zip(cards, below[title], strict=True)):
            left = GAP + column * (SIDE + GAP)
            sheet.paste(card.image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
            for offset, line, colour in lines:
                pen.text((left, top + SIDE + 10 + offset), line, colour, find_font())
        top += SIDE + 10 + heights[title] + GAP
    for number, line in enumerate(foot):
        pen.text((GAP, top + number * LINE), line, FAINT, find_font())
    return sheet


def _set_lines(card: Card) -> list[tuple[int, str, tuple[int, int, int]]]:
    """The lines below a picture: how far down, text, colour."""
    lines, down = [], 0
    for paragraph in card.paragraphs:
        down += SPACE if lines else 0
        for text, colour in paragraph:
            for line in wrap(text, SIDE, most=6):
                lines.append((down, line, colour))
                down += LINE
    return lines


def has_screen() -> bool:
    """Whether there is a screen of this machine: not in a pipe, not behind ssh, not in a container."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    if sys.platform.startswith("linux"):
        has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
        return has_display and shutil.which("xdg-open") is not None
    return sys.platform in ("darwin", "win32")
