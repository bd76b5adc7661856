"""What is wrong with a user's files is told in one sentence that names the place, at once where it can be known at once."""

import base64
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from users_files import TURNS, make_image_folder, make_pictures, make_shard, picture_bytes, write_lines

from unimm.data.image import ImageError, decode_image
from unimm.data.readers import parquet as parquet_module
from unimm.data.readers.fields import Fields
from unimm.data.readers.image_folder import ImageFolder
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.llava import LlavaJson
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.plain_text import PlainTextFiles
from unimm.data.readers.web_dataset import WebDataset
from unimm.data.records import UnreadImage

CAPTIONED = Fields(image="image", caption="caption")
ENCODED = base64.b64encode(picture_bytes(0)).decode()


def told(make: Callable[[], Any]) -> str:
    """The one sentence with which it ends."""
    with pytest.raises(ValueError) as raised:
        make()
    sentence = str(raised.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 600, sentence
    return sentence


@pytest.mark.parametrize(
    "make",
    [
        ImageFolder,
        lambda path: JsonLines(path, CAPTIONED),
        LlavaJson,
        lambda path: Parquet(path, CAPTIONED),
        WebDataset,
        PlainTextFiles,
    ],
    ids=["image_folder", "json_lines", "llava", "parquet", "web_dataset", "plain_text"],
)
def test_nothing_there(make: Callable[[Path], Any], tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "*.none"):
        sentence = told(lambda path=path: make(path))
        assert str(path) in sentence and ("give a file" in sentence or "name" in sentence)


# -- image folders -------------------------------------------------------------------------------------------------------


def test_an_image_without_a_caption(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "photos")
    (folder / "a.txt").unlink()
    sentence = told(lambda: ImageFolder(folder))
    assert "a.png has no caption" in sentence and "a.txt" in sentence and "captions=false" in sentence
    assert ImageFolder(folder, captions=False)[0].captions == ()
    (folder / "a.txt").write_text(" \n")
    assert "a.txt is empty" in told(lambda: ImageFolder(folder)[0])
    (folder / "a.txt").write_bytes(b"\xff\xfe\x00")
    assert "a.txt cannot be read" in told(lambda: ImageFolder(folder)[0])


@pytest.mark.parametrize(
    ("table", "content", "words"),
    [
        ("metadata.csv", "file_name,text\n0.png,one\n9.png,two\n", ["metadata.csv, line 3", "9.png", "not there"]),
        ("metadata.csv", "file_name,text\n0.png,one, two\n", ["metadata.csv, line 2", "quotes"]),
        ("metadata.csv", "file_name,text\n0.png,\n", ["metadata.csv, line 2", "'text' is empty"]),
        ("metadata.csv", "file,text\n0.png,one\n", ["'file_name'", "file, text"]),
        ("metadata.csv", "file_name,words\n0.png,one\n", ["metadata.csv, line 2 has no 'text'", "file_name, words"]),
        ("metadata.csv", "file_name,text\n0.png,one\n0.png,two\n", ["metadata.csv, line 3", "second caption"]),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "one"}\n\n{"file_name": 3, "text": "x"}\n', ["entry 2", "not 3"]),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "one"}\n\n{"file_name"}\n', ["metadata.jsonl, line 3", "not JSON"]),
    ],
)
def test_a_bad_table(table: str, content: str, words: list[str], tmp_path: Path) -> None:
    make_pictures(tmp_path, ("0.png",))
    (tmp_path / table).write_text(content)
    sentence = told(lambda: ImageFolder(tmp_path))
    assert all(word in sentence for word in words), sentence


def test_links_may_lead_elsewhere_but_not_in_circles(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "photos")
    other = make_image_folder(tmp_path / "other")
    (folder / "linked").symlink_to(other)
    (other / "back").symlink_to(folder)
    (folder / ".hidden.png").write_bytes(b"")
    assert len(ImageFolder(folder)) == 8


# -- JSON ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["line 4 is not JSON"]),
        ("[1]", ["line 4 is list, not an object"]),
        ('{"image": "0.png"}', ["line 4", "data.jsonl/2 has no 'caption', there is image"]),
        ('{"image": "0.png", "caption": null}', ["line 4", "'caption' is null", "fields.optional"]),
        ('{"image": "0.png", "caption": []}', ["line 4", "'caption' is an empty list", "fields.optional"]),
        ('{"image": "0.png", "caption": 3}', ["line 4", "holds 3, which is no text"]),
        ('{"image": "9.png", "caption": "x"}', ["line 4", "data.jsonl/2", "9.png is not there", "root=..."]),
        ('{"image": "https://a/b.png", "caption": "x"}', ["line 4", "web address"]),
        ('{"image": {}, "caption": "x"}', ["line 4", "named by its path"]),
        ('{"image": ["0.png", "9.png"], "caption": "x"}', ["line 4", "9.png is not there", "root=..."]),
        ('{"image": ["0.png", ["0.png"]], "caption": "x"}', ["line 4", "a list of 1 where one image is expected"]),
        ('{"image": ["0.png", null], "caption": "x"}', ["line 4", "a null among its images"]),
        (json.dumps({"image": {"bytes": "x" * 10**6}, "caption": "x"}), ["line 4", "xxx", "too long"]),
        (json.dumps({"image": "cat" * 500 + ".png", "caption": "x"}), ["line 4", "catcat", "too long"]),
        (json.dumps({"image": "https://" + "x" * 10**6, "caption": "x"}), ["line 4", "web address"]),
        (json.dumps({"image": "0.png", "caption": {"x": "x" * 10**6}}), ["line 4", "which is no text"]),
    ],
)
def test_a_bad_line_is_named(line: str, words: list[str], tmp_path: Path) -> None:
    """And a blank one, which is none, is counted."""
    make_pictures(tmp_path)
    good = '{"image": "0.png", "caption": "x"}\n'
    (tmp_path / "data.jsonl").write_text(f"{good}\n{good}{line}\n{good}")
    dataset = JsonLines(tmp_path / "data.jsonl", CAPTIONED)
    assert len(dataset) == 4 and dataset[3].captions == dataset[0].captions
    sentence = told(lambda: dataset[2])
    assert all(word in sentence for word in words), sentence


def test_a_wrong_name_is_told_at_once(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    path = write_lines(tmp_path / "data.jsonl", [{"image": "0.png", "caption": "x"}])
    assert "has no 'text', there is caption, image" in told(lambda: JsonLines(path, Fields(image="image", caption="text")))
    assert "nowhere/0.png is not there" in told(lambda: JsonLines(path, CAPTIONED, root="nowhere"))
    assert "not named" in told(Fields)
    assert "fields.answer" in told(lambda: Fields(question="q"))


def test_questions_need_as_many_answers(tmp_path: Path) -> None:
    fields = Fields(question="q", answer="a", language="l", optional=("l",))
    path = write_lines(tmp_path / "a.jsonl", [{"q": ["One?", "Two?"], "a": ["1", "2"], "l": "zh"}, {"q": "Three?", "a": []}])
    dataset = JsonLines(path, fields)
    assert [(q.text, q.answer, q.language) for q in dataset[0].questions] == [("One?", "1", "zh"), ("Two?", "2", "zh")]
    assert "1 questions and 0 answers" in told(lambda: dataset[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"a": 1},\n{"b": 2', ["line 2", "too early"]),
        ('[{"a": 1},\n{"b" 2}, ' + "{}, " * 50 + "]", ["line 2 is not JSON", "Expecting ':'"]),
        ('[{"a": 1},\n3]', ["line 2", "expecting {"]),
        ('[{"a": 1}]\n[]', ["line 2", "behind its list"]),
        ('[{"a": 1}\n', ["line 2", "expecting , or ]", "too early"]),
        ("[]", ["holds no entries"]),
        ("\n \n", ["holds no entries"]),
    ],
)
def test_a_damaged_list(content: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    sentence = told(lambda: LlavaJson(tmp_path / "a.json"))
    assert all(word in sentence for word in words), sentence


SAID = {"human": "<image>\nWhat?", "gpt": "That."}


def turns(*roles: str, **said: str) -> list[dict[str, str]]:
    return [{"from": role, "value": said.get(f"{role}{number}", SAID.get(role, ""))} for number, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        (turns("human", "human"), "do not take turns"),
        (turns("human", "system", "gpt"), "do not take turns"),
        (turns("tool", "human", "gpt"), "not 'tool'"),
        (turns("human"), "no question with an answer"),
        ([], "no question with an answer"),
        (turns("human", "gpt", gpt1=" "), "turn 2 of the conversation is empty"),
        (turns("human", "gpt", "human", "gpt", human2=" "), "turn 3 of the conversation is empty"),
        (turns("human", "gpt", "human", "gpt"), "speaks of <image> 2 times, and the entry names 1 image"),
        (turns("human", "gpt", human0="<image><image>Which?"), "speaks of <image> 2 times"),
        (["hello"], "a turn is"),
        (["hello" * 10**5], "a turn is"),
        ([{"from": ["human"], "value": "Hi."}], "human's or gpt's, not ['human']"),
        ([{"from": "human", "value": [{"type": "video", "text": "Hi." * 10**5}]}], "what human says is text, or parts"),
        ([{"from": "human", "value": [{"type": "text", "text": 3}]}], "what human says is text, or parts"),
    ],
)
def test_a_bad_conversation_is_named(conversation: list, words: str, tmp_path: Path) -> None:
    make_pictures(tmp_path)
    good = {"image": "0.png", "conversations": TURNS}
    (tmp_path / "a.json").write_text(json.dumps([good, {"image": "1.png", "conversations": conversation}], indent=0))
    dataset = LlavaJson(tmp_path / "a.json")
    sentence = told(lambda: dataset[1])
    assert words in sentence and "a.json/1" in sentence and "line " in sentence, sentence


def test_what_llava_leaves_out_is_left_out(tmp_path: Path) -> None:
    """A first turn of gpt and a last one of human, as its own training does; and the chat form of others is read."""
    hello = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
    entries = [
        {"conversations": turns("gpt", "human", "gpt", "human", human1="Hi.", human3="Bye.")},
        {"conversations": hello},
        {"conversations": turns("human", "gpt")},
    ]
    dataset = LlavaJson(write_lines(tmp_path / "a.jsonl", entries))
    assert [(q.text, q.answer) for q in dataset[0].questions] == [("Hi.", "That.")]
    assert dataset[1].questions[0].answer == "Good day."
    assert "names no image" in told(lambda: dataset[2])


# -- Parquet -------------------------------------------------------------------------------------------------------------


def write_table(path: Path, **columns: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_bad_table_of_parquet(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    path = write_table(tmp_path / "a.parquet", image=["0.png", "1.png", "9.png", None], caption=["a", None, "c", "d"])
    dataset = Parquet(path, CAPTIONED)
    assert dataset[0].image == tmp_path / "0.png"
    assert "a.parquet/1: the field 'caption' is null" in told(lambda: dataset[1])
    assert "a.parquet/2: the image" in told(lambda: dataset[2])
    assert "'image' is null" in told(lambda: dataset[3])
    assert "has no 'text', there is caption, image" in told(lambda: Parquet(path, Fields(image="image", caption="text")))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "cannot be read as Parquet" in told(lambda: Parquet(path, CAPTIONED))
    path.write_bytes(b"")
    assert "cannot be read as Parquet" in told(lambda: Parquet(path, CAPTIONED))
    empty = write_table(tmp_path / "b.parquet", image=[], caption=[])
    assert "no rows" in told(lambda: Parquet(empty, CAPTIONED))


def test_damage_inside_a_table(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"caption": [f"caption {number}" for number in range(2000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1000, use_dictionary=False)
    dataset = Parquet(tmp_path / "a.parquet", Fields(caption="caption"))
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    (tmp_path / "a.parquet").write_bytes(content)
    assert "cannot be read as Parquet" in told(lambda: dataset[1500])


def test_columns_of_any_form(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    one = write_table(tmp_path / "a.parquet", image=[picture_bytes(0)], caption=[["One.", "Two."]])
    assert [text.text for text in Parquet(one, CAPTIONED)[0].captions] == ["One.", "Two."]
    two = write_table(tmp_path / "b.parquet", image=[{"bytes": None, "path": "0.png"}], conversations=[TURNS])
    record = Parquet(two, Fields(image="image", conversation="conversations"))[0]
    assert len(record.questions) == 2 and isinstance(record.image, UnreadImage)
    assert record.image.read() == (tmp_path / "0.png").read_bytes()
    three = write_table(tmp_path / "c.parquet", image=[picture_bytes(0), None], caption=["One.", "Two."])
    dataset = Parquet(three, CAPTIONED)
    assert "c.parquet/1: the field 'image' is null" in told(lambda: decode_image(dataset[1].image))
    four = write_table(tmp_path / "d.parquet", image=[[[{"bytes": picture_bytes(0), "path": None}]]], caption=["One."])
    assert "d.parquet: the column 'image' holds lists of lists" in told(lambda: Parquet(four, CAPTIONED))
    five = write_table(tmp_path / "e.parquet", image=[ENCODED], caption=["One."])
    assert decode_image(Parquet(five, CAPTIONED)[0].image).size == (20, 16)  # pyright: ignore[reportArgumentType]
    optional = Parquet(three, Fields(image="image", caption="caption", optional=("image",)))
    assert optional[0].image == picture_bytes(0) and optional[1].image is None


def test_large_groups_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(parquet_module, "MAX_GROUP_BYTES", 10)
    Parquet(write_table(tmp_path / "a.parquet", caption=["x"]), Fields(caption="caption"))
    assert "row_group_size=100" in caplog.text


def test_pyarrow_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "a.parquet", caption=["x"])
    for module in [module for module in sys.modules if module.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, module, None)  # pyright: ignore[reportArgumentType]
    assert "pip install 'unimm[data]'" in told(lambda: Parquet(path, Fields(caption="caption")))


# -- tar shards ----------------------------------------------------------------------------------------------------------

SAMPLE = {"a.png": picture_bytes(0), "a.txt": b"A."}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.txt": b"A."}, "sample a in"),
        ({**SAMPLE, "a.jpg": b""}, "several images (jpg, png)"),
        ({"notes.md": b""}, "holds no samples"),
        ({"a.png": b"x"}, "has no 'txt'"),
        ({"a.png": b"x", "a.txt": b"\xff"}, "not UTF-8"),
        ({"a.png": b"x", "a.txt": b""}, "'txt' is empty"),
    ],
)
def test_a_bad_sample_is_named(members: dict[str, bytes], words: str, tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "0.tar", members)
    sentence = told(lambda: WebDataset(shard))
    assert words in sentence and "0.tar" in sentence, sentence


def test_a_damaged_shard(tmp_path: Path) -> None:
    samples = {f"{key}.{suffix}": content for key in "abc" for suffix, content in (("png", b"x" * 2000), ("txt", b"A."))}
    whole = make_shard(tmp_path / "0.tar", samples).read_bytes()
    shard = tmp_path / "1.tar"
    for damaged in (
        whole[:2000],  # inside a member
        whole[: 512 + 2048],  # between members
        whole[:2560] + b"\x01" * 512 + whole[3072:],  # a header overwritten
        b"",
        b"no tar at all" * 100,
    ):
        shard.write_bytes(damaged)
        sentence = told(lambda: WebDataset(shard))
        assert "1.tar" in sentence and "copy or download it again" in sentence, sentence
    shard.write_bytes(gzip.compress(whole))
    assert "is compressed, unpack it" in told(lambda: WebDataset(shard))
    assert not list(tmp_path.glob("*.index"))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """Pickles and other members are never opened; hidden ones are none; keys end at the first dot."""
    members = {
        **SAMPLE,
        "a.pyd": b"cos\nsystem\n",
        "__meta__.png": b"",
        "x/._b.png": b"",
        "x/b.seg.png": b"i",
        "x/b.txt": b"B.",
    }
    dataset = WebDataset(make_shard(tmp_path / "0.tar", members))
    assert [dataset[index].key for index in range(len(dataset))] == ["0.tar/a", "0.tar/x/b"]
    image = dataset[1].image
    assert isinstance(image, UnreadImage) and image.read() == b"i"
    assert f"Cannot read the image {tmp_path}/0.tar: sample x/b" in told(lambda: decode_image(image))


def test_fields_of_json_and_text_mix(tmp_path: Path) -> None:
    members = {"a.png": b"x", "a.txt": b"Short.", "a.json": b'{"long": ["A long one."], "q": "What?", "a": "That."}'}
    shard = make_shard(tmp_path / "0.tar", members)
    record = WebDataset(shard, Fields(caption="long", question="q", answer="a"))[0]
    assert record.captions[0].text == "A long one." and record.questions[0].answer == "That."
    assert "there is (image), a, long, q" in told(lambda: WebDataset(shard, Fields(caption="caption")))
    make_shard(shard, {**members, "a.json": b"{"})
    assert "a .json that is none" in told(lambda: WebDataset(shard, Fields(caption="long")))


# -- text ----------------------------------------------------------------------------------------------------------------


def test_a_bad_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"One.\n\nTwo.\nThr\xe9e.\n")
    assert "a.txt, line 4 is not UTF-8" in told(lambda: PlainTextFiles(path))
    path.write_text(" \n\n")
    assert "all of it is white space" in told(lambda: PlainTextFiles(path))
    lines = write_lines(tmp_path / "b.jsonl", [{"text": "x"}, {"content": "y"}])
    assert "b.jsonl, line 2 has no text in 'text', there is content" in told(lambda: PlainTextFiles(lines))
    assert "blank_line, line, file" in told(lambda: PlainTextFiles(lines, documents="page"))
    assert "max_characters" in told(lambda: PlainTextFiles(lines, max_characters=0))


def test_a_damaged_image_is_the_decoders_to_tell(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "a.txt").write_text("A picture.")
    record = ImageFolder(tmp_path)[0]
    assert record.image is not None
    with pytest.raises(ImageError, match=r"a\.png"):
        decode_image(record.image)
