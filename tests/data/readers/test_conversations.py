"""Records with several images: every form that tools for fine-tuning write becomes the same questions, images and system."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from users_files import COLOURS, make_pictures, picture_bytes, write_lines

from unimm.data.image import decode_image
from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.llava import LlavaJson
from unimm.data.readers.parquet import Parquet
from unimm.data.records import Record, UnreadImage

ENCODED = base64.b64encode(picture_bytes(0)).decode()
URI = f"data:image/png;base64,{ENCODED}"


def say(user: Any, answer: Any = "That.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]


def colours(record: Record) -> list[int]:
    """Which pictures a record shows, by the number of their colour."""
    found = [decode_image(one.image).getpixel((3, 3)) for one in record.images]
    return [next(number for number, own in enumerate(COLOURS) if own == colour) for colour in found]


TEXT = {"type": "text", "text": "Which?"}
TWO = (0, 1, "Which?")
FORMS: dict[str, tuple[dict[str, Any], list[int], list[tuple]]] = {
    "ms-swift, LLaMA-Factory": ({"messages": say("<image><image>Which?"), "images": ["0.png", "1.png"]}, [0, 1], [TWO]),
    "ms-swift without tags": ({"messages": say("Which?"), "images": ["0.png", "1.png"]}, [0, 1], [()]),
    "a list of one": ({"image": ["1.png"], "conversations": say("<image>\nWhich?")}, [1], [()]),
    "an empty list": ({"images": [], "messages": say("Which?")}, [], [()]),
    "LLaVA, in two turns": (
        {"image": ["0.png", "1.png"], "conversations": [*say("<image>\nWhich?"), *say("And\n<image>\nhere?")]},
        [0, 1],
        [(0, "Which?"), ("And", 1, "here?")],
    ),
    "one in a later turn": (
        {"image": "1.png", "conversations": [*say("Hello."), *say("<image>\nWhich?")]},
        [1],
        [(), (0, "Which?")],
    ),
    "OpenAI, data: URI": (
        {"messages": say([TEXT, {"type": "image_url", "image_url": {"url": URI}}])},
        [0],
        [("Which?", 0)],
    ),
    "OpenAI, both beside it": (
        {"messages": say([{"type": "image"}, {"type": "image", "path": "1.png", "text": None}, TEXT]), "images": ["0.png"]},
        [0, 1],
        [TWO],
    ),
    "Hugging Face's parts": (
        {"messages": say([{"type": "image"}, {"type": "image"}, TEXT]), "images": ["0.png", URI]},
        [0, 0],
        [TWO],
    ),
    "base64 beside it": ({"messages": say("<image>Which?"), "images": [{"url": ENCODED}]}, [0], [()]),
    "an answer that draws": (
        {"messages": say("<image>Make it green.", "Here: <image>"), "images": ["0.png", "1.png"]},
        [0, 1],
        [(0, "Make it green.")],
    ),
    "Alpaca": ({"instruction": "Which?", "input": "Of these.", "output": "That.", "images": ["0.png"]}, [0], [()]),
    "ms-swift's query": ({"query": "<image>Which?", "response": "That.", "history": [], "images": ["0.png"]}, [0], [()]),
    "ms-swift's pairs": ({"conversation": [{"human": "Which?", "assistant": "That."}]}, [], [()]),
    "a path of Windows": ({"image": "sub\\2.png", "conversations": say("<image>Which?")}, [2], [()]),
    "a name in the other form": ({"image": "cafe\u0301.png", "conversations": say("<image>Which?")}, [3], [()]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str, tmp_path: Path) -> None:
    entry, shown, parts = FORMS[form]
    make_pictures(tmp_path, ("0.png", "1.png", "sub/2.png", "caf\u00e9.png"))
    record = LlavaJson(write_lines(tmp_path / "a.jsonl", [entry]))[0]
    assert colours(record) == shown and record.num_images == len(shown)
    assert [question.parts for question in record.questions] == parts
    assert record.is_dialogue and all("<image>" not in question.text for question in record.questions)
    if form == "an answer that draws":
        assert record.questions[0].answer_parts == ("Here:", 1)
    if form == "Alpaca":
        assert (record.questions[0].text, record.questions[0].answer) == ("Which?\nOf these.", "That.")


def test_systems_and_roles(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
    entries = [
        {"conversations": turns},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *say("Hi.", "Hello.")]},
        {"messages": say("Hi.", "Hello."), "system": "Be brief."},
        {"conversation": [{"system": "Be brief.", "human": "Hi.", "assistant": "Hello."}]},
    ]
    dataset = LlavaJson(write_lines(tmp_path / "a.jsonl", entries))
    assert [(dataset[number].system, dataset[number].questions[0].answer) for number in range(4)] == [
        ("Be brief.", "Hello.")
    ] * 4


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"messages": say("<image><video>Hm?"), "images": ["0.png"], "videos": ["a.mp4"]},
            "a.mp4 is not there",
        ),
        ({"messages": say("Hi."), "tools": "[...]"}, "has 'tools', which is not read"),
        ({"messages": say("Hi."), "rejected_response": "No."}, "has 'rejected_response'"),
        ({"messages": say("Hi."), "conversations": say("Hi.")}, "both 'conversations' and 'messages'"),
        ({"messages": say("Hi."), "image": "0.png", "images": ["0.png"]}, "both 'image' and 'images'"),
        ({"messages": say("<image>Which?"), "images": ["0.png", "1.png"]}, "1 time, and the entry names 2 images"),
        ({"messages": say([{"type": "input_audio"}])}, "parts of type text and image, not {'type': 'input_audio'}"),
        ({"messages": say([{"type": "image_url", "image_url": {"url": "https://a/b.png"}}])}, "web address"),
        ({"messages": say([{"type": "image_url", "image_url": 3}])}, "image_url"),
        ({"query": "Hi.", "response": "Hello.", "history": ["x"]}, "a list of pairs"),
        ({"prompt": "Hi."}, "has no 'conversations', there is prompt"),
    ],
)
def test_what_is_not_read_is_refused(entry: dict, words: str, tmp_path: Path) -> None:
    make_pictures(tmp_path)
    path = write_lines(tmp_path / "a.jsonl", [entry])
    with pytest.raises(ValueError) as told:
        LlavaJson(path)
    sentence = str(told.value)
    assert words in sentence and "a.jsonl, line 1" in sentence and "\n" not in sentence, sentence


def test_lists_of_images_in_tables(tmp_path: Path) -> None:
    """As `datasets` writes them; a table's images are read when they are opened, and their number without reading one."""
    import pyarrow
    import pyarrow.parquet

    lists = [[{"bytes": picture_bytes(n), "path": None} for n in own] for own in ([0, 1], [2], [])]
    table = pyarrow.table({"images": lists, "messages": [json.dumps(0)] * 3, "text": ["two", "one", "none"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pyarrow.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    dataset = Parquet(tmp_path, Fields(image="images", caption="text"))
    assert [colours(dataset[number]) for number in range(6)] == [[0, 1], [2], []] * 2
    homes = {one.image.home() for n in range(6) for one in dataset[n].images if isinstance(one.image, UnreadImage)}
    assert len(homes) == 6
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match="name one of them"):
        Parquet(tmp_path, Fields(image="images", caption="text"))


def test_an_interleaved_document(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    fields = Fields(image="images", texts="texts")
    entries = [
        {"texts": ["One.", None, "Two.", None], "images": [None, "1.png", None, "0.png"]},
        {"texts": ["One.", "Two."], "images": [None, "1.png"]},
        {"texts": ["One."], "images": [None, "1.png"]},
        {"texts": [None], "images": ["1.png"]},
    ]
    dataset = JsonLines(write_lines(tmp_path / "a.jsonl", entries), fields)
    assert dataset[0].document == ("One.", 0, "Two.", 1) and colours(dataset[0]) == [1, 0]
    for number, words in ((1, "a text or an image"), (2, "as many texts as images"), (3, "holds no text")):
        with pytest.raises(ValueError, match=words):
            dataset[number]
