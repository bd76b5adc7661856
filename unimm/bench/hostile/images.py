"""Images as attackers and careless clients send them: bombs, broken and odd files, base64 that is none, addresses and paths.

`broken` are no images, `odd` are, `addresses` lead elsewhere. Tests and `unimm bench hostile` send all of them.
"""

import base64
import io
import random
import struct
import zlib
from functools import cache

from PIL import Image


def encoded(image: Image.Image, format: str = "PNG", **more) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **more)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """A data: URI of them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_claiming(width: int, height: int, data: bytes = b"", text: bytes = b"") -> bytes:
    """A PNG whose header says any size; text: of a compressed text chunk."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    said = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text)) if text else b""
    pixels = _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + said + pixels


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _noise(width: int = 16, height: int = 12) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(0).randbytes(3 * width * height))


@cache
def broken() -> dict[str, bytes]:
    """What is no image, or none that a server should unpack, by what is wrong with it."""
    png, jpeg = encoded(_noise()), encoded(_noise(64, 64), "JPEG")
    gif = encoded(Image.new("P", (8, 8)), "GIF")
    webp = encoded(Image.new("RGB", (64, 64)), "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")])
    canvas = webp.index(b"VP8X") + 12
    return {
        "nothing": b"",
        "one byte": b"\xff",
        "zeros": b"\0" * 1000,
        "a web page": b"<!doctype html><title>no image</title>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n",
        "PCF font": b"\x01fcp" + b"\xff" * 200,
        "FITS": b"SIMPLE  =                    T" + b" " * 2850,
        "pickle": b"cos\nsystem\n(S'true'\ntR.",
        "zip": b"PK\x03\x04" + b"\0" * 100,
        "BMP": encoded(_noise(), "BMP"),
        "TIFF": encoded(_noise(), "TIFF"),
        "cut short": png[:200],
        "only a signature": png[:8],
        "damaged": png[:60] + b"\0" * 40 + png[100:],
        "damaged header": png[:16] + b"\xff" * 8 + png[24:],
        "JPEG cut short": jpeg[: len(jpeg) // 2],
        "JPEG of scans": b"\xff\xd8" + b"\xff\xda\0\0" * 10_000,
        "JPEG without a table": jpeg.replace(b"\xff\xdb", b"\xff\xfe"),
        "PNG bomb": png_claiming(40_000, 40_000),
        "PNG bomb with data": png_claiming(60_000, 60_000, b"\0" * 10_000_000),
        "PNG of many pixels": png_claiming(9000, 9000, b"\0" * 1000),
        "PNG strip": png_claiming(900_000, 1),
        "PNG without pixels": png_claiming(0, 0),
        "PNG of negative size": png_claiming(2**32 - 1, 2**32 - 1),
        "PNG with a text bomb": png_claiming(4, 4, b"\0" * 52, b"a" * 20_000_000),
        "GIF canvas": gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:],
        "WebP canvas": webp[:canvas] + (16_382).to_bytes(3, "little") * 2 + webp[canvas + 6 :],
        "WebP of no frame": webp[: canvas + 6],
    }


@cache
def odd() -> dict[str, bytes]:
    """Files that are images, and once made servers stumble, by what is odd about them."""
    exif = Image.Exif()
    exif[0x0112] = 99
    exif[0x010E] = "<image_placeholder>" * 50
    tiny = {f"{width}x{height}": encoded(_noise(width, height)) for width, height in ((1, 1), (1, 3), (3, 1), (2, 2), (3, 500))}
    modes = ("1", "L", "LA", "P", "PA", "RGBA", "I;16", "I")
    return {
        **tiny,
        **{f"mode {mode}": encoded(Image.new(mode, (9, 7))) for mode in modes if mode != "PA"},
        "CMYK": encoded(Image.new("CMYK", (9, 7)), "JPEG"),
        "strip": encoded(Image.new("RGB", (1, 4000))),
        "grey JPEG": encoded(_noise().convert("L"), "JPEG"),
        "odd EXIF": encoded(_noise(), "JPEG", exif=exif),
        "progressive": encoded(_noise(200, 100), "JPEG", progressive=True),
        "animation": encoded(_noise(), "GIF", save_all=True, append_images=[_noise(), _noise()]),
        "WebP animation": encoded(_noise(), "WEBP", save_all=True, append_images=[_noise()]),
        "transparent": encoded(Image.new("RGBA", (9, 7), (255, 0, 0, 0))),
        "bytes behind the end": encoded(_noise()) + b"<script>" * 1000,
        "large and empty": encoded(Image.new("L", (4900, 4900))),
    }


def addresses(inside: str, secret: str) -> list[str]:
    """What a client may write where an image's address belongs, and must not be followed.

    inside: "127.0.0.1:PORT" of something that must not be connected to. secret: the path of a file that must not be opened.
    """
    port = inside.rsplit(":", 1)[1]
    hosts = [
        "127.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "2130706433",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "[::1%25lo]",
        "127.0.0.1.nip.io",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "good.example\\@127.0.0.1",
        "good.example@127.0.0.1",
        "user:word@127.0.0.1",
        "127.0.0.1\\.good.example",
    ]
    fetched = [f"{scheme}://{host}:{port}/x.png" for host in hosts for scheme in ("http", "https")]
    others = [
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/",
        "http://10.0.0.1/",
        "http://[fe80::1]/",
        "http:/127.0.0.1",
        "http:127.0.0.1",
        "http:///x",
        "http://",
        "https:",
        "http://a:b:c/",
        "http://[::1",
        "http://%31%32%37.0.0.1/",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/x",
        "dict://127.0.0.1/x",
        "ldap://127.0.0.1/x",
        "jar:http://127.0.0.1!/x",
        "s3://bucket/x",
        "blob:http://127.0.0.1/x",
        "javascript:alert(1)",
        "about:blank",
        "view-source:http://127.0.0.1",
        "php://filter/resource=/etc/passwd",
    ]
    files = [
        *(
            form.format(secret)
            for form in ("{}", "file://{}", "FILE://{}", "file:{}", " {}", "{}\0.png", "./{}", "//{}", "data:{}")
        ),
        *("/etc/passwd", "../../../../etc/passwd", "~/.ssh/id_rsa", "/dev/zero", "/dev/stdin", "/proc/self/environ", ".", "/"),
        *(
            "C:\\Windows\\win.ini",
            "\\\\127.0.0.1\\share\\x.png",
            "file://localhost/etc/passwd",
            "secret.png",
            "~",
            "/proc/self/mem",
        ),
    ]
    control = [f"http://{inside}/\r\nX: y", f"http://{inside}/\0", f"\thttp://{inside}/", f"http://{inside}/" + "a" * 10_000]
    return [*fetched, *others, *files, *control]


def uris() -> list[str]:
    """data: URIs that hold none, or hold it in a way that is hard to read."""
    good = base64.b64encode(encoded(_noise())).decode()
    return [
        *("data:", "data:,", "data:;base64,", "data:image/png;base64", "data:image/png;base64,", "data:image/png,", "DATA:x,y"),
        *(f"data:image/png;base64,{wrong}" for wrong in ("!!!!", "====", "A", "AAAA=AAAA", "\0\0\0\0", "ÿÿÿÿ", "%%%", "-_-_")),
        *(
            f"data:{kind};base64,{good}"
            for kind in ("text/html", "image/svg+xml", "application/x-python-pickle", "../../x", "a" * 500)
        ),
        *(f"data:image/png;{extra}," + good for extra in ("utf8", "base64;base64", "charset=base64", ";" * 10_000)),
        f"data:image/png;base64,{good[:50]} {good[50:]}",
        f"data:image/png;base64,{good[:-3]}",
        f"data:image/png;base64,data:image/png;base64,{good}",
        good,
        "data:image/png;base64," + "A" * 1_000_000,
        "data:image/png;base64," + "%41" * 100_000,
        "data:image/png," + "%89PNG" * 1000,
        "data:" * 10_000,
    ]
