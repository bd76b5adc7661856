"""Samples of .tar shards in the forms that people write them in: several images, texts by any name, what is not read."""

import json
from pathlib import Path

import pytest
from users_files import TURNS, make_shard, picture_bytes, read_all

from unimm.data.readers.fields import Fields
from unimm.data.readers.web_dataset import WebDataset
from unimm.data.records import Record

ONE, TWO, THREE = (picture_bytes(number) for number in range(3))
TWICE = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "The first."}]


def images(record: Record) -> list[bytes]:
    return [image.image.read() for image in record.images]  # pyright: ignore


@pytest.mark.parametrize(
    ("names", "field", "expected"),
    [
        (("0.png", "1.png", "2.png"), None, [ONE, TWO, THREE]),
        (("9.PNG", "10.png", "11.png"), None, [ONE, TWO, THREE]),
        (("img1.png", "img2.jpg", "img10.png"), None, [ONE, TWO, THREE]),
        (("a.png", "b.png", "c.png"), "c.png,a.png", [THREE, ONE]),
        (("png", "mask.png", "x.png"), "png", [ONE]),
        (("jpg", "0.png", "1.png"), "?.png", [TWO, THREE]),
        (("webp", "0.png", "1.png"), "jpg;webp", [ONE]),
    ],
)
def test_several_images_in_their_order(
    names: tuple[str, ...], field: str | None, expected: list[bytes], tmp_path: Path
) -> None:
    members = {f"x/7.{name}": content for name, content in zip(names, (ONE, TWO, THREE), strict=True)}
    make_shard(tmp_path / "0.tar", dict(reversed(members.items())) | {"x/7.txt": b"Three."})
    (record,) = read_all(WebDataset(tmp_path, Fields(image=field, caption="txt")))
    assert images(record) == expected and record.captions[0].text == "Three."


@pytest.mark.parametrize(
    "listed", [["7.b.png", "7.a.png"], ["x/7.b.png", "x/7.a.png"], ["./7.b.png", "7.A.png"], ["b.png", "a.png"]]
)
def test_images_listed_in_the_json(listed: list[str], tmp_path: Path) -> None:
    talk = json.dumps({"images": listed, "conversations": TWICE}).encode()
    make_shard(tmp_path / "0.tar", {"x/7.a.png": ONE, "x/7.b.png": TWO, "x/7.json": talk, "x/7.txt": b"Two."})
    fields = Fields(conversation="conversations")
    assert images(WebDataset(tmp_path, fields)[0]) == [TWO, ONE]
    assert images(WebDataset(tmp_path, Fields(image="images", caption="txt"))[0]) == [TWO, ONE]
    with pytest.raises(ValueError, match=r"has several images \(a.png, b.png\).*data.fields.image"):
        WebDataset(tmp_path)


@pytest.mark.parametrize(
    ("members", "fields", "words"),
    [
        ({"7.jpg": ONE, "7.seg.png": TWO, "7.txt": b"A."}, Fields(caption="txt"), "several images (jpg, seg.png)"),
        ({"7.0.jpg": ONE, "7.x1.jpg": TWO, "7.txt": b"A."}, Fields(caption="txt"), "nothing says which are meant"),
        ({"7.a.jpg": ONE, "7.txt": b"A."}, Fields(image="b.jpg", caption="txt"), "no image by the name b.jpg, there is a.jpg"),
        ({"7.png": ONE, "7.json": b'{"t": "A.", "im": ["8.png"]}'}, Fields(image="im", caption="t"), "'8.png', which is none"),
        ({"7.png": ONE, "7.json": b'{"t": "A.", "im": 7}'}, Fields(image="im", caption="t"), "'im' of its .json"),
        ({"7.0.png": ONE, "7.json": json.dumps({"c": TWICE}).encode()}, Fields(conversation="c"), "<image> 2 times"),
        ({"7.mp4": b"", "7.npy": b""}, Fields(caption="txt"), "no samples, there is mp4, npy"),
    ],
)
def test_what_is_refused(members: dict[str, bytes], fields: Fields, words: str, tmp_path: Path) -> None:
    make_shard(tmp_path / "0.tar", members)
    with pytest.raises(ValueError) as raised:
        WebDataset(tmp_path, fields)
    assert words in str(raised.value) and "0.tar" in str(raised.value) and "\n" not in str(raised.value)


def test_texts_by_their_names(tmp_path: Path) -> None:
    make_shard(
        tmp_path / "0.tar", {"7.png": ONE, "7.caption": b"A.", "7.prompt.txt": b"B.", "7.meta.json": b'{"language": "zh"}'}
    )
    record = WebDataset(tmp_path, Fields(caption="prompt.txt", language="language"))[0]
    assert record.captions[0].text == "B." and record.captions[0].language == "zh"
    assert WebDataset(tmp_path, Fields(caption="caption"))[0].captions[0].text == "A."


def test_members_that_are_not_read_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_shard(tmp_path / "0.tar", {"7.png": ONE, "7.txt": b"A.", "7.json": b"{}", "__x.png": b"", ".y.png": b""})
    assert len(WebDataset(tmp_path)) == 1 and not caplog.text
    make_shard(
        tmp_path / "1.tar", {"8.png": ONE, "8.txt": b"A.", "8.cls": b"1", "9.mp4": b"", "9.caption": b"B.", "9.png": ONE}
    )
    assert len(WebDataset(tmp_path, max_bad=1.0)) == 3
    assert "are not read: 1 .cls, 1 .caption, 1 .mp4; a text is read by its name, such as fields.caption=caption" in caplog.text


def test_shards_by_numbers_in_braces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (8, 9, 10):
        make_shard(tmp_path / f"a-{number:03}.tar", {"0.png": ONE, "0.txt": b"A."})
    assert len(WebDataset(str(tmp_path / "a-{008..009}.tar"))) == 2
    assert len(WebDataset(str(tmp_path / "a-{010,008}.tar"))) == 2
    with pytest.raises(ValueError, match=r"There is no file at .*a-011\.tar"):
        WebDataset(str(tmp_path / "a-{009..011}.tar"))
    (tmp_path / "b.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    assert len(WebDataset(tmp_path)) == 3 and "1 compressed files are not read" in caplog.text
    for path in (tmp_path / "b.tar.gz", str(tmp_path / "b*")):
        with pytest.raises(ValueError, match=r"b\.tar\.gz is compressed: unpack it"):
            WebDataset(path)


def test_turns_show_their_images(tmp_path: Path) -> None:
    talk = json.dumps({"conversations": TURNS}).encode()
    make_shard(tmp_path / "0.tar", {"7.jsn": talk, "7.img": ONE})
    record = WebDataset(tmp_path, Fields(conversation="conversations"))[0]
    assert record.is_dialogue and images(record) == [ONE]
