"""Input coercion of images: path, bytes, file object, data URI, PIL, array or tensor -> what `unimm.data.image` decodes.

    a file object            open("cat.png", "rb"), io.BytesIO, an upload: read from its beginning
    a tensor of PyTorch      (C, H, W) or (H, W, C) of 1, 3 or 4 channels; uint8 is 0..255, floats are 0..1
    an array of floats       (H, W, C) or (H, W), 0..1
    a data: URI              "data:image/png;base64,iVBORw0..." (RFC 2397)
    a part of a message      OpenAI's {"type": "image_url", ...}, transformers' {"type": "image", ...}, datasets' {"bytes": ...}

What could be meant in two ways is refused: a tensor (3, H, 3), floats beyond 0..1 (which may be -1..1, or 0..255).
"""

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from unimm.data.records import UnreadImage

CHANNELS = (1, 3, 4)
HELD = ("image", "path", "url", "base64")
"""What a part of type image may hold its image under."""

_ARRAYS = "(H, W, 3), (H, W, 4), (H, W, 1) or (H, W)"

_ROUNDING = 1e-3  # of floats that were computed: a quarter of a level


class ImageError(ValueError):
    """An image that cannot be used; the message is one sentence that says why and what to do."""


def plain_form(image: Any) -> Any:
    """The image as a path, bytes, a PIL image or an array uint8; what is none of the forms above stays as it is.

    Raises:
        ImageError: it cannot be read, or could be meant in two ways.
    """
    if isinstance(image, Mapping):
        image = held_in_part(image)
        if isinstance(image, Mapping):
            raise ImageError("A part of a message holds an image, not another part.")
    if isinstance(image, str) and image.lstrip()[:5].lower() == "data:":
        return _from_data_uri(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if hasattr(image, "detach") and hasattr(image, "dtype"):
        return _from_tensor(image)
    return read_once(image)


def read_once(image: Any) -> Any:
    """What a file object holds, since a stream can be read but once; anything else as it is. ImageError: it gives no bytes."""
    if isinstance(image, type | UnreadImage) or not hasattr(image, "read"):
        return image
    try:
        if getattr(image, "seekable", bool)():  # a stream is read from where it is
            image.seek(0)
        data = image.read()
    except Exception as error:  # whatever a stream of somebody's own raises
        raise ImageError(f"Cannot read the file object: {_short(error)}.") from error
    if hasattr(data, "close") and hasattr(data, "__await__"):
        data.close()
        raise ImageError("Cannot read the file object: its read() is asynchronous, give what `await file.read()` gives.")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError("Cannot read the file object: it gives text, open the file with mode 'rb'.")
    return bytes(data)


def held_in_part(part: Mapping[str, Any]) -> Any:
    """The image of a part of a message, unread. ImageError: the part has another shape, or a key that would be ignored."""
    if part.get("type") == "image_url":
        check_keys("part of type image_url", part, ("type", "image_url"))
        return _held_in_url(part.get("image_url"))
    known = ("type", *HELD) if part.get("type") == "image" else ("bytes", "path")
    if part.get("type") != "image" and not part.keys() & {"bytes", "path"}:
        raise ImageError(
            'An image part is {"type": "image_url", "image_url": {"url": ...}} or {"type": "image", "image": ...}.'
        )
    check_keys("image part", part, known)
    held = {key: part[key] for key in known if key != "type" and part.get(key) is not None}
    if held.keys() == {"bytes", "path"}:  # as datasets has it: the path only names the bytes
        del held["path"]
    if len(held) != 1:
        named = ", ".join(f'"{key}"' for key in known if key != "type")
        raise ImageError(f"An image part has one of {named}, not {len(held)} of them.")
    key, image = held.popitem()
    return _from_base64(image, '"base64"') if key == "base64" else image


def check_keys(name: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """ImageError: it has a key that would be ignored. One that holds None says nothing (SDKs write all that they know)."""
    unknown = [key for key, value in given.items() if key not in known and value is not None]
    if unknown:
        article = "An" if name[0] in "aeiou" else "A"
        raise ImageError(f"{article} {name} has {', '.join(known)}, not {_short(repr(unknown[0]))}: nothing would follow it.")


def looks_like_base64(text: str) -> bool:
    """Whether a text begins as the base64 of a JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF or HEIC does and is longer than most
    paths."""
    start = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK", "AAAA")
    return len(text) > 100 and text.startswith(start) and re.fullmatch(r"[A-Za-z0-9+/=\s]+", text[:1000]) is not None


def _held_in_url(image_url: Any) -> str:
    """OpenAI's {"url": ..., "detail": ...}, or the address by itself as some clients send it. `detail` changes nothing, here
    and in the server: an image is looked at in the one size that the model has."""
    if isinstance(image_url, Mapping):
        check_keys("image_url", image_url, ("url", "detail"))
        if image_url.get("detail") not in (None, "auto", "low", "high"):
            raise ImageError('"detail" of an image_url is "auto", "low" or "high", and changes nothing.')
        image_url = image_url.get("url")
    if not isinstance(image_url, str):
        raise ImageError('A part is {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}.')
    return image_url


def _from_data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not body:
        raise ImageError("Cannot read the data: URI: it holds nothing, write data:image/png;base64, and then the image.")
    if re.search(r";\s*base64\s*$", head, re.IGNORECASE):
        return _from_base64(unquote(body), "data: URI")
    if looks_like_base64(body):
        raise ImageError('Cannot read the data: URI: it holds base64 and does not say so, write ";base64" before its comma.')
    return unquote_to_bytes(body)


def _from_base64(text: Any, name: str) -> bytes:
    """Of the usual letters or those of addresses, padded or not."""
    try:
        text = text.encode("ascii") if isinstance(text, str) else text
        letters = b"".join(text.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (TypeError, ValueError, AttributeError):
        raise ImageError(f"Cannot read the {name}: it is not valid base64, encode the bytes of an image file.") from None


def _from_tensor(tensor: Any) -> np.ndarray:
    name = f"the tensor {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
    try:
        tensor = tensor.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception:  # of no memory (meta), sparse, quantized
        raise ImageError(f"Cannot use {name}: it cannot be read as plain numbers.") from None
    if array.ndim == 3:
        is_first, is_last = array.shape[0] in CHANNELS, array.shape[2] in CHANNELS
        if is_first and is_last:
            mend = "give an array (H, W, C), tensor.permute(1, 2, 0).numpy() where they are the first"
            raise ImageError(f"Cannot use {name}: its channels may be the first or the last, {mend}.")
        array = np.moveaxis(array, 0, -1) if is_first else array
    return _to_levels(array, name, "(C, H, W) or (H, W, C) of 1, 3 or 4 channels")


def _from_array(array: np.ndarray) -> np.ndarray:
    return _to_levels(array, f"the array {array.shape} {array.dtype}", _ARRAYS)


def _to_levels(array: np.ndarray, name: str, shapes: str) -> np.ndarray:
    """An array (H, W, C) or (H, W) as uint8 in 0..255."""
    if array.ndim == 4:
        raise ImageError(f"Cannot use {name}: it is a batch, give a list of its images.")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)) or array.size == 0:
        mend = "; np.moveaxis(array, 0, -1) makes the first axis the last" if shapes == _ARRAYS and array.ndim == 3 else ""
        raise ImageError(f"Cannot use {name}: an image is {shapes}{mend}.")
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ImageError(f"Cannot use {name}: an image is uint8 in 0..255, or floats in 0..1, convert it.")
    least, most = float(array.min()), float(array.max())
    if not -_ROUNDING <= least <= most <= 1 + _ROUNDING:  # nor NaN
        raise ImageError(
            f"Cannot use {name}: floats are 0..1 and these go from {least:.4g} to {most:.4g}, scale them (x / 255, or "
            "(x + 1) / 2), or give uint8 in 0..255."
        )
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return (text if len(text) <= 80 else f"{text[:80]}...").rstrip(".")


def channels_first(array: np.ndarray) -> np.ndarray:
    """Arrays (..., H, W, 3) -> (..., 3, H, W), one piece of memory."""
    return np.ascontiguousarray(np.moveaxis(array, -1, -3))
