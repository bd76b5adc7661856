"""Images that are written as text: data: URIs, as OpenAI's API has them (RFC 2397)."""

import base64
import re
from urllib.parse import unquote_to_bytes


class ImageError(ValueError):
    """An image that cannot be used; the message is one sentence that says why and what to do."""


def from_data_uri(uri: str) -> bytes:
    """What a URI like "data:image/png;base64,iVBORw0..." holds. ImageError: it holds nothing, or no base64."""
    head, comma, body = uri.partition(",")
    if not comma or not body:
        raise ImageError("Cannot read the data: URI: it holds nothing, write data:image/png;base64, and then the image.")
    return from_base64(body, "data: URI") if re.search(r";\s*base64\s*$", head, re.IGNORECASE) else unquote_to_bytes(body)


def from_base64(text: str | bytes, name: str) -> bytes:
    """What base64 stands for, line ends in it aside. ImageError: it is none."""
    try:
        return base64.b64decode(re.sub(r"\s", "", text) if isinstance(text, str) else text, validate=True)
    except (TypeError, ValueError):
        raise ImageError(f"Cannot read the {name}: it is not valid base64, encode the bytes of an image file.") from None
