"""Where a drawing comes from, inside its file: prompt, seed, settings, model and version, so that it can be drawn again.

A drawing of the engine carries this as JSON in `image.info["unimm"]`, and `write_image` writes it where the format has room:

    PNG          a text chunk (iTXt) named "unimm", readable as UTF-8
    WebP, JPEG   EXIF, as the user's comment (tag 0x9286), JSON in ASCII

`Software` names unimm and its version in all of them. They name no path, no user and no machine. A file that is opened may be
anyone's: what it says is read as plain JSON, and checked.
"""

import io
import json
from pathlib import Path
from typing import IO, Any

from PIL import ExifTags, Image, PngImagePlugin

from unimm.runtime.version import package_version

KEY = "unimm"
"""Of `image.info`, and of the text chunk in a PNG."""

FORMATS = ("PNG", "WEBP", "JPEG")
"""What holds a provenance."""

DRAWN, PAINTED, EDITED = "draw", "inpaint", "edit"
"""Values of "task": a drawing from its prompt, a part of an image that was painted anew, and an image that was edited."""

MAX_CHARACTERS = 400_000
"""Of the JSON that is read: a prompt of the longest that is drawn, and room."""

_ASCII = b"ASCII\0\0\0"  # how EXIF says in what letters a comment is
_SUFFIXES = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


def describe(
    prompt: str,
    seed: int,
    index: int,
    settings: dict[str, Any],
    model_hash: str,
    version: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The provenance of an image, as plain JSON.

    Args:
        index: of the image among those of its prompt and seed: noise goes by both.
        settings: all that was drawn with, as the engine's call names it, defaults of the model included.
        model_hash: of the weights (`Engine.model_hash`). version: of unimm; default: this one.
        more: `task`, `dtype`, `weights` and further fields.
    """
    said = {"task": DRAWN, "prompt": prompt, "seed": seed, "index": index, "settings": settings, "model": model_hash}
    return {**said, "version": version or package_version(), **more}


def attach(image: Image.Image, provenance: dict[str, Any]) -> Image.Image:
    """Let an image in memory carry its provenance. Returns the image."""
    image.info[KEY] = json.dumps(provenance, ensure_ascii=False)
    return image


def png_info(provenance: dict[str, Any]) -> PngImagePlugin.PngInfo:
    """The text chunks of a PNG, for Pillow's `save(..., pnginfo=)`."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(KEY, json.dumps(provenance, ensure_ascii=False))
    info.add_text("Software", f"unimm {provenance.get('version', package_version())}")
    return info


def exif(provenance: dict[str, Any]) -> Image.Exif:
    """The EXIF data of a WebP or JPEG, for Pillow's `save(..., exif=)`."""
    data = Image.Exif()
    data[ExifTags.Base.Software] = f"unimm {provenance.get('version', package_version())}"
    comment = _ASCII + json.dumps(provenance).encode("ascii")
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return data


def write_image(
    image: Image.Image,
    target: str | Path | IO[bytes],
    provenance: dict[str, Any] | None = None,
    format: str | None = None,
    **options: Any,
) -> None:
    """Write an image with its provenance.

    Args:
        target: a path, or a file to write bytes to.
        provenance: default: what the image carries; an image that carries none is written without.
        format: PNG, WEBP or JPEG; default: what the path's suffix says, PNG where there is none.
        options: Pillow's, such as `quality`.

    Raises:
        ValueError: another format.
    """
    suffix = Path(target).suffix.lower() if isinstance(target, str | Path) else ""
    chosen = (format or _SUFFIXES.get(suffix, suffix.lstrip(".") or "PNG")).upper().replace("JPG", "JPEG")
    if chosen not in FORMATS:
        raise ValueError(f"Images are written as {', '.join(FORMATS)}, not as {chosen}: name the file .png, .webp or .jpg.")
    said = provenance if provenance is not None else carried(image)
    if said is None:
        image.save(target, chosen, **options)
    elif chosen == "PNG":
        image.save(target, chosen, pnginfo=png_info(said), **options)
    else:
        image.save(target, chosen, exif=exif(said), **options)


def carried(image: Image.Image) -> dict[str, Any] | None:
    """The provenance that an image in memory carries, or that the file it was opened from holds; None where there is none.

    Raises:
        ValueError: what stands there is no provenance.
    """
    text = image.info.get(KEY)
    if text is None and image.format in ("WEBP", "JPEG"):
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        if isinstance(comment, bytes) and comment.startswith(_ASCII + b"{"):
            text = comment[len(_ASCII) :].decode("ascii", errors="replace")
            text = text if '"version"' in text and '"model"' in text else None  # another program's comment
    return None if text is None else _checked(text)


def read_provenance(source: str | Path | bytes | Image.Image) -> dict[str, Any] | None:
    """The provenance of an image: a path, the bytes of a file, or an image in memory; None where it has none.

    Raises:
        ValueError: there is no such file, it is no PNG, WebP or JPEG, or what stands in it is damaged.
    """
    if isinstance(source, Image.Image):
        return carried(source)
    what = "the image" if isinstance(source, bytes) else f"{source}"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return carried(image)
    except FileNotFoundError:
        raise ValueError(f"There is no file {what}.") from None
    except ValueError as error:
        if str(error).startswith("What the image says"):
            raise
        raise ValueError(f"Cannot read {what}: it is damaged.") from None
    except Exception:  # damaged files make Pillow raise nearly anything
        raise ValueError(f"Cannot read {what}: it is not a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image.") from None


_TYPES = {"task": str, "prompt": str, "seed": int, "index": int, "settings": dict, "model": str, "version": str}


def _checked(text: Any) -> dict[str, Any]:
    try:
        said = json.loads(text) if isinstance(text, str) and len(text) <= MAX_CHARACTERS else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or any(not isinstance(said.get(name), kind) for name, kind in _TYPES.items()):
        raise ValueError("What the image says of where it comes from is not as unimm writes it: it was changed or cut.")
    return said
