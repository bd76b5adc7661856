"""Images in and out: one way to read them for training, evaluation and inference, and two ways to prepare them.

`decode_image` turns whatever users hold into an upright RGB image or says in one sentence what is wrong with it.
Preparation follows Janus' `VLMImageProcessor` and its report (deepseek-ai/Janus): `look` shrinks and pads for the
vision tower, `crop` fills the square for the image tokenizer. Both speak in pixels (3, H, W) float32 in [-1, 1].
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeGuard, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from unimm.data.fit import crop_box, fit_look
from unimm.data.image_forms import ImageError, channels_first, looks_like_base64, plain_form
from unimm.data.records import ImageLike, SeenImage, UnreadImage, Video
from unimm.segment import in_unit_range

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The file formats that are read everywhere; fewer decoders leave less to attack."""

PLUGINS = {"AVIF": "a Pillow that was built with AVIF", "HEIF": "pip install pillow-heif"}
"""The formats that are read where Pillow, or a plug-in of it, can; and what to do where none can."""

_BRANDS: dict[bytes, str] = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
}

MAX_PIXELS = 50_000_000
"""Larger images are not unpacked, unless the caller says so."""

MAX_SIDE = 65_535
"""Longest side in pixels, as JPEG has it: a strip of one pixel by millions would cost gigabytes to resize."""

SIZES_KEPT = 1_000_000
"""Sizes of images inside archives and tables that a process remembers."""

_BACKGROUND = (127, 127, 127)  # int(0.5 * 255): the image mean of Janus
_TURNED = (5, 6, 7, 8)  # of EXIF: by a quarter

# Pillow warns from 89 megapixels on; decode_image refuses by its own limit, in its own words.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_image(image: ImageLike, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image as a person sees it: upright, transparency on white, 8-bit RGB, the first frame of an animation, the middle
    one of a `Video`.

    Args:
        image: a path, encoded bytes (JPEG, PNG, WEBP, GIF, BMP or TIFF), a PIL image, an array uint8 of shape (H, W, 3),
            (H, W, 4), (H, W, 1) or (H, W), or one of the forms of `unimm.data.image_forms`: a file object, a tensor, floats in
            0..1, a data: URI, a part of a message.
        max_pixels: larger images are refused before they are unpacked.
        formats: of `FORMATS`, those that encoded images may have.

    Raises ImageError (a ValueError) for everything that is no such image.
    """
    picture = _decode(image, formats, partial(_upright, max_pixels=max_pixels, convert=_to_rgb))
    return picture if type(picture) is Image.Image else picture.copy()


def decode_mask(mask: ImageLike | np.ndarray, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> np.ndarray:
    """A mask (H, W) bool, true where it marks: where it is transparent, as OpenAI has it, or, where nothing of it is, white.

    Between, what is more than half transparent or white is marked. All forms of an image are read, and arrays of bool.

    Raises ImageError (a ValueError) for everything that is no such image.
    """
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        mask = mask.astype(np.uint8) * np.uint8(255)
    return np.asarray(_decode(mask, formats, partial(_upright, max_pixels=max_pixels, convert=_to_mask))) > 0


def transparent_part(image: ImageLike, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> np.ndarray:
    """Where an image is transparent, (H, W) bool: more than half. Raises ImageError as `decode_image`."""

    def opacity(picture: Image.Image, name: str) -> Image.Image:
        return _alpha(picture) or Image.new("L", picture.size, 255)

    return np.asarray(_decode(image, formats, partial(_upright, max_pixels=max_pixels, convert=opacity))) < 128


_sizes: dict[tuple[Path, str], tuple[int, int]] = {}


def image_size(image: ImageLike) -> tuple[int, int]:
    """Width and height of an image as `decode_image` gives it, from the head of its file: nothing is decoded.

    An image inside something larger is read for it once in a process, up to `SIZES_KEPT` of them.

    Raises ImageError (a ValueError) for what is no image, or too large.
    """
    home = image.home() if isinstance(image, UnreadImage) else None
    size = image.known_size() if isinstance(image, UnreadImage) else None
    size = size or (None if home is None else _sizes.get(home))
    if size is None:
        size = _decode(image, FORMATS, _upright_size)
        if home is not None and len(_sizes) < SIZES_KEPT:
            _sizes[home] = size
    return size


def _decoded(image: ImageLike) -> Image.Image:
    """As `decode_image`, but perhaps the opened file itself: to be read, and not given away."""
    return _decode(image, FORMATS, partial(_upright, max_pixels=MAX_PIXELS, convert=_to_rgb))


T = TypeVar("T")
Use = Callable[[Image.Image, str, bool], T]
"""What is made of an opened picture, whose pixels are not read yet; with its name, for errors, and whether it is ours alone."""

Convert = Callable[[Image.Image, str], Image.Image]
"""What is made of an upright picture; with its name, for errors."""


def _decode(image: ImageLike, formats: tuple[str, ...], use: Use[T]) -> T:
    if isinstance(image, SeenImage):
        return _decode(image.original(), formats, use)
    if isinstance(image, Video):
        return _decode(next(iter(image.frames([image.seconds / 2]))), formats, use)
    if isinstance(image, UnreadImage):
        return _decode_file(io.BytesIO(image.read()), f"the image {image}", formats, use)
    image = plain_form(image)
    if isinstance(image, np.ndarray):
        return use(Image.fromarray(image), "the array", False)
    if isinstance(image, Image.Image):
        return use(image, "the image", False)
    if isinstance(image, bytes | bytearray | memoryview):
        return _decode_file(io.BytesIO(image), "the image data", formats, use)
    if isinstance(image, str | os.PathLike):
        return _decode_path(os.fspath(image), formats, use)
    which = f"{type(image).__name__}" + (": one is expected here" if isinstance(image, list | tuple) else "")
    raise ImageError(f"An image is a path, bytes, a file object, a data: URI, a PIL image, an array or a tensor, not {which}.")


def look(image: ImageLike, size: int) -> np.ndarray:
    """Pixels (3, size, size) for the vision tower: long side resized to size, short side padded with grey."""
    return in_unit_range(look_uint8(image, size))


def look_uint8(image: ImageLike, size: int) -> np.ndarray:
    """The same as uint8."""
    if _is_ready(image, size, size):
        return channels_first(image)
    picture = _decoded(image)
    _, _, width, height, left, top = fit_look(picture.size, size)
    if (width, height) != picture.size:
        picture = picture.resize((int(width), int(height)), Image.Resampling.BICUBIC)
    if width != height:
        square = Image.new("RGB", (size, size), _BACKGROUND)
        square.paste(picture, (int(left), int(top)))
        picture = square
    return channels_first(np.asarray(picture))


def crop(image: ImageLike, size: int | tuple[int, int]) -> np.ndarray:
    """Pixels (3, H, W) for the image tokenizer: the largest part at the centre that has the form of size, H = W or (H, W)."""
    return in_unit_range(crop_uint8(image, size))


def crop_uint8(image: ImageLike, size: int | tuple[int, int]) -> np.ndarray:
    """The same as uint8."""
    height, width = (size, size) if isinstance(size, int) else size
    if _is_ready(image, height, width):
        return channels_first(image)
    picture = _decoded(image)
    if picture.size != (width, height):
        # The box cuts before it resizes, so that a long strip is never blown up; the filter is the same.
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=crop_box(picture.size, (width, height)))
    return channels_first(np.asarray(picture))


def image_hash(image: ImageLike) -> str:
    """sha256 over an image as it was decoded, before it is prepared for anybody."""
    picture = _decoded(image)
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def to_pil(pixels: np.ndarray) -> Image.Image:
    """An RGB image of pixels (3, H, W) in [-1, 1]; values outside are clipped."""
    return Image.fromarray(pixels_to_array(pixels))


def array_to_pixels(array: np.ndarray) -> np.ndarray:
    """Arrays (..., H, W, 3) uint8 -> pixels (..., 3, H, W) float32 in [-1, 1], Janus' mean and deviation of 0.5."""
    return in_unit_range(channels_first(array))


def pixels_to_array(pixels: np.ndarray) -> np.ndarray:
    """Pixels (..., 3, H, W) in [-1, 1] -> arrays (..., H, W, 3) uint8, rounded: the exact inverse of array_to_pixels."""
    levels = np.rint((np.asarray(pixels, dtype=np.float32) + 1) * 127.5).clip(0, 255)
    return np.ascontiguousarray(np.moveaxis(levels, -3, -1), dtype=np.uint8)


def _is_ready(image: ImageLike, height: int, width: int) -> TypeGuard[np.ndarray]:
    """Whether there is nothing to decode, to turn or to resize: then the way through Pillow would change nothing."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (height, width, 3)


def _decode_path(path: str, formats: tuple[str, ...], use: Use[T]) -> T:
    name = f"the file {path!r}" if len(path) <= 300 else f"the file {path[:300]!r}..."
    if path[:8].lower().startswith(("http://", "https://")):
        raise ImageError(f"Cannot read {name}: it is a web address, download it and give the path.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        raise ImageError(f"Cannot read {name}: addresses are not opened, give the path or the bytes.")
    if not path:
        raise ImageError("Cannot read the image: its path is empty, name an image file.")
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ImageError(f"Cannot read {name}: it is a folder or a device, name an image file.")
        with Path(path).open("rb") as file:
            return _decode_file(file, name, formats, use)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # no such file, no permission, a name too long or with a null character
        if looks_like_base64(path):
            mend = "write data:image/png;base64, before it, or decode it"
            raise ImageError(f"Cannot read the image: it looks like base64, {mend}.") from None
        if isinstance(error, FileNotFoundError):
            raise ImageError(f"Cannot read {name}: there is no such file.") from None
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"Cannot read {name}: {str(reason).lower()}.") from None


def _decode_file(file: IO[bytes], name: str, formats: tuple[str, ...], use: Use[T]) -> T:
    if not file.read(1):
        raise ImageError(f"Cannot read {name}: it is empty.")
    file.seek(0)
    further = _plugin_of(file.read(64), name) if formats == FORMATS else None
    file.seek(0)
    try:
        picture = Image.open(file, formats=formats if further is None else (further,))
    except UnidentifiedImageError:
        if further is not None:
            raise ImageError(f"Cannot read {name}: its data is damaged or cut short.") from None
        raise ImageError(f"Cannot read {name}: it is not a {', '.join(formats[:-1])} or {formats[-1]} image.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"Cannot read {name}: it has more pixels than are safe to unpack, shrink it first.") from None
    except Exception as error:  # damaged headers make Pillow raise nearly anything
        if "MAX_TEXT" in str(error):  # of a PNG: a small file may unpack to any size
            raise ImageError(f"Cannot read {name}: a text beside its pixels is too long to unpack, save it without.") from None
        raise ImageError(f"Cannot read {name}: its header is damaged.") from None
    with picture:
        return use(picture, name, True)


def _plugin_of(start: bytes, name: str) -> str | None:
    """The format of a file that a plug-in reads, by how it starts; None: it is none of these.

    Raises:
        ImageError: no plug-in can read it here.
    """
    form = _BRANDS.get(start[8:12]) if start[4:8] == b"ftyp" else None
    if start[8:12] in (b"mif1", b"msf1") and {b"avif", b"avis"} & {start[at : at + 4] for at in range(16, start[3], 4)}:
        form = "AVIF"  # whose other brands say what it is
    if form == "HEIF" and find_spec("pillow_heif") is not None:
        import_module("pillow_heif").register_heif_opener()
    if form is not None and form not in Image.OPEN:
        Image.init()
    if form is not None and form not in Image.OPEN:
        raise ImageError(f"Cannot read {name}: {form} images are not read here, that needs {PLUGINS[form]}; or save it as PNG.")
    return form


def _upright(picture: Image.Image, name: str, is_ours: bool, max_pixels: int, convert: Convert) -> Image.Image:
    """is_ours: nobody else has the picture, so that one which is upright need not be copied."""
    _check_size(picture, name, max_pixels)
    try:
        picture.load()
        if is_ours:
            ImageOps.exif_transpose(picture, in_place=True)
        return convert(picture if is_ours else ImageOps.exif_transpose(picture), name)
    except ImageError:
        raise
    except Exception:  # damaged data makes Pillow raise nearly anything; its words may hold memory addresses
        raise ImageError(f"Cannot read {name}: its data is damaged or cut short.") from None


def _check_size(picture: Image.Image, name: str, max_pixels: int) -> None:
    """Raises ImageError where a picture has no pixels, or more than are unpacked."""
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"Cannot use {name}: it is {width}x{height} and has no pixels.")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        limit = f"{max_pixels:,} pixels or {MAX_SIDE:,} a side"
        raise ImageError(f"Cannot use {name}: {width}x{height} is more than {limit}, shrink it first.")


def _upright_size(picture: Image.Image, name: str, is_ours: bool) -> tuple[int, int]:
    """Width and height once it is turned; the pixels of a file are not read for it."""
    _check_size(picture, name, MAX_PIXELS)
    if picture.format == "TIFF":  # Pillow has turned it already
        return picture.size
    try:
        # A PNG would decode all of its pixels to look for an orientation behind them.
        marks = Image.Image.getexif(picture) if is_ours else picture.getexif()
        is_turned = marks.get(ExifTags.Base.Orientation) in _TURNED
    except Exception:  # damaged data makes Pillow raise nearly anything
        raise ImageError(f"Cannot read {name}: its data is damaged or cut short.") from None
    width, height = picture.size
    return (height, width) if is_turned else (width, height)


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith("I"):
        picture = _from_16_bit(picture, name)
    if picture.mode == "F":
        raise ImageError(f"Cannot use {name}: floating-point pixels have no agreed range, save it with 8 bits.")
    if picture.mode == "La":  # premultiplied grey converts to nothing but LA
        picture = picture.convert("LA")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _alpha(picture: Image.Image) -> Image.Image | None:
    """Its opacity, 8 bits; None where nothing of it is transparent."""
    if not picture.has_transparency_data or picture.mode.startswith("I"):
        return None
    alpha = picture.convert("LA" if picture.mode == "La" else "RGBA").getchannel("A")
    return alpha if np.asarray(alpha).min() < 255 else None


def _to_mask(picture: Image.Image, name: str) -> Image.Image:
    alpha = _alpha(picture)
    marked = np.asarray(alpha) < 128 if alpha is not None else np.asarray(_to_rgb(picture, name).convert("L")) >= 128
    return Image.fromarray(marked.astype(np.uint8) * np.uint8(255))


def _from_16_bit(picture: Image.Image, name: str) -> Image.Image:
    """Grey of 0..65535 scaled to 0..255; Pillow's own conversion would clip at 255, and all would be white."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise ImageError(f"Cannot use {name}: its values exceed 16 bits, save it with 8 or 16.")
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65_535
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
