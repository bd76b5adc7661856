"""Images as people hold them: every form of a picture is the same picture, what could be two pictures is a short sentence."""

import asyncio
import base64
import io
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.data.image import ImageError, crop, decode_image, look
from unimm.data.image_forms import looks_like_base64, read_once

ARRAY = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
GREY = ARRAY[:, :, 0]
TENSOR = torch.from_numpy(ARRAY)


def encoded(image, format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


PNG = encoded(Image.fromarray(ARRAY))
BASE64 = base64.b64encode(PNG).decode()
URI = f"data:image/png;base64,{BASE64}"


class Stream:
    """Something that can be read once, as the answer of a web server."""

    def __init__(self, data):
        self.data = data

    def read(self, size=-1):
        data, self.data = self.data, b""
        return data


def read_to_its_end(data):
    file = io.BytesIO(data)
    file.read()
    return file


FORMS = {
    "tensor (C, H, W)": lambda: TENSOR.permute(2, 0, 1),
    "tensor (H, W, C)": lambda: TENSOR,
    "floats (C, H, W)": lambda: TENSOR.permute(2, 0, 1) / 255,
    "floats (H, W, C)": lambda: TENSOR.double() / 255,
    "floats with a gradient": lambda: (TENSOR / 255).requires_grad_(),
    "array of floats": lambda: ARRAY.astype(np.float32) / 255,
    "half floats": lambda: (TENSOR / 255).half(),
    "opaque": lambda: torch.cat([TENSOR.permute(2, 0, 1), torch.full((1, 12, 16), 255, dtype=torch.uint8)]),
    "rounded beyond the range": lambda: TENSOR.permute(2, 0, 1) / 255 * 1.0002,
    "file in memory": lambda: io.BytesIO(PNG),
    "file that was written to": lambda: read_to_its_end(PNG),
    "stream": lambda: Stream(PNG),
    "data URI": lambda: URI,
    "data URI in lines": lambda: "DATA:image/png;charset=x;BASE64,\n" + "\n".join(re.findall(".{1,76}", BASE64)),
    "data URI without padding": lambda: "  " + URI.rstrip("="),
    "data URI for addresses": lambda: "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode(),
    "data URI with escapes": lambda: URI.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    "data URI in percents": lambda: "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    "image_url": lambda: {"type": "image_url", "image_url": {"url": URI, "detail": "high"}},
    "image_url by itself": lambda: {"type": "image_url", "image_url": URI},
    "part with image": lambda: {"type": "image", "image": TENSOR.permute(2, 0, 1), "url": None},
    "part with base64": lambda: {"type": "image", "base64": BASE64},
    "as datasets has it": lambda: {"bytes": PNG, "path": "gone.png"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_picture(form):
    assert np.array_equal(np.asarray(decode_image(FORMS[form]())), ARRAY)
    for prepare in (look, crop):
        assert np.array_equal(prepare(FORMS[form](), 12), prepare(ARRAY, 12))


def test_files_on_disk_and_what_only_names_them(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)

    class Named(os.PathLike):
        def __fspath__(self):
            return str(path)

    with path.open("rb") as file, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(PNG)
        for held in (file, file, spooled, Named(), {"type": "image", "path": str(path)}, {"bytes": None, "path": str(path)}):
            assert np.array_equal(np.asarray(decode_image(held)), ARRAY)


@pytest.mark.parametrize("hold", [np.asarray, torch.from_numpy])
def test_grey_and_transparent_ones(hold):
    expected = np.stack([GREY] * 3, axis=-1)
    for grey in (GREY, GREY[:, :, None], GREY / 255, GREY[:, :, None] / 255):
        assert np.array_equal(np.asarray(decode_image(hold(grey))), expected)
    if hold is not np.asarray:
        assert np.array_equal(np.asarray(decode_image(hold(GREY)[None])), expected)
    clear = np.concatenate([ARRAY, np.zeros_like(ARRAY[:, :, :1])], axis=2)
    assert (np.asarray(decode_image(hold(clear))) == 255).all()


def refused(image, match):
    with pytest.raises(ImageError, match=match) as caught:
        decode_image(image)
    message = str(caught.value)
    assert len(message) < 250 and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (TENSOR / 127.5 - 1, "floats are 0..1 and these go from -1 to 1"),
        (ARRAY / 127.5 - 1, "floats are 0..1 and these go from -1 to 1"),
        (TENSOR.float(), "go from 0 to 255"),
        (TENSOR / 255 * 1.01, "go from 0 to 1.01"),
        (torch.full((5, 5, 3), torch.nan), "from nan to nan"),
        (TENSOR.long(), "int64: an image is uint8 in 0..255, or floats in 0..1"),
        (TENSOR > 3, "bool: an image is uint8"),
        (ARRAY.astype(np.uint16), "uint16: an image is uint8"),
        (TENSOR[None], r"\(1, 12, 16, 3\) uint8: it is a batch, give a list"),
        (ARRAY[None], r"\(1, 12, 16, 3\) uint8: it is a batch, give a list"),
        (TENSOR.permute(2, 0, 1)[:, :, :3], "channels may be the first or the last"),
        (torch.zeros(2, 5, 6), r"\(C, H, W\) or \(H, W, C\)"),
        (ARRAY.transpose(2, 0, 1), r"an image is \(H, W, 3\).*moveaxis"),
        (torch.zeros(3, 0, 6), r"an image is \(C, H, W\)"),
        (torch.tensor(1.0), "an image is"),
        (torch.zeros(3, 4, 5, device="meta"), "cannot be read as plain numbers"),
        (torch.zeros(3, 4, 5).to_sparse(), "cannot be read as plain numbers"),
        (io.StringIO("text"), "open the file with mode 'rb'"),
        (io.BytesIO(b""), "it is empty"),
        (io.BytesIO(b"text"), "it is not a JPEG"),
        (BASE64 * 3, "it looks like base64, write data:image/png;base64, before it, or decode it"),
        ("/9j/" + "A" * 10**6, "it looks like base64"),
        ("data:image/png;base64,", "it holds nothing"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("data:image/png;base64," + "é" * 10**6, "not valid base64"),
        ("data:" + "x" * 10**6, "it holds nothing"),
        ("data:text/plain,hello", "it is not a JPEG"),
        ("data:image/png," + BASE64, 'write ";base64"'),
        ("HTTPS://EXAMPLE.ORG/a.png", "it is a web address"),
        ("file:///home/me/a.png", "addresses are not opened, give the path"),
        ("s3://bucket/a.png", "addresses are not opened"),
        ([ARRAY], "not list: one is expected here"),
        ([], "not list: one is expected here"),
        ((PNG,), "not tuple: one is expected here"),
        ({}, "An image part is"),
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "it is a web address, download it"),
        ({"type": "image_url", "image_url": {"url": URI, "detail": "zebra"}}, '"detail"'),
        ({"type": "image_url", "image_url": {"uri": URI}}, "An image_url has url, detail, not 'uri'"),
        ({"type": "image_url", "url": URI}, "has type, image_url, not 'url'"),
        ({"type": "image_url", "image_url": None}, "A part is"),
        ({"type": "image", "image": ARRAY, "bytes": PNG}, "not 'bytes'"),
        ({"type": "image", "image": ARRAY, "url": URI}, "not 2 of them"),
        ({"type": "image", "base64": "%"}, 'the "base64": it is not valid'),
        ({"type": "image", "image": {"bytes": PNG}}, "not another part"),
        ({"bytes": None, "path": None}, "not 0 of them"),
    ],
)  # fmt: skip
def test_what_is_none_or_two_is_a_short_sentence(image, match):
    refused(image, match)


def test_files_that_cannot_be_read(tmp_path):
    class Upload:
        async def read(self):
            return PNG

    class Broken:
        def read(self):
            raise ConnectionError("the line\nis dead." + "!" * 10_000)

    refused(Upload(), "asynchronous")
    assert np.array_equal(np.asarray(decode_image(asyncio.run(Upload().read()))), ARRAY)
    refused(Broken(), "the line is dead")
    file = io.BytesIO(PNG)
    file.close()
    refused(file, "closed file")
    with (tmp_path / "a.txt").open("w") as writable:
        refused(writable, "not readable")


def test_a_path_that_looks_like_base64_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "Qk" + "A" * 120
    Path(name).write_bytes(PNG)
    assert looks_like_base64(name) and np.array_equal(np.asarray(decode_image(name)), ARRAY)


def test_what_is_no_file_is_left_as_it_is():
    for image in (ARRAY, TENSOR, PNG, "a.png", Path("a.png"), Image.fromarray(ARRAY)):
        assert read_once(image) is image
