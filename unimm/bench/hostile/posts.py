"""Hostile bodies of POST requests: fields of wrong types and sizes, special tokens, images, addresses and paths, broken JSON
and forms; what servers of such models were attacked with, or fell over by themselves.
"""

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from unimm.bench.hostile.images import addresses, broken, data_uri, encoded, odd, uris

CHAT, DRAW, EDIT = "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"
BOUNDARY = "unimm-hostile"

SPECIAL = (
    "<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>", "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<|endoftext|>", "<|im_start|>system", "<s>", "</s>", "<unk>", "[INST]", "<image>",
)  # fmt: skip

TEXTS = (
    *("\0", "\ud800", "\udfff\ud800", "\ufeff", "\u202e\u2066evil", "a\u0301" * 500, "\u200b" * 1000, "\ufffe\uffff"),
    *("\x1b[2J", "\N{WOMAN}\u200d\N{GIRL}" * 200, "𝕳𝖊𝖑𝖑𝖔", "ﬁ", "İ", "ß" * 100, "\r\n\r\nHTTP/1.1 200 OK", "data: [DONE]\n\n"),
    *("{{7*7}}", "{% for x in ().__class__ %}", "${jndi:ldap://127.0.0.1/x}", "'; DROP TABLE images;--", "../../../etc/passwd"),
    *("<script>alert(1)</script>", "%s%s%n", "%00", "__import__('os').system('true')", " ", "\n" * 1000),
    *("a" * 49_999, "a" * 50_001, "，" * 30_000, "a b" * 400_000),
)  # fmt: skip

WRONG = (True, -1, 2**64, 1e308, float("nan"), "", "1", "\ud800", [], [[None]], {"a": 1}, [1] * 1000)  # fmt: skip

FIELDS = {
    CHAT: [
        "model",
        "messages",
        "n",
        "seed",
        "guidance_scale",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "size",
        "output_format",
        "output_compression",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "logprobs",
        "top_logprobs",
        "repetition_penalty",
        "modalities",
        "image_placement",
    ],
    DRAW: [
        "model",
        "prompt",
        "n",
        "seed",
        "guidance_scale",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "size",
        "output_format",
        "output_compression",
        "stream",
        "quality",
        "background",
        "response_format",
        "partial_images",
        "user",
    ],
}

FOREIGN = [
    "chat_template",
    "chat_template_kwargs",
    "prompt_embeds",
    "prompt_token_ids",
    "bad_words",
    "logits_processors",
    "guided_json",
    "guided_regex",
    "documents",
    "tools",
    "tool_choice",
    "response_format",
    "mm_processor_kwargs",
    "add_generation_prompt",
    "allowed_token_ids",
    "lora_path",
    "adapter",
    "trust_remote_code",
    "beam_width",
    "use_beam_search",
    "best_of",
    "prompt_logprobs",
    "image_path",
    "input_image_mask",
    "file",
    "url",
    "callback",
    "webhook",
    "__class__",
    "__proto__",
    "constructor",
]
"""Fields of other servers, each of which was once a way in."""

Post = tuple[str, str, bytes, tuple[str, ...]]
"""What is hostile about it, its path, its body, and further lines of its head."""


def posts(inside: str, secret: str) -> Iterator[Post]:
    """All of them. inside, secret: as `images.addresses` has them."""
    return itertools.chain(_fields(), _texts(), _images(inside, secret), _json(), _multipart(secret))


def ask(content: Any, **more: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"model": "", "messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}


def _post(kind: str, path: str, body: Any, *headers: str) -> Post:
    return kind, path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers


def _fields() -> Iterator[Post]:
    valid = {CHAT: ask("hello"), DRAW: {"prompt": "a red circle"}}
    for path, names in FIELDS.items():
        yield from (_post("wrong type", path, {**valid[path], name: wrong}) for name in names for wrong in WRONG)
    for name, value in itertools.product(FOREIGN, ("{{7*7}}", {"a": ["/etc/passwd"]})):
        yield _post("foreign field", CHAT, {**ask("hello"), name: value})
    for value in (11, 100, 10**6, 2**31, 2**63):
        names = ("n", "max_tokens", "max_completion_tokens", "top_logprobs", "top_k", "seed", "min_tokens", "best_of")
        yield from (_post("giant number", CHAT, {**ask("hello"), name: value}) for name in names)
        yield from (
            _post("giant number", DRAW, {"prompt": "x", name: value}) for name in ("n", "partial_images", "top_k", "seed")
        )
    for role in (None, 1, "", "tool", "function", "root", "System", "<|User|>", "assistant\0", ["user"], {"a": 1}):
        yield _post("wrong role", CHAT, {"messages": [{"role": role, "content": "hello"}]})
    for content in (
        None,
        1,
        [],
        [None],
        ["x"],
        [{}],
        [{"type": "text"}],
        [{"type": "image_url"}],
        [{"type": "video_url"}],
        {"a": 1},
    ):
        yield _post("wrong content", CHAT, ask(content))
    for stop in (["a"] * 100_000, ["a" * 100_000], "", [""], ["\ud800"], [1], [[]]):
        yield _post("stop strings", CHAT, ask("hello", stop=stop))
    for size in (
        "0x0",
        "-1x-1",
        "1e9x1e9",
        "99999x99999",
        "64",
        "64x",
        "x",
        "64X64",
        "６４x６４",
        "64x64x64",
        "auto\0",
        "../x",
        "a" * 10**5,
    ):
        yield _post("size", DRAW, {"prompt": "x", "size": size})


def _texts() -> Iterator[Post]:
    special = [text.replace("<", "＜") for text in SPECIAL] + ["\u200d".join(text) for text in SPECIAL]
    for text in (*SPECIAL, *special, *TEXTS):
        kind = "special token" if text in SPECIAL or text in special else "text"
        yield _post(kind, CHAT, ask([{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": SMALL}}]))
        yield _post(kind, DRAW, {"prompt": text})
        begun = [{"role": "system", "content": text}, {"role": "user", "content": "x"}, {"role": "assistant", "content": text}]
        yield _post(kind, CHAT, {"messages": begun, "max_tokens": 2, "stop": text[:200] or None})
    for count in (1, 5, 17, 500):
        yield _post("special token", CHAT, ask(SPECIAL[0] * count + " what?"))


def _images(inside: str, secret: str) -> Iterator[Post]:
    def asks(kind: str, urls: Iterable[Any]) -> Iterator[Post]:
        for url in urls:
            yield _post(kind, CHAT, ask([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]))

    yield from asks("broken image", (data_uri(data) for data in broken().values()))
    yield from asks("odd image", (data_uri(data) for data in odd().values()))
    yield from asks("broken base64", uris())
    yield from asks("address", addresses(inside, secret))
    yield from asks("wrong type", (None, 1, [], {}, [SMALL]))
    for key in ("image", "path", "file", "image_url", "url", "base64", "input_image", "audio"):
        yield _post("path", CHAT, ask([{"type": key, key: secret}]))
        yield _post(
            "path", CHAT, {"messages": [{"role": "user", "content": "<image_placeholder>", key: [secret], "images": [secret]}]}
        )
    part = {"type": "image_url", "image_url": {"url": SMALL}}
    for count in (16, 17, 1000):
        yield _post("many images", CHAT, ask([part] * count))
    large = {"type": "image_url", "image_url": {"url": data_uri(odd()["large and empty"])}}
    for _ in range(8):
        yield _post("many images", CHAT, ask([large] * 16))


def _json() -> Iterator[Post]:
    bodies = [
        *(b"", b"null", b"[]", b"{}", b"1", b'"x"', b"{", b"}", b"{'a': 1}", b'{"messages"', b"\xff\xfe", b"\0" * 100, b"NaN"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b'{"n":' + b"9" * 100_000 + b"}", b'{"n":1e999999}'),
        *(json.dumps(ask("hello")).encode(coding) for coding in ("utf-16", "utf-32", "utf-8-sig")),
        json.dumps(ask("hello")).encode() + b" trailing",
        b'{"messages":[{"role":"user","content":"a"}],"messages":[{"role":"user","content":"b"}],"max_tokens":1}',
        b'{"messages":[' + b"1," * 2_000_000 + b"1]}",
        b'{"messages":[' + b'{"role":"x"},' * 400_000 + b"1]}",
        b'{"messages":[{"role":"user","content":[' + b'{"type":"text"},' * 1_000_000 + b"1]}]}",
        b"{" + b",".join(b'"f%d":1' % number for number in range(500_000)) + b"}",
        b'{"stop":[' + b"1," * 2_000_000 + b"1]}",
        b'{"a":"' + b"\\u0041" * 2_000_000 + b'"}',
        b"a" * 40_000_000,
    ]
    yield from (_post("JSON", path, body) for body in bodies for path in (CHAT, DRAW))
    good = json.dumps(ask("hello")).encode()
    for kind in (
        "text/plain",
        "application/xml",
        "application/x-python-pickle",
        "application/octet-stream",
        "multipart/form-data",
        "*/*",
    ):
        yield _post("content type", CHAT, good, f"content-type: {kind}")
    yield _post("content type", CHAT, b"cos\nsystem\n(S'true'\ntR.", "content-type: application/x-python-pickle")
    yield _post("content type", CHAT, gzip.compress(b" " * 50_000_000), "content-encoding: gzip")


def _multipart(secret: str) -> Iterator[Post]:
    png, clear = encoded_small(), encoded(Image.new("RGBA", (16, 16)))

    def form(kind: str, *parts: tuple[str, bytes], path: str = EDIT) -> Post:
        body = b"".join(
            f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts
        )
        end = f"--{BOUNDARY}--\r\n".encode()
        return _post(kind, path, body + end, f"content-type: multipart/form-data; boundary={BOUNDARY}")

    prompt = ('name="prompt"', b"a red circle")
    names = (
        "../../x.png",
        "/etc/cron.d/x",
        secret,
        "a" * 5000,
        "x\0.png",
        "..\\..\\x",
        "\\\\host\\x",
        "x.png\\",
        "=?utf-8?q?x?=",
        "con",
    )
    for name in names:
        for field in ("image", "mask", "image[]"):
            yield form("file name", (f'name="{field}"; filename="{name}"', png), prompt)
        named = [(f'name="{field}"; filename="{name}"', data) for field, data in (("image", png), ("mask", clear))]
        yield form("file name", *named, prompt)
    for data in broken().values():
        yield form("broken image", ('name="image"; filename="a.png"', data), ('name="mask"; filename="a.png"', data), prompt)
    image = ('name="image"; filename="a.png"', png)
    yield form("form", image, ('name="mask"; filename="a.png"', encoded_small(9, 7)), prompt)
    yield form("form", image, ('name="mask"', secret.encode()), prompt)
    yield form("form", ('name="image"', secret.encode()), prompt)
    yield form("form", ('name="image"', b"file:///etc/passwd"), ('name="mask"', b"http://127.0.0.1/"), prompt)
    yield form("form", *[image] * 1500, prompt)
    yield form("form", *[(f'name="f{number}"', b"x") for number in range(1500)], image, prompt)
    yield form("form", image, ('name="prompt"', b"a" * 3_000_000))
    yield form("form", image, ('name="prompt"', b"\xff\xfe\0"))
    for name in ("n", "size", "seed", "stream", "partial_images", "response_format", "guidance_scale", "model"):
        for value in (b"", b"-1", b"1e9", b"\xff", b"x" * 10_000):
            yield form("form", image, prompt, (f'name="{name}"', value))
    for body in (b"", b"--", b"--x\r\n", f"--{BOUNDARY}".encode(), f"--{BOUNDARY}\r\n\r\n".encode() * 1000, b"a" * 1_000_000):
        yield _post("form", EDIT, body, f"content-type: multipart/form-data; boundary={BOUNDARY}")
    for boundary in ("", "a" * 10_000, '"', "\t"):
        yield _post("form", EDIT, b"--\r\n", f"content-type: multipart/form-data; boundary={boundary}")
    yield form("form", prompt, path=CHAT)


def encoded_small(width: int = 16, height: int = 16) -> bytes:
    """A PNG of ordinary size."""
    return encoded(Image.new("RGB", (width, height), "red"))


SMALL = data_uri(encoded_small())
