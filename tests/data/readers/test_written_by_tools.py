"""Files in the form that other tools write: made here by pyarrow as datasets, pandas and the hub's data sets have them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from users_files import CAPTIONS, make_pictures, picture_bytes, read_all

from unimm.data.image import decode_image
from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.llava import LlavaJson
from unimm.data.readers.parquet import Parquet
from unimm.data.records import Record

PICTURES = [picture_bytes(number) for number in range(4)]


def save(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    """A table; features: what datasets notes beside it."""
    table = pyarrow.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if path.suffix == ".arrow":
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


def looks(records: list[Record]) -> list[list[bytes]]:
    return [[decode_image(image.image).tobytes() for image in record.images] for record in records]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_class_label_is_its_name(suffix: str, tmp_path: Path) -> None:
    features = {"label": {"names": ["tabby cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    columns = {"image": [{"bytes": one, "path": None} for one in PICTURES], "label": [1, 0, -1, 1]}
    path = save(tmp_path / f"a.{suffix}", columns, features)
    dataset = Parquet(path, Fields(image="image", caption="label"))
    assert [dataset[number].captions[0].text for number in (0, 1, 3)] == ["dog", "tabby cat", "dog"]
    with pytest.raises(ValueError, match="'label' is null"):
        dataset[2]
    assert Parquet(path, Fields(image="image", caption="label", optional=("label",)))[2].captions == ()
    with pytest.raises(ValueError, match="holds 1, which is no text"):
        Parquet(save(tmp_path / f"b.{suffix}", columns), Fields(image="image", caption="label"))


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([np.frombuffer(one, dtype=np.uint8) for one in PICTURES]),
        pyarrow.array(PICTURES, pyarrow.large_binary()),
        pyarrow.array(PICTURES, pyarrow.binary_view()),
        pyarrow.array([[one] for one in PICTURES]),
        pyarrow.array([f"{number}.png" for number in range(4)]).dictionary_encode(),
        pyarrow.array([f"{number}.png" for number in range(4)], pyarrow.string_view()),
    ],
    ids=["numpy", "large_binary", "binary_view", "list", "categorical", "string_view"],
)
def test_images_as_tools_hold_them(column: pyarrow.Array, tmp_path: Path) -> None:
    make_pictures(tmp_path)
    path = save(tmp_path / "a.parquet", {"image": column, "text": list(CAPTIONS)})
    records = read_all(Parquet(path, Fields(image="image", caption="text")))
    assert looks(records) == [[decode_image(one).tobytes()] for one in PICTURES]


def test_pixels_as_numbers_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", {"image": [np.zeros((2, 2, 3), np.uint8).tolist()], "text": ["A."]})
    with pytest.raises(ValueError, match="the column 'image' holds pixels as lists of numbers: write the bytes of a PNG"):
        Parquet(path, Fields(image="image", caption="text"))


def test_conversations_of_the_hub(tmp_path: Path) -> None:
    """The Cauldron's pairs, and content as parts in which everything is null that another part has."""
    parts = [
        {
            "role": "user",
            "content": [{"index": None, "text": "What?\n", "type": "text"}, {"index": 0, "text": None, "type": "image"}],
        },
        {"role": "assistant", "content": [{"index": None, "text": "A cat.", "type": "text"}]},
    ]
    pairs = [{"user": "What?", "assistant": "A cat.", "source": "x"}, {"user": "Sure?", "assistant": "Yes.", "source": "x"}]
    images = [[{"bytes": one, "path": None}] for one in PICTURES]
    path = save(tmp_path / "a.parquet", {"images": images, "texts": [pairs] * 4, "messages": [parts] * 4})
    paired = Parquet(path, Fields(image="images", conversation="texts"))[0]
    assert [(one.text, one.answer) for one in paired.questions] == [("What?", "A cat."), ("Sure?", "Yes.")]
    parted = Parquet(path, Fields(image="images", conversation="messages"))[3]
    assert parted.questions[0].parts == ("What?", 0) and looks([paired, parted]) == [
        [decode_image(PICTURES[0]).tobytes()],
        [decode_image(PICTURES[3]).tobytes()],
    ]


LLAMA_FACTORY = [
    {
        "messages": [{"content": "<image>Who?", "role": "user"}, {"content": "Kane.", "role": "assistant"}],
        "images": ["0.png"],
    },
    {"conversations": [{"from": "human", "value": "<image>Who?"}, {"from": "gpt", "value": "Kane."}], "images": ["0.png"]},
    {"instruction": "<image>Who?", "input": "", "output": "Kane.", "history": [], "images": ["0.png"]},
]
MS_SWIFT = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>Who?"},
            {"role": "assistant", "content": "Kane."},
        ],
        "images": ["0.png"],
    },
    {"query": "<image>Who?", "response": "Kane.", "images": ["0.png"]},
    {"system": "Be brief.", "conversation": [{"human": "<image>Who?", "assistant": "Kane."}], "images": [{"path": "0.png"}]},
]


@pytest.mark.parametrize("entry", [*LLAMA_FACTORY, *MS_SWIFT])
def test_documented_examples(entry: dict[str, Any], tmp_path: Path) -> None:
    make_pictures(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    record = LlavaJson(tmp_path / "a.json")[0]
    assert [(one.text, one.answer) for one in record.questions] == [("Who?", "Kane.")]
    assert record.image == tmp_path / "0.png" and record.system in ("", "Be brief.")


def test_compressed_files_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_pictures(tmp_path)
    fields = Fields(image="image", caption="caption")
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    for path in (tmp_path, tmp_path / "a.jsonl.gz"):
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz is compressed: unpack it"):
            JsonLines(path, fields)
    (tmp_path / "b.jsonl").write_text('{"image": "0.png", "caption": "A."}')
    assert len(JsonLines(tmp_path, fields)) == 1 and "1 compressed files are not read" in caplog.text
