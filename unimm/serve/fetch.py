"""Images and videos behind web addresses, where the operator allows some hosts; none by default: nothing is connected to.

An address that a client names can point into the operator's own network (server-side request forgery). So it is parsed once, by
the library that connects; its host must be one of the list, letter by letter; the host is resolved once, every address that
it has must be public, and the connection goes to that very address, so that a name that changes between check and use gains
nothing. Redirects are not followed, bodies are read up to a size and a time, compressed ones not at all. All that goes wrong
behind the check of the host is one sentence, which tells a client nothing of the network.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from unimm.serve.errors import ApiError
from unimm.serve.settings import ServerSettings

MAX_SECONDS = 10.0
"""For all of it: the name, the connection, the body."""

MAX_CHARACTERS = 2048
"""Of an address."""

PORTS = {"http": 80, "https": 443}

OFF = (
    'This server opens no web addresses: send the image as "data:image/png;base64,...", or ask its operator to allow the host '
    "(--allowed-media-domain)."
)
REFUSED = (
    'The host of this image\'s address is not one that the server may open: send the image as "data:image/png;base64,...".'
)
FAILED = 'The image could not be fetched from its address (redirects are not followed): send it as "data:image/png;base64,...".'

_V6 = ipaddress.IPv6Network("2000::/3")  # all that is in use; what lies outside maps to IPv4 or to the local network
_TUNNELS = [ipaddress.IPv6Network(text) for text in ("2001::/32", "2002::/16")]
_RELAYS = ipaddress.IPv4Network("192.88.99.0/24")

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""A host and a port -> its addresses."""


async def fetch_image(url: str, settings: ServerSettings, resolve: Resolve | None = None, kind: str = "image") -> bytes:
    """The bytes behind an address, of an image or a video.

    Args:
        settings: `allowed_media_domains`, exact host names, or "host:port" for other ports than 80 and 443; and
            `max_body_bytes`.
        resolve: instead of the system's.
        kind: "image" or "video", which the host is asked for.

    Raises:
        ApiError: 400, nothing is fetched, not from there, or it did not work.
    """
    import httpx

    if not settings.allowed_media_domains:
        raise _bad(OFF, "image_url_not_allowed", kind)
    address = _allowed(url, settings, kind)
    try:
        async with asyncio.timeout(MAX_SECONDS):
            port = address.port or PORTS[address.scheme]
            pinned = _public_address(await (resolve or resolve_host)(address.host, port))
            return await _get(address, pinned, settings.max_body_bytes, kind)
    except (TimeoutError, OSError, httpx.HTTPError, httpx.InvalidURL, ValueError, _Refused):
        raise _bad(FAILED, "image_url_failed", kind) from None


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network; what stands for another address inside of it is not."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _V6 and not any(ip in tunnel for tunnel in _TUNNELS)
    return ip not in _RELAYS


async def resolve_host(host: str, port: int) -> list[str]:
    """The addresses that the system knows of a host. OSError: it knows none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


class _Refused(Exception):
    """The connection is not made, or not read on; the client is not told why."""


def _allowed(url: str, settings: ServerSettings, kind: str):  # -> httpx.URL
    """The address, parsed by what will connect to it. ApiError: it is not one of the allowed."""
    import httpx

    refused = _bad(REFUSED, "image_url_not_allowed", kind)
    if len(url) > MAX_CHARACTERS or re.search(r"[\x00-\x20\x7f\\]", url) or not url.isascii():
        raise refused
    try:
        address = httpx.URL(url)
        host, port = address.raw_host.decode("ascii").lower(), address.port
    except (httpx.InvalidURL, ValueError):
        raise refused from None
    if address.scheme not in PORTS or address.userinfo or not host:
        raise refused
    usual = port in (None, PORTS[address.scheme])
    allowed = {name.lower() for name in settings.allowed_media_domains}
    if (f"{host}:{port}" if not usual else host) not in allowed:
        raise refused
    return address


def _public_address(addresses: list[str]) -> str:
    """The one to connect to, if all of them are public."""
    if not addresses or not all(is_public(one) for one in addresses):
        raise _Refused
    return addresses[0]


async def _get(address, pinned: str, most: int, kind: str) -> bytes:
    """One GET request to an IP address, with the name of its host in the header and in the TLS handshake."""
    import httpx

    headers = {"host": address.netloc.decode("ascii"), "accept": f"{kind}/*", "accept-encoding": "identity"}
    request = httpx.Request("GET", address.copy_with(host=pinned), headers=headers, extensions={"sni_hostname": address.host})
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=MAX_SECONDS) as client:
        answer = await client.send(request, stream=True)
        try:
            if answer.status_code != 200 or answer.headers.get("content-encoding", "identity") != "identity":
                raise _Refused
            return await _read(answer.aiter_raw(), most)
        finally:
            await answer.aclose()


async def _read(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """All chunks, as long as they are no more than so many bytes."""
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise _Refused
    return bytes(data)


def _bad(message: str, code: str, kind: str) -> ApiError:
    if kind == "video":
        message = message.replace("image/png", "video/mp4").replace("image", "video")
    return ApiError(400, message, code=code.replace("image", kind))
