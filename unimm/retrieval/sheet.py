"""What a search found, to look at: a picture of all hits in rows, or a page that holds their pictures in itself."""

import base64
import html
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from unimm.data.image import decode_image
from unimm.data.records import ImageLike
from unimm.retrieval.index import Hit

SIDE, GAP, LINES = 192, 12, 40
"""Pixels: of a picture on the sheet, between pictures, and for the text below each."""

COLUMNS = 5
PAPER, INK = (250, 250, 250), (30, 30, 30)

PICTURES, PAGES = (".png", ".jpg", ".jpeg", ".webp"), (".html", ".htm")

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px system-ui, sans-serif; margin: 2rem; background: #fafafa; color: #1e1e1e }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(192px, 1fr)); gap: 1rem }}
figure {{ margin: 0 }} img {{ max-width: 100%; image-rendering: pixelated }}
figcaption {{ overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
</html>
"""


def check_out(path: Path) -> None:
    """ValueError: the file is neither a picture nor a page, by its name."""
    if path.suffix.lower() not in (*PICTURES, *PAGES):
        raise ValueError(f"{path} is neither a picture ({', '.join(PICTURES)}) nor a page ({', '.join(PAGES)}): rename it.")


def write_hits(path: Path, title: str, hits: list[Hit], images: list[ImageLike]) -> None:
    """Write what was found, nearest first, as a picture or a page.

    Raises:
        ValueError: the name of the file says neither, or an image cannot be read.
    """
    check_out(path)
    thumbnails = [_thumbnail(image) for image in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in PAGES:
        path.write_text(_page(title, hits, thumbnails), encoding="utf-8")
    else:
        _sheet(title, hits, thumbnails).save(path)


def _thumbnail(image: ImageLike) -> Image.Image:
    """At most SIDE pixels a side; small pictures become larger by a whole number, so that their own pixels stay visible."""
    picture = decode_image(image)
    factor = SIDE // max(picture.size)
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return ImageOps.contain(picture, (SIDE, SIDE))


def _sheet(title: str, hits: list[Hit], thumbnails: list[Image.Image]) -> Image.Image:
    font = ImageFont.load_default(13)
    columns = max(1, min(COLUMNS, len(hits)))
    rows = -(-len(hits) // columns)
    width, height = SIDE + GAP, SIDE + LINES + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP + LINES), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), _fitting(title, columns * width, font), INK, font)
    for number, (hit, picture) in enumerate(zip(hits, thumbnails, strict=True)):
        row, column = divmod(number, columns)
        x, y = GAP + column * width, LINES + row * height
        sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        pen.text((x, y + SIDE + 4), f"{number + 1}.  {hit.score:.3f}", INK, font)
        pen.text((x, y + SIDE + 20), _fitting(hit.key, SIDE, font), INK, font)
    return sheet


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text that fits, which is what tells paths apart. What the font lacks is escaped."""
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType: Latin letters only
        text = text.encode("latin-1", "backslashreplace").decode("latin-1")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


def _page(title: str, hits: list[Hit], thumbnails: list[Image.Image]) -> str:
    figures = []
    for number, (hit, picture) in enumerate(zip(hits, thumbnails, strict=True)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        source = base64.b64encode(buffer.getvalue()).decode()
        below = " ".join(filter(None, (f"{number + 1}. {hit.score:.3f}", hit.key, hit.caption)))
        figures.append(
            f'<figure><img alt="{html.escape(hit.key)}" src="data:image/png;base64,{source}">'
            f"<figcaption>{html.escape(below)}</figcaption></figure>"
        )
    return PAGE.format(title=html.escape(title), figures="\n".join(figures))
